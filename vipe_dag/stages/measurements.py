"""Correspondences between keyframes: where they come from and how much each is trusted.

One representation serves dense flow and sparse matches alike: a keyframe owns P points (corners on a grid, then SIFT keypoints) and an edge
i -> j holds, for each point of i, its pixel in j and a weight. Pixels are read on demand and kept in a small cache, so memory holds
keypoints and edges, never the clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.finds import Cache, Finds
from vipe_kernels import epipolar, parallel, tracking
from vipe_kernels.following import Pyramid
from vipe_kernels.tracking import Features

Array = NDArray[np.float32]

_FLOW_SIGMA = 0.5
"""Forward-backward error, in units of a 640-pixel picture, at which a followed point loses most of its weight."""
_CONTRADICTION = 4.0
"""Distance between flow and a verified match, in pixels of a 640-pixel picture, at which flow is taken to be wrong there."""
_MOVES, _STANDS = 3.0, 0.3
"""Motion expected of a point and less than which it has, in pixels of a 640-pixel picture, where it is said to stand."""
_FIT = 40
"""Points that move from which is told what is to be expected of others."""
_TOGETHER = 16
"""Keyframes whose features are found before the next progress is told."""
_CHECKS = 32
"""Of comparisons of flow with matches that are kept: as each pair is gone along in several paths."""
_MATCH_WEIGHT = 0.25
"""A SIFT keypoint is located about half as well as a refined corner: a quarter of the weight."""


def stands(uv: Array, moved: Array, seen: NDArray[np.bool_], unit: float) -> NDArray[np.bool_]:
    """Which points stay where they are in the picture although what moves would have taken them along: they belong to the picture, as a
    caption, a frame or a bonnet does, and not to the world.

    uv, moved (P, 2) px, seen (P,). How motion changes over the picture is fitted by a parabola in each coordinate, so that what is ahead
    of a camera that drives, or in the middle of what it turns about, may stand.
    """
    still = seen & (np.linalg.norm(moved, axis=1) < _STANDS * unit)
    moving = seen & ~still
    if not still.any() or moving.sum() < _FIT:
        return np.zeros(len(moved), bool)
    x, y = (uv / (100.0 * unit)).T
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1)
    expected = terms[still] @ np.linalg.lstsq(terms[moving], moved[moving], rcond=None)[0]
    still[still] = np.linalg.norm(expected, axis=1) > _MOVES * unit
    return still


@dataclass(frozen=True)
class KeyframePoints:
    """Points of one keyframe: uv (P, 2) float32 pixels, grid corners (row-major) first, then SIFT keypoints; sigma (P,) float32 px."""

    row: int
    uv: Array
    sigma: Array


@dataclass(frozen=True)
class Edge:
    """Points of keyframe `source` seen in keyframe `destination`: index (S,) int32 which; target (S, 2) float32 px; weight (S,) float32
    > 0; kept: share of grid points followed."""

    source: int
    destination: int
    index: NDArray[np.int32]
    target: Array
    weight: Array
    kept: float

    @classmethod
    def of(cls, source: int, destination: int, target: Array, weight: Array, kept: float) -> Edge:
        """From a target (P, 2) and a weight (P,) for every point, 0 where it was not seen."""
        index = np.flatnonzero(weight > 0).astype(np.int32)
        return cls(source, destination, index, target[index], weight[index], kept)


class Measurements:
    """Keyframes and the edges between them. `grid_columns` corners along the long side; `match_count` SIFT keypoints a keyframe; followed:
    what is known of flow from a row to another (fy, fx, 2) px; finds: of stages before, to go on from."""

    def __init__(
        self,
        frames: FrameSequence,
        grid_columns: int,
        match_count: int,
        followed: Mapping[tuple[int, int], NDArray[np.float16]] | None = None,
        finds: Finds | None = None,
    ) -> None:
        self.finds = Finds() if finds is None else finds
        self.frames = self.finds.reading(frames)
        self.grid_columns = grid_columns
        self.match_count = match_count
        self.unit = tracking.pixel_unit(frames.width, frames.height)
        self.keyframes: list[KeyframePoints] = []
        self.features: list[Features] = []
        self.grid_shape = (0, 0)
        self._followed = followed or {}
        self._checks = Cache(_CHECKS)

    def add(self, rows: Sequence[int], progress: Callable[[], None] | None = None) -> list[int]:
        """Make rows keyframes; returns their indices."""
        first = len(self.keyframes)
        for start in range(0, len(rows), _TOGETHER):
            for points, features in parallel.each(self._points, rows[start : start + _TOGETHER]):
                self.keyframes.append(points)
                self.features.append(features)
                if progress:
                    progress()
        return list(range(first, len(self.keyframes)))

    def let_go(self) -> None:
        """Give up features, half of what a keyframe holds, and pictures if there are many: from here on no pair is matched."""
        self.features.clear()
        self.finds.let_go()
        self._checks.clear()

    def _points(self, row: int) -> tuple[KeyframePoints, Features]:
        corners = self.finds.get(
            ("corners", row, self.grid_columns), lambda: tracking.grid_corners(self.frames.luma(row), self.grid_columns)
        )
        features = self.finds.get(("features", row, self.match_count), lambda: tracking.detect(self.frames.luma(row), self.match_count))
        uv, sigma = corners
        self.grid_shape = (uv.shape[0], uv.shape[1])
        padding = np.zeros((self.match_count - len(features.uv), 2), np.float32)
        points = np.concatenate([uv.reshape(-1, 2), features.uv, padding])
        spread = np.concatenate([sigma.ravel(), np.full(self.match_count, 0.5 * self.unit, np.float32)])
        return KeyframePoints(row, points, spread), features

    @property
    def grid_count(self) -> int:
        return self.grid_shape[0] * self.grid_shape[1]

    def tracker(self, row: int) -> Pyramid:
        return self.finds.pyramids.get(row, lambda: tracking.prepared(self.frames.luma(row)))

    def dense(self, source_row: int, destination_row: int) -> Array:
        """Dense flow between two rows over cells of the picture, (h, w, 2) px: as it was followed, else looked for at half resolution."""

        def make() -> Array:
            size = (self.frames.width // 2, self.frames.height // 2)
            a, b = (cv2.resize(self.frames.luma(row), size, interpolation=cv2.INTER_AREA) for row in (source_row, destination_row))
            flow = tracking.dense_seed(np.asarray(a, np.uint8), np.asarray(b, np.uint8))
            return flow * self._cell(flow)

        rows = source_row, destination_row
        return self._followed[rows].astype(np.float32) if rows in self._followed else self.finds.flows.get(rows, make)

    def _cell(self, flow: Array) -> Array:
        """Width and height (2,) px of the cells of a flow (h, w, 2)."""
        return np.array([self.frames.width / flow.shape[1], self.frames.height / flow.shape[0]], np.float32)

    def carry(self, uv: Array, source_row: int, destination_row: int) -> Array:
        """Where dense flow takes pixels of one row in another: (N, 2) float32."""
        flow = self.dense(source_row, destination_row)
        place = (uv + 0.5) / self._cell(flow) - 0.5
        return (uv + tracking.sample(flow, place.astype(np.float32))).astype(np.float32)

    def chain(self, path: Sequence[int]) -> Array:
        """A guess of where the grid corners of the first keyframe of a path are in the last, from one to the next: (G, 2)."""
        uv = self.keyframes[path[0]].uv[: self.grid_count]
        for a, b in itertools.pairwise(path):
            uv = self._step(uv, a, b)
        return uv

    def _step(self, uv: Array, source: int, destination: int) -> Array:
        """Where pixels of a keyframe are in another: as dense flow says or, where the verified match next to them contradicts it, as that
        moved. Flow loses what passes close by, and comes back from there to where it set out. Flow that was followed through the frames
        between is believed: a place that only looks alike is matched as well, and there it tells the two apart."""
        rows = self.keyframes[source].row, self.keyframes[destination].row
        guess = self.carry(uv, *rows)
        if rows in self._followed:
            return guess
        known = self._checks.get((source, destination), lambda: self._check(source, destination))
        if known is None:
            return guess
        places, moved, missed = known
        nearest = places.query(uv)[1]
        return np.where(missed[nearest, None], uv + moved[nearest], guess).astype(np.float32)

    def _check(self, source: int, destination: int) -> tuple[cKDTree, Array, NDArray[np.bool_]] | None:
        """Where the verified matches of a pair are (M,), how they moved (M, 2) and which of them flow misses (M,); None: it misses none."""
        pairs = self.matches(source, destination)
        here, there = self.features[source].uv[pairs[:, 0]], self.features[destination].uv[pairs[:, 1]]
        carried = self.carry(here, self.keyframes[source].row, self.keyframes[destination].row)
        missed = np.linalg.norm(carried - there, axis=1) > _CONTRADICTION * self.unit
        return (cKDTree(here), there - here, missed) if missed.any() else None

    def follow(self, source: int, row: int, guess: Array, level: int = 1, which: NDArray[np.intp] | None = None) -> tuple[Array, Array]:
        """Grid corners of a keyframe refined in any row from a guess (G, 2): target (G, 2), weight (G,). which (G,): these, not all."""
        points = self.keyframes[source]
        chosen = np.arange(self.grid_count) if which is None else which
        found, error = tracking.follow(self.tracker(points.row), self.tracker(row), points.uv[chosen], guess, level)
        trust = np.exp(-np.square(error / (_FLOW_SIGMA * self.unit)))
        sigma = points.sigma[chosen] / (0.3 * self.unit)
        return found, np.where(error < 2 * _FLOW_SIGMA * self.unit, trust / (1.0 + sigma * sigma), 0.0).astype(np.float32)

    def along(self, path: Sequence[int]) -> Edge:
        """The edge from the first keyframe of a path to the last, with corners followed from one to the next."""
        source, destination = path[0], path[-1]
        rows = tuple(self.keyframes[k].row for k in path)
        found = self.finds.get(
            ("edge", self.grid_columns, self.match_count, *rows), lambda: self.edge(source, destination, self.chain(path))
        )
        return replace(found, source=source, destination=destination)

    def edge(self, source: int, destination: int, guess: Array) -> Edge:
        """Measure one edge: grid corners by flow from a guess (G, 2), SIFT keypoints by matching."""
        a, b = self.keyframes[source], self.keyframes[destination]
        count = self.grid_count
        target, weight = self._matched(source, destination)
        target[:count], weight[:count] = self.follow(source, b.row, guess)
        usable = a.sigma[:count] < 1.0 * self.unit
        kept = float((weight[:count] > 0.05)[usable].mean()) if usable.any() else 0.0
        # A wide step leaves few corners, and consistency alone does not make those right: what remains counts for less.
        weight[:count] *= min(1.0, kept / 0.3)
        weight[stands(a.uv, target - a.uv, weight > 0, self.unit)] = 0.0
        return Edge.of(source, destination, target, weight, kept)

    def matched_edge(self, source: int, destination: int) -> Edge:
        """An edge of SIFT matches alone, between keyframes too far apart to follow corners."""
        return Edge.of(source, destination, *self._matched(source, destination), 0.0)

    def _matched(self, source: int, destination: int) -> tuple[Array, Array]:
        """Target (P, 2) and weight (P,) of all points of a keyframe: those of its SIFT matches, 0 elsewhere."""
        uv = self.keyframes[source].uv
        target, weight = uv.copy(), np.zeros(len(uv), np.float32)
        pairs = self.matches(source, destination)
        tail = self.grid_count + pairs[:, 0]
        target[tail], weight[tail] = self.features[destination].uv[pairs[:, 1]], _MATCH_WEIGHT
        return target, weight

    def matches(self, source: int, destination: int, at_least: int = 15) -> NDArray[np.int16]:
        """Geometrically verified SIFT matches between two keyframes: (M, 2) indices, empty when fewer than `at_least` agree."""
        if source > destination:
            return self.matches(destination, source, at_least)[:, ::-1]
        key = ("matches", self.match_count, at_least, self.keyframes[source].row, self.keyframes[destination].row)
        return self.finds.get(key, lambda: self._match(source, destination, at_least))

    def _match(self, source: int, destination: int, at_least: int) -> NDArray[np.int16]:
        a, b = self.features[source], self.features[destination]
        pairs = tracking.match(a, b)
        if len(pairs) >= at_least:
            pairs = pairs[epipolar.verify(a.uv[pairs[:, 0]], b.uv[pairs[:, 1]], 1.5 * self.unit)]
        return (pairs if len(pairs) >= at_least else pairs[:0]).astype(np.int16)
