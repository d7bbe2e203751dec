"""Who is told how far a stage is: the run's log in the UI, a progress bar in the CLI."""

from __future__ import annotations

import logging
import time
from typing import Protocol

SECONDS_BETWEEN_LINES = 5.0


class ProgressSink(Protocol):
    """Told of a stage's progress: rows `done` of `total` (None when not known beforehand)."""

    def report(self, log: logging.Logger, video_id: str, stage: str, done: int, total: int | None) -> None: ...


class LogProgress:
    """A line in the run's log every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def report(self, log: logging.Logger, video_id: str, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            log.info("%s %s: %d of %s frames", video_id, stage, done, "?" if total is None else total)
