"""Peak memory of a stretch of work, by sampling: the process-wide high-water mark cannot be reset between stages."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.05
MB = 1e6


class PeakMemory:
    """Context manager: `peak_mb` is the largest resident size of this process seen inside the block, in MB (1e6 bytes).

    Samples every SAMPLE_SECONDS and at both ends, so an allocation shorter than that between two samples can be missed.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    @property
    def peak_mb(self) -> float:
        return self._peak / MB

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)
