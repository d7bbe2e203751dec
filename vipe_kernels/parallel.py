"""Threads: one pool for the process divides work over whole frames, edges and ranges of points; libraries then use one thread a call.

The threads of OpenCV, OpenMP and OpenBLAS gain little on work of this size (measured: nothing for SIFT and DIS at 640 x 480), wait for each
other by spinning (a third of all processor time), and the result of DIS depends on how many there are. Work divided here gives the same
bits for any number of threads, because no item sees another.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH = 20_000
"""Inner steps below which a range is not divided: waking a thread costs more."""
_MOST = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of <malloc.h>."""

_ROOM = 768 << 20
"""Bytes that a process may take before it gives back what it does not use."""

_lock = threading.Lock()
_depth = 0
_outer_threads = 0
_here = threading.local()
_pool: ThreadPoolExecutor | None = None


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            # how many threads a call of torch uses is a matter of each thread that calls, and changes the last bits of a product
            _pool = ThreadPoolExecutor(_MOST, thread_name_prefix="vipe-kernels", initializer=torch.set_num_threads, initargs=(1,))
        return _pool


def _keep_memory() -> None:
    """Let glibc keep and share what is freed, instead of giving it back and asking again: page faults are a tenth of the time.

    One arena, so that what one thread freed serves another; blocks up to 32 MB from it; at most 256 MB at its end are kept.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 256 << 20)):
            mallopt(option, value)


def give_back_memory() -> None:
    """Let glibc return to the system what is free now, wherever it lies, where the process takes more than _ROOM: what follows would have
    to ask for it again, which is 2 % of the time of a short video."""
    trim = _of_glibc("malloc_trim")
    if trim is not None and _resident() > _ROOM:
        trim(0)


def _resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked process has the object, but not its threads


@contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """OpenCV uses one thread inside (whole process; re-entrant and shared by threads; the former setting returns with the last exit)."""
    global _depth, _outer_threads
    with _lock:
        if _depth == 0:
            _outer_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                cv2.setNumThreads(_outer_threads)


@contextmanager
def our_threads() -> Iterator[None]:
    """OpenCV and torch use one thread a call inside; `each` and `spans` of this thread divide work over as many as torch used before. What
    was allocated inside and is free again goes back to the system at the end."""
    _keep_memory()
    before, here = torch.get_num_threads(), getattr(_here, "threads", None)
    _here.threads = here or before
    torch.set_num_threads(1)
    try:
        with single_threaded_opencv():
            yield
    finally:
        torch.set_num_threads(before)
        _here.threads = here
        if here is None:
            give_back_memory()  # what comes next may need other memory than this stage did


def _threads() -> int:
    return 1 if getattr(_here, "busy", False) else getattr(_here, "threads", None) or torch.get_num_threads()


def each(task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[task(item) for item in items], on all threads, this one among them. A task that calls this again does so alone.

    Worth it for tasks that release the GIL for most of a millisecond or more. The first error is raised, once all threads have stopped.
    """
    waiting = list(items)
    threads = min(_threads(), len(waiting), _MOST)
    if threads <= 1:
        return [task(item) for item in waiting]
    results: list[Result | None] = [None] * len(waiting)
    order = iter(range(len(waiting)))
    taking = threading.Lock()

    def work() -> None:
        _here.busy = True
        try:
            while True:
                with taking:
                    position = next(order, None)
                if position is None:
                    return
                results[position] = task(waiting[position])
        finally:
            _here.busy = False

    with single_threaded_opencv():
        others = [_workers().submit(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            errors = [error for error in (other.exception() for other in others) if error]
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]


def later(task: Callable[[], Result]) -> Callable[[], Result]:
    """Start a task on another thread; the function returned waits for its result. With one thread it runs when it is waited for."""
    if _threads() <= 1:
        return task
    running = _workers().submit(task)
    return running.result


def ahead(task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """task(item) for each item in order; while one result is in use the next is made on another thread."""
    order = iter(items)
    for first in order:
        pending = later(partial(task, first))
        for item in order:
            ready, pending = pending(), later(partial(task, item))
            yield ready
        yield pending()


def spans(task: Callable[[int, int], None], count: int, work: int) -> None:
    """task(first, last) over range(count), divided where `work` inner steps in all are worth it."""
    threads = min(_threads(), count) if work > _WORTH else 1
    if threads <= 1:
        task(0, count)
        return
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    each(lambda part: task(*part), itertools.pairwise(bounds))
