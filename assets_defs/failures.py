"""What a step raised, in the words of who raised it: Dagster wraps the exception once or twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from vipe_dag.errors import VipeDagError

_ON_PURPOSE = {kind.__name__ for kind in VipeDagError.__subclasses__()} | {dg.Failure.__name__}
"""Class names of exceptions that are raised on purpose: ours, and Dagster's own for a step that refuses to run."""


_DATABASE = {"OperationalError", "InterfaceError", "DagsterPostgresException"}
"""What a step raises when the book is lost under it: a connection was ended, a disk is full."""


_INTERRUPTED = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
"""What a step raises when the process was asked to end."""


@dataclass(frozen=True)
class StepFailure:
    """A step that raised: stage, class name and message of the original exception, and its traceback as text."""

    stage: str
    kind: str
    message: str
    trace: str

    @property
    def interrupted(self) -> bool:
        """The process was asked to end."""
        return self.kind in _INTERRUPTED

    def sentence(self, video_id: str) -> str:
        """One line; names the class when the exception is not one that is raised on purpose."""
        if self.kind in _DATABASE:
            return f"{video_id}: {self.stage}: Dagster's database failed ({self.message}); results are in the store: run again"
        message = self.message if self.kind in _ON_PURPOSE else f"{self.kind}: {self.message}; this is a defect of vipe-dag"
        return f"{video_id}: {self.stage}: {message}"


def first_failure(events: Iterable[dg.DagsterEvent]) -> StepFailure | None:
    """Of the first step that failed; None when none did."""
    for event in events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error is None:
                continue
            original = error.cause or error
            kind, _, message = original.message.strip().partition(": ")
            return StepFailure(event.step_key or "", kind.rpartition(".")[2], message or kind, error.to_string())
    return None
