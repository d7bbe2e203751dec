"""Threads: one pool for the process, which divides work over whole frames, edges and ranges of points; OpenCV then uses one thread a call.

OpenCV's own threads gain little on pictures of video size (measured: nothing for SIFT and DIS at 640 x 480), and the result of DIS depends
on how many there are. Work divided here gives the same bits for any number of threads, because no item sees another.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH = 20_000
"""Inner steps below which a range is not divided: waking a thread costs more."""
_MOST = 64

_lock = threading.Lock()
_depth = 0
_outer_threads = 0
_here = threading.local()
_pool: ThreadPoolExecutor | None = None


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_MOST, thread_name_prefix="vipe-kernels")
        return _pool


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


def each(task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[task(item) for item in items], on as many threads as torch uses, this one among them. A task that calls this again runs alone.

    Worth it for tasks that release the GIL for most of a millisecond or more. The first error is raised, once all threads have stopped.
    """
    waiting = list(items)
    threads = min(torch.get_num_threads(), len(waiting), _MOST)
    if threads <= 1 or getattr(_here, "busy", False):
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


def spans(task: Callable[[int, int], None], count: int, work: int) -> None:
    """task(first, last) over range(count), divided where `work` inner steps in all are worth it."""
    threads = min(torch.get_num_threads(), count) if work > _WORTH else 1
    if threads <= 1:
        task(0, count)
        return
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    each(lambda part: task(*part), itertools.pairwise(bounds))
