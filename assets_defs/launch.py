"""Materializes one video through Dagster inside the calling process: what `vipe-dag run` does for each source."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from assets_defs.assets import CONFIG_TAG
from assets_defs.definitions import build_definitions
from assets_defs.instance import process_tags
from assets_defs.jobs import PIPELINE_JOB, checks_of
from resources.listener import StageListener
from vipe_dag.config import PipelineConfig
from vipe_dag.errors import VipeDagError
from vipe_dag.graph import config_digest, upstream

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


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

    def sentence(self, video_id: str) -> str:
        """One line; names the class when the exception is not one that is raised on purpose."""
        if self.kind in _DATABASE:
            return f"{video_id}: {self.stage}: Dagster's database failed ({self.message}); results are in the store: run again"
        message = self.message if self.kind in _ON_PURPOSE else f"{self.kind}: {self.message}; this is a defect of vipe-dag"
        return f"{video_id}: {self.stage}: {message}"


def materialize_video(
    instance: dg.DagsterInstance, root: str, config: PipelineConfig, video_id: str, until: str, listener: StageListener, quiet: bool = True
) -> StepFailure | None:
    """Runs the job over `until` and all it needs for one partition; returns the failure of a step, None when every step succeeded.

    The video must be registered in the store and be a partition of the instance. A failed blocking check stops the stages below and is
    told to the listener, in the report of its stage, not returned. Raises KeyboardInterrupt when the process was asked to end.
    """
    job = build_definitions(root=root, config=config, listener=listener).resolve_job_def(PIPELINE_JOB)
    stages = upstream(until)
    chosen = job.get_subset(
        asset_selection=frozenset(dg.AssetKey(name) for name in stages), asset_check_selection=frozenset(checks_of(stages))
    )
    result = chosen.execute_in_process(
        instance=instance,
        partition_key=video_id,
        tags={CONFIG_TAG: config_digest(config), **process_tags()},
        run_config=QUIET if quiet else None,
        raise_on_error=False,
    )
    failure = _failure(result)
    if failure is not None and failure.kind in _INTERRUPTED:
        raise KeyboardInterrupt
    return failure


def _failure(result: dg.ExecuteInProcessResult) -> StepFailure | None:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error is None:
                continue
            original = error.cause or error
            kind, _, message = original.message.strip().partition(": ")
            return StepFailure(event.step_key or "", kind.rpartition(".")[2], message or kind, error.to_string())
    return None
