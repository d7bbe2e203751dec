"""Memory of this process: the peak of a stretch of work, and giving back what was freed."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.05
MB = 1e6


def give_back() -> None:
    """Returns freed memory to the system where the C library can (glibc's malloc_trim), which takes milliseconds; elsewhere does nothing.

    Each thread frees into an arena of its own, where what is free between two blocks in use stays resident: after mapping, a sixth of all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeakMemory:
    """Context manager: `peak_mb` is the largest resident size of this process seen inside the block, in MB (1e6 bytes).

    The high-water mark of the process cannot be reset between stages, so it samples, every SAMPLE_SECONDS and at both ends; an allocation
    shorter than that between two samples can be missed.
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
