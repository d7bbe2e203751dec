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
from vipe_kernels.parallel import our_threads

Flow = NDArray[np.float32]

_STATIC_PX = 0.5
"""A clip whose median motion never exceeds this, in pixels of a 640-pixel picture, does not move."""
_PLACES = 4000
_BLOCK = 16
"""Frames made ready at a time."""
_REFINEMENTS = 2
"""Of dense flow: more change the motion by less than one part in a hundred, and the consistent share by one to three."""
_CUT_CONSISTENT = 0.10
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


def _motion(a: _Small, b: _Small, forward: Flow) -> tuple[float, float]:
    """Median length of the flow a -> b over the places of a, and the share of those that flow back to where they came from."""
    backward = _flow(b, a, -forward)
    flow = forward[a.places[:, 1], a.places[:, 0]]
    uv = a.places.astype(np.float32)
    there = uv + flow
    closing = there + tracking.sample(backward, there) - uv
    inside = (there >= 0).all(1) & (there[:, 0] < b.image.shape[1]) & (there[:, 1] < b.image.shape[0])
    good = inside & (np.linalg.norm(closing, axis=1) < 1.0)
    moved = np.linalg.norm(flow, axis=1)
    return float(np.median(moved[good] if good.sum() > 20 else moved)), float(good.mean())


def _same_place(frames: FrameSequence, rows: list[tuple[int, int]]) -> bool:
    """Whether any pair of rows shows the same rigid place: enough SIFT matches that agree on one epipolar geometry."""
    unit = tracking.pixel_unit(frames.width, frames.height)
    for first, second in rows:
        a, b = (tracking.detect(frames.luma(row), 1000) for row in (first, second))
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
    onward: Callable[[], Flow] = partial(_flow, anchor, following, None)
    for row in range(1, total):
        current, following = following, next(shrunk, following)
        sharpness[row] = current.sharpness
        texture_share.append(current.textured)
        segment[row] = segment[row - 1]
        flow = onward()
        # most frames are no keyframes: while this one is judged, another thread looks how the next has moved from the same
        if row + 1 < total:
            onward = parallel.later(partial(_flow, anchor, following, flow))
        moved, share = _motion(anchor, current, flow)
        if share < config.consistent and anchor is not last:
            # Too far from the last keyframe: the previous frame becomes one, and motion is measured from there.
            if keyframe[-1] != row - 1:
                keyframe.append(row - 1)
            anchor = last
            flow = _flow(anchor, current, None)
            onward = partial(_flow, anchor, following, flow)
            moved, share = _motion(anchor, current, flow)
        if share < _CUT_CONSISTENT:
            ahead = min(total - 1, row + 2)
            behind = max(0, row - 2)
            if segment[behind] != segment[row]:
                behind = row - 1
            if not _same_place(frames, [(row - 1, row), (behind, ahead), (row - 1, ahead)]):
                if keyframe[-1] != row - 1:
                    keyframe.append(row - 1)
                segment[row] += 1
                keyframe.append(row)
                anchor, onward = current, partial(_flow, current, following, None)
                last = current
                if progress:
                    progress(row)
                continue
        motion[row] = moved * scale
        if moved * scale > limit or share < config.consistent:
            keyframe.append(row)
            anchor, onward = current, partial(_flow, current, following, None)
        last = current
        if progress:
            progress(row)
    if keyframe[-1] != total - 1:
        keyframe.append(total - 1)
    keyframe = _enough(keyframe, motion, segment, config, max(frames.width, frames.height))
    flags = []
    if float(np.max(motion)) < max(static_limit, 1e-9) and segment[-1] == 0:
        flags.append("static")
    if segment[-1] > 0:
        flags.append("segments")
    if np.median(texture_share) < 0.02:
        flags.append("low_texture")
    if total < 8:
        flags.append("short")
    return Keyframes(np.array(keyframe, np.int64), motion, segment, sharpness, tuple(flags))
