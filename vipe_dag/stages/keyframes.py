"""Keyframes: the frames between which the camera moved enough to triangulate, and the shots the video consists of.

One pass over the video at reduced size. Dense flow from the last keyframe to the current frame, seeded by the previous answer, gives the
motion; when it exceeds a share of the picture, or too few pixels are still consistent, a keyframe is set. Where two neighbouring frames
share neither flow nor verified features, the shot ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import KeyframesConfig
from vipe_dag.results import Keyframes
from vipe_dag.sequence import FrameSequence
from vipe_kernels import epipolar, parallel, tracking
from vipe_kernels.motion import lengths, returning
from vipe_kernels.parallel import our_threads
from vipe_kernels.tracking import Features

Flow = NDArray[np.float32]

_STATIC_PX = 0.5
"""A clip whose median motion never exceeds this, in pixels of a 640-pixel picture, does not move."""
_PLACES = 4000
_BLOCK = 4
"""Frames made ready at a time."""
_CELLS = 40
"""Parts of the longer side in which followed flow is kept."""
_BETWEEN = 2
"""Frames through which flow has to be followed to be told: one more than none hardly knows more than flow from end to end."""
_REFINEMENTS = 2
"""Of dense flow: more change the motion by less than one part in a hundred, and the consistent share by one to three."""
_CLOSING = 1.0
"""Pixels, at the size where motion is measured, by which a place may miss where it came from."""
_CUT_SEEDED, _CUT_CONSISTENT = 0.15, 0.06
"""Shares of places that flow back below which it is looked whether two frames show the same place: where they do not, up to 0.12 do if the
way back was begun from the way there, and, but for one of 60, up to 0.06 if from nothing."""
_CUT_FEATURES = 1000
_CUT_MATCHES = 15


@dataclass(frozen=True)
class _Small:
    """A frame at the size where motion is measured: places (N, 2) of pixels, x and y, by which it is told, textured ones if there are any;
    textured: their share of all."""

    image: NDArray[np.uint8]
    places: NDArray[np.intp]
    textured: float
    sharpness: float


def _all_shrunk(frames: FrameSequence, side: int) -> Iterator[_Small]:
    """All frames in order; a block of them is made ready by other threads while the one before is in use."""

    def block(start: int) -> list[_Small]:
        return [_shrink(frames.luma(row), side) for row in range(start, min(start + _BLOCK, len(frames)))]

    for ready in parallel.ahead(block, range(0, len(frames), _BLOCK)):
        yield from ready


def _shrink(image: NDArray[np.uint8], side: int) -> _Small:
    factor = min(1.0, side / max(image.shape))
    if factor < 1.0:
        image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    texture = np.asarray(cv2.cornerMinEigenVal(image.astype(np.float32), 5, ksize=3) > 4.0)
    y, x = np.nonzero(texture)
    if len(x) < 50:
        y, x = (v.ravel() for v in np.mgrid[0 : image.shape[0] : 4, 0 : image.shape[1] : 4])
    places = np.stack([x, y], 1)[:: max(1, len(x) // _PLACES)]
    return _Small(image, places, float(texture.mean()), float(cv2.Laplacian(image, cv2.CV_32F).var()))


def _flow(a: _Small, b: _Small, guess: Flow | None) -> Flow:
    """Dense flow a -> b, from a guess."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setVariationalRefinementIterations(_REFINEMENTS)
    return np.asarray(dis.calc(a.image, b.image, None if guess is None else guess.copy()), np.float32)


class _Flows:
    """Flows between frames. One that is expected to be asked for is made on another thread meanwhile."""

    def __init__(self) -> None:
        self._expected: tuple[_Small, _Small, Callable[[], Flow]] | None = None

    def expect(self, a: _Small, b: _Small, guess: Flow | None) -> None:
        self._expected = a, b, parallel.later(partial(_flow, a, b, guess))

    def between(self, a: _Small, b: _Small, guess: Flow | None) -> Flow:
        """`_flow`; guess: the same as where it was expected."""
        if self._expected is not None and self._expected[0] is a and self._expected[1] is b:
            return self._expected[2]()
        return _flow(a, b, guess)


@dataclass(frozen=True)
class _Motion:
    """Dense flow from a frame to another and back; length: its median over the places of the first; share of those that flow back to where
    they came from."""

    there: Flow
    back: Flow
    length: float
    share: float

    @classmethod
    def of(cls, a: _Small, b: _Small, there: Flow) -> _Motion:
        back = _flow(b, a, -there)
        moved, good = lengths(a.places, there), returning(a.places, there, back, _CLOSING)
        return cls(there, back, float(np.median(moved[good] if good.sum() > 20 else moved)), float(good.mean()))


class _Followed:
    """Flow between rows with others between, in cells and in pixels of the frames."""

    def __init__(self, frames: FrameSequence) -> None:
        cell = max(frames.width, frames.height) / _CELLS
        self._frame = np.array([frames.width, frames.height], np.float32)
        self._size = max(1, round(frames.width / cell)), max(1, round(frames.height / cell))
        self._known: dict[tuple[int, int], tuple[NDArray[np.float16], NDArray[np.float16]]] = {}

    def keep(self, a: int, b: int, motion: _Motion) -> None:
        if b > a + _BETWEEN:
            self._known[a, b] = self._cells(motion.there), self._cells(motion.back)

    def _cells(self, flow: Flow) -> NDArray[np.float16]:
        scale = self._frame / np.array(flow.shape[1::-1], np.float32)
        return np.asarray(cv2.resize(flow, self._size, interpolation=cv2.INTER_AREA) * scale, np.float16)

    def divide(self, frames: FrameSequence, whole: list[int], parts: list[int], motion: NDArray[np.float32], side: int) -> None:
        """Follow between keyframes that were set within the intervals of others, by what is known of these: the share of their motion."""
        for first, last in itertools.pairwise(np.searchsorted(parts, whole).tolist()):
            rows = parts[first : last + 1]
            start, end = rows[0], rows[-1]
            if len(rows) < 3 or (start, end) not in self._known:
                continue
            small = {row: _shrink(frames.luma(row), side) for row in rows}
            size = small[start].image.shape[::-1]
            cells = self._known[start, end][0].astype(np.float32)
            flow = cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR) * (np.array(size, np.float32) / self._frame)
            for a, b in itertools.pairwise(rows):
                moved = motion[b] - (motion[a] if a > start else 0.0)
                guess = np.asarray(flow * np.float32(moved / max(motion[end], 1e-6)), np.float32)
                self.keep(a, b, _Motion.of(small[a], small[b], _flow(small[a], small[b], guess)))

    def between(self, keyframe: list[int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """(K, fy, fx, 2) from each to the next, and back."""
        there, back = (np.full((len(keyframe), *self._size[::-1], 2), np.nan, np.float16) for _ in range(2))
        for n, pair in enumerate(itertools.pairwise(keyframe)):
            if pair in self._known:
                there[n], back[n] = self._known[pair]
        return there, back


def _lost(a: _Small, b: _Small, motion: _Motion) -> bool:
    """Whether hardly a place flows back even from nothing."""
    return float(returning(a.places, motion.there, _flow(b, a, None), _CLOSING).mean()) < _CUT_CONSISTENT


def _is_cut(frames: FrameSequence, row: int, segment: NDArray[np.int32]) -> bool:
    """Whether a row that has little in common with the one before begins a shot: neither they nor those around show the same place."""
    ahead, behind = min(len(frames) - 1, row + 2), max(0, row - 2)
    if segment[behind] != segment[row]:
        behind = row - 1
    return not _same_place(frames, [(row - 1, row), (behind, ahead), (row - 1, ahead)])


def _same_place(frames: FrameSequence, rows: list[tuple[int, int]]) -> bool:
    """Whether any pair of rows shows the same rigid place: enough SIFT matches that agree on one epipolar geometry."""
    unit, known = tracking.pixel_unit(frames.width, frames.height), dict[int, Features]()
    for first, second in rows:
        missing = [row for row in (first, second) if row not in known]
        known.update(zip(missing, parallel.each(lambda row: tracking.detect(frames.luma(row), _CUT_FEATURES), missing), strict=True))
        a, b = known[first], known[second]
        pairs = tracking.match(a, b)
        if len(pairs) >= _CUT_MATCHES and epipolar.verify(a.uv[pairs[:, 0]], b.uv[pairs[:, 1]], 2.0 * unit).sum() >= _CUT_MATCHES:
            return True
    return False


def _enough(keyframe: list[int], motion: NDArray[np.float32], segment: NDArray[np.int32], config: KeyframesConfig, side: int) -> list[int]:
    """Shorter steps in shots that moved too little for `at_least` keyframes: each interval is divided evenly by its motion."""
    result = set(keyframe)
    for shot in np.unique(segment):
        rows = [k for k in keyframe if segment[k] == shot]
        if len(rows) >= config.at_least:
            continue
        curves = {(a, b): np.maximum.accumulate(motion[a + 1 : b + 1]) for a, b in itertools.pairwise(rows) if b > a + 1}
        step = max(sum(float(c[-1]) for c in curves.values()) / (config.at_least - 1), config.min_motion * side)
        for (a, _), curve in curves.items():
            parts = round(float(curve[-1]) / step)
            result.update(a + 1 + int(np.searchsorted(curve, i / parts * curve[-1])) for i in range(1, parts))
    return sorted(result)


@our_threads()
def select(frames: FrameSequence, config: KeyframesConfig, progress: Callable[[int], None] | None = None) -> Keyframes:
    """Choose keyframes and cut the video into shots.

    frames: T >= 2 rows. Every shot's first and last row is a keyframe, so that each other frame lies between two.
    Motion is in pixels of the frames handed in. Never raises for degenerate video; flags `static`, `segments`, `low_texture`, `short`.
    """
    total = len(frames)
    scale = max(1.0, max(frames.width, frames.height) / config.side)
    limit = config.motion * max(frames.width, frames.height)
    motion, sharpness = np.zeros(total, np.float32), np.zeros(total, np.float32)
    segment = np.zeros(total, np.int32)
    keyframe = [0]
    texture_share = []
    shrunk = _all_shrunk(frames, config.side)
    anchor = last = next(shrunk)
    sharpness[0] = last.sharpness
    static_limit = _STATIC_PX * max(frames.width, frames.height) / 640.0
    following = next(shrunk)
    flows, flow = _Flows(), None
    followed = _Followed(frames)
    found: _Motion | None = None
    begun, reach = 0, total

    def expect_next(flow: Flow) -> None:
        """The flow to the next frame, if there is one: from this one if it is so far that it becomes a keyframe."""
        if following is current:
            return
        if scale * float(np.median(lengths(anchor.places, flow))) > limit:
            flows.expect(current, following, None)
        else:
            flows.expect(anchor, following, flow)

    for row in range(1, total):
        current, following = following, next(shrunk, following)
        sharpness[row] = current.sharpness
        texture_share.append(current.textured)
        segment[row] = segment[row - 1]
        flow = flows.between(anchor, current, flow)
        if row - begun < reach:
            expect_next(flow)
        else:  # the last time this far from a keyframe was too far
            flows.expect(last, current, None)
        before, found = found, _Motion.of(anchor, current, flow)
        if found.share < config.consistent and before is not None and anchor is not last:
            # Too far from the last keyframe: the previous frame becomes one, and motion is measured from there.
            if keyframe[-1] != row - 1:
                keyframe.append(row - 1)
            followed.keep(begun, row - 1, before)
            anchor, begun, reach = last, row - 1, row - begun
            flow = flows.between(anchor, current, None)
            expect_next(flow)
            found = _Motion.of(anchor, current, flow)
        else:
            reach = max(reach, row - begun + 1)
        if found.share < _CUT_SEEDED and _lost(anchor, current, found) and _is_cut(frames, row, segment):
            if keyframe[-1] != row - 1:
                keyframe.append(row - 1)
            segment[row] += 1
            chosen = True
        else:
            motion[row] = found.length * scale
            chosen = found.length * scale > limit or found.share < config.consistent
            if chosen or row == total - 1:
                followed.keep(begun, row, found)
        if chosen:
            keyframe.append(row)
            anchor, begun, flow = current, row, None
        last = current
        if progress:
            progress(row)
    if keyframe[-1] != total - 1:
        keyframe.append(total - 1)
    whole, keyframe = keyframe, _enough(keyframe, motion, segment, config, max(frames.width, frames.height))
    followed.divide(frames, whole, keyframe, motion, config.side)
    flags = []
    if float(np.max(motion)) < max(static_limit, 1e-9) and segment[-1] == 0:
        flags.append("static")
    if segment[-1] > 0:
        flags.append("segments")
    if np.median(texture_share) < 0.02:
        flags.append("low_texture")
    if total < 8:
        flags.append("short")
    return Keyframes(np.array(keyframe, np.int64), motion, segment, sharpness, *followed.between(keyframe), tuple(flags))
