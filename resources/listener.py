"""Who is told what a step does: the run's log in the UI, progress bars in the CLI."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from resources.log_lines import facts

if TYPE_CHECKING:
    from vipe_dag.pipeline import StageReport

SECONDS_BETWEEN_LINES = 5.0


class StageListener(Protocol):
    """Told by each step, in the process of the run."""

    def started(self, log: logging.Logger, video_id: str, stage: str) -> None:
        """The step begins."""

    def progress(self, log: logging.Logger, video_id: str, stage: str, done: int, total: int | None) -> None:
        """Steps done, of total; frames done and None when that is not known beforehand."""

    def finished(self, log: logging.Logger, report: StageReport) -> None:
        """The stage is at its wanted fingerprint."""


class LogListener:
    """Lines in the run's log, every few seconds while a stage runs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def started(self, log: logging.Logger, video_id: str, stage: str) -> None:
        self._last = time.monotonic()

    def progress(self, log: logging.Logger, video_id: str, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            log.info("%s %s: %d%s", video_id, stage, done, " frames" if total is None else f" of {total}")

    def finished(self, log: logging.Logger, report: StageReport) -> None:
        log.info("%s %s: %s in %.1f s", report.video_id, report.stage, report.status, report.seconds, extra=facts(report))
