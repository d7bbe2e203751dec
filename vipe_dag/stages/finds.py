"""What stages of one run find in the pictures of one video, so that none looks for it twice. It changes no result."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vipe_dag.sequence import FrameSequence
from vipe_kernels.following import Pyramid

T = TypeVar("T")

_MIB = 2**20
_LUMA_BYTES = 48 * _MIB
"""Of luma that are kept: each is asked for by three stages, and costs 1.5 ms where luma is stored, ten times that where colours are decoded
for it."""
_PYRAMID_BYTES = 112 * _MIB
"""Of pictures made ready to be followed in: a keyframe is measured against a dozen others, and to make one ready costs 1.5 ms."""
_FLOW_BYTES = 32 * _MIB
"""Of dense flow between keyframes next to each other: 2.5 ms each."""
_LEAST, _MOST = 16, 64
"""Of each, however large or small they are, and twice as many luma: a new keyframe is measured against about ten."""


class Cache:
    """The most recently used values of costly functions: up to `most` of them and, where told how large each is, no more than `limit` in
    all but for `least`. lossy: whether something did not find room. Threads may share it: who asks for what another is making waits."""

    def __init__(self, most: int, limit: int = 0, size: Callable[[Any], int] = lambda _: 0, least: int = 1) -> None:
        self.items: OrderedDict[object, Any] = OrderedDict()
        self._most, self._limit, self._size, self._least, self._held = most, limit, size, least, 0
        self._making: dict[object, Future[Any]] = {}
        self.lossy = False
        self._lock = Lock()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """Raises what `make` raises."""
        with self._lock:
            if key in self.items:
                self.items.move_to_end(key)
                return self.items[key]
            making = self._making.get(key)
            if making is None:
                mine = self._making[key] = Future[T]()
        if making is not None:
            return making.result()
        try:
            value = make()
            size = self._size(value)
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self.items[key] = value
            self._held += size
            while len(self.items) > (self._least if self._held > self._limit else self._most):
                self._held -= self._size(self.items.popitem(last=False)[1])
                self.lossy = True
        mine.set_result(value)
        return value

    def clear(self) -> None:
        with self._lock:
            self.items.clear()
            self._held, self.lossy = 0, False


def _bytes(array: NDArray[Any]) -> int:
    return array.nbytes


def _pyramid_bytes(pyramid: Pyramid) -> int:
    return pyramid.image.nbytes + sum(level.nbytes for level in pyramid.levels)


class Finds:
    """items: corners, features, matches and edges, by rows and by the settings they were found with, all of them. luma by row, pyramids by
    row and dense flow by two rows: the latest."""

    def __init__(self) -> None:
        self.items: dict[tuple[object, ...], object] = {}
        self.luma = Cache(2 * _MOST, _LUMA_BYTES, _bytes, _LEAST)
        self.pyramids = Cache(_MOST, _PYRAMID_BYTES, _pyramid_bytes, _LEAST)
        self.flows = Cache(_MOST, _FLOW_BYTES, _bytes, _LEAST)

    def get(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """An item. Threads may share it; two that miss the same key both compute it."""
        if key not in self.items:
            self.items[key] = make()
        return self.items[key]  # type: ignore[return-value]

    def let_go(self) -> None:
        """Give up items, and pictures of a video that has too many to be kept: who goes through it again would not find them."""
        self.items.clear()
        for cache in self._pictures():
            if cache.lossy:
                cache.clear()

    def clear(self) -> None:
        self.items.clear()
        for cache in self._pictures():
            cache.clear()

    def _pictures(self) -> tuple[Cache, ...]:
        return self.luma, self.pyramids, self.flows

    def reading(self, frames: FrameSequence) -> FrameSequence:
        """The same frames; what is read of their luma is kept here."""
        return _Kept(frames, self.luma)


@dataclass(frozen=True)
class _Kept:
    """Frames whose latest luma are kept."""

    frames: FrameSequence
    latest: Cache

    @property
    def frame(self) -> NDArray[np.int64]:
        return self.frames.frame

    @property
    def time(self) -> NDArray[np.float64]:
        return self.frames.time

    @property
    def height(self) -> int:
        return self.frames.height

    @property
    def width(self) -> int:
        return self.frames.width

    def __len__(self) -> int:
        return len(self.frames)

    def rgb(self, row: int) -> NDArray[np.uint8]:
        return self.frames.rgb(row)

    def luma(self, row: int) -> NDArray[np.uint8]:
        return self.latest.get(row, lambda: self.frames.luma(row))
