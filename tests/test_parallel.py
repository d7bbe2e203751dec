"""Work divided over threads: same results in the same order, errors told, libraries held to one thread and let go again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields

import cv2
import numpy as np
import pytest
import torch

from engine_worlds import focal, rig
from vipe_kernels import bundle, parallel


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before, opencv = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    cv2.setNumThreads(opencv)


def test_results_come_in_the_order_of_the_items() -> None:
    meet = threading.Barrier(3)

    def task(item: int) -> tuple[int, str]:
        if item < 3:
            meet.wait(20)
        return item * item, threading.current_thread().name

    results = parallel.each(task, range(30))
    assert [value for value, _ in results] == [item * item for item in range(30)]
    assert len({name for _, name in results}) == 3


def test_a_task_that_divides_its_own_work_does_it_alone() -> None:
    def names(_: int) -> set[str]:
        return set(parallel.each(lambda _: threading.current_thread().name, range(8)))

    assert all(len(seen) == 1 for seen in parallel.each(names, range(6)))


def test_an_error_of_any_thread_is_raised() -> None:
    def task(item: int) -> int:
        if item == 7:
            raise ValueError("seven")
        return item

    with pytest.raises(ValueError, match="seven"):
        parallel.each(task, range(9))
    assert parallel.each(lambda item: item, range(9)) == list(range(9))


@pytest.mark.parametrize(("count", "work"), [(0, 0), (1, 10**6), (5, 10), (5, 10**6), (100, 10**6)])
def test_spans_cover_a_range_once(count: int, work: int) -> None:
    seen = np.zeros(count, int)

    def task(first: int, last: int) -> None:
        seen[first:last] += 1

    parallel.spans(task, count, work)
    assert (seen == 1).all()


def test_libraries_use_one_thread_while_we_divide() -> None:
    cv2.setNumThreads(2)
    with parallel.our_threads():
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
        meet = threading.Barrier(3)
        parallel.each(lambda _: meet.wait(20), range(3))  # still three of ours
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (3, 2)


def test_torch_uses_one_thread_wherever_a_task_runs() -> None:
    meet = threading.Barrier(3)

    def task(_: int) -> int:
        meet.wait(20)
        return torch.get_num_threads()

    with parallel.our_threads():
        assert parallel.each(task, range(3)) == [1, 1, 1]


def test_a_divided_system_has_the_same_bits_every_time() -> None:
    world = rig(keyframes=12, points=400, intrinsics=(focal(),)).noisy(0.5)
    chunk = bundle.Chunk(world.problem, world.truth, bundle.Stretch(world.problem.edges, slice(0, len(world.problem.edges.source))))
    torch.set_num_threads(1)
    wanted = bundle.condense(chunk, 2.0, keep=True)
    torch.set_num_threads(3)
    with parallel.our_threads():
        for _ in range(20):
            again = bundle.condense(chunk, 2.0, keep=True)
            for field in fields(again):
                assert torch.equal(*(torch.as_tensor(getattr(found, field.name)) for found in (again, wanted)))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_made_ahead_come_in_order(count: int) -> None:
    started: list[int] = []

    def task(item: int) -> int:
        started.append(item)
        return item * item

    with parallel.our_threads():
        for position, result in enumerate(parallel.ahead(task, range(count))):
            assert result == position * position
            assert len(started) <= position + 2  # one under way, not all
    assert started == list(range(count))


def test_a_task_for_later_gives_its_result_or_its_error() -> None:
    assert parallel.later(lambda: 5)() == 5
    failing = parallel.later(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing()
