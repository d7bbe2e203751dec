"""What was found in pictures is found again, as much of it as there is room for, and changes nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_worlds import frames
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.finds import Cache, Finds


@given(keys=st.lists(st.integers(0, 9), max_size=40), size=st.integers(1, 5))
def test_a_cache_gives_what_was_made_and_keeps_the_latest(keys: list[int], size: int) -> None:
    cache, made = Cache(size), []

    def make(key: int) -> int:
        made.append(key)
        return key * key

    for key in keys:
        assert cache.get(key, lambda key=key: make(key)) == key * key
        assert len(cache.items) <= size
    assert cache.lossy == (len(made) > size)
    latest = list(dict.fromkeys(reversed(keys)))[:size]
    made.clear()
    for key in reversed(latest):
        cache.get(key, lambda key=key: make(key))
    assert not made


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), limit=st.integers(1, 20), least=st.integers(1, 4))
def test_a_cache_holds_no_more_than_its_limit_but_for_the_least_that_is_asked(sizes: list[int], limit: int, least: int) -> None:
    cache = Cache(len(sizes), limit, len, least)
    for key, size in enumerate(sizes):
        cache.get(key, lambda size=size: "x" * size)
        assert len(cache.items) >= min(least, key + 1)
        assert sum(map(len, cache.items.values())) <= limit or len(cache.items) <= least
        assert key in cache.items


def test_a_cache_holds_no_more_than_the_most_that_is_asked_however_small_they_are() -> None:
    cache = Cache(3, 1000, len)
    for key in range(5):
        cache.get(key, lambda: "x")
    assert list(cache.items) == [2, 3, 4]
    assert cache.lossy


def test_who_asks_for_what_another_thread_is_making_waits_for_it() -> None:
    cache, begun, go, made = Cache(4), threading.Event(), threading.Event(), []

    def slow() -> str:
        begun.set()
        go.wait(10)
        made.append(1)
        return "made"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "key", slow)
        begun.wait(10)
        second = pool.submit(cache.get, "key", slow)
        assert cache.get("other", lambda: "free") == "free"
        go.set()
        assert first.result(10) == second.result(10) == "made"
    assert made == [1]


def test_what_could_not_be_made_is_tried_again() -> None:
    cache = Cache(4)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 // 0)
    assert cache.get("key", lambda: 7) == 7


class Counted:
    """Frames that count how often luma is read."""

    def __init__(self, inner: FrameSequence) -> None:
        self.inner, self.reads = inner, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def luma(self, row: int) -> np.ndarray:
        self.reads += 1
        return self.inner.luma(row)


def test_luma_is_read_once_by_all_who_read_through_the_same_finds() -> None:
    source, finds = Counted(frames("room")), Finds()
    for _ in range(2):
        kept = finds.reading(source)  # type: ignore[arg-type]
        assert (len(kept), kept.width, kept.height) == (len(source), source.inner.width, source.inner.height)
        np.testing.assert_array_equal(kept.time, source.inner.time)
        np.testing.assert_array_equal(kept.frame, source.inner.frame)
        np.testing.assert_array_equal(kept.rgb(3), source.inner.rgb(3))
        for row in (3, 4, 3):
            np.testing.assert_array_equal(kept.luma(row), source.inner.luma(row))
    assert source.reads == 2


def test_pictures_of_a_short_video_stay_when_items_are_let_go_and_those_of_a_long_one_do_not() -> None:
    finds = Finds()
    finds.luma = Cache(2)
    for row in range(2):
        finds.luma.get(row, lambda: np.zeros(1, np.uint8))
    finds.get(("corners", 0), lambda: 1)
    finds.let_go()
    assert not finds.items
    assert len(finds.luma.items) == 2
    finds.luma.get(2, lambda: np.zeros(1, np.uint8))
    finds.let_go()
    assert not finds.luma.items
