"""A growing map of keyframes: edges, cameras and inverse depths, and the moves that extend and refine it.

World frame: the camera of the first keyframe of the map; scale: the median inverse depth of that keyframe was 1 when the map began.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from vipe_dag.config import CameraPriors
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.finds import Cache
from vipe_dag.stages.measurements import Edge, Measurements
from vipe_kernels import bundle, cameras, clustered, fused, parallel
from vipe_kernels.bundle import Edges, Intrinsic, Problem, Report, Schedule, State
from vipe_kernels.resection import Resection, resect
from vipe_kernels.tracking import spread
from vipe_kernels.turning import align_rays

Float = NDArray[np.float64]

_CORRELATION = 4.0
_ALIKE, _GROUPS = 4, 12
"""Keyframes in a row whose errors count as one, a keyframe and those that it is measured against; and the fewest such runs wanted."""
_HIGHER = 5.0
"""How much wider the prior of k3 is than that of k1 and k2: lenses in which they take turns bend one way, then the other."""
_CELLS = 3
"""Parts of the longer side of a picture that a surface is taken to fill."""
_CACHED_RAYS = 64
"""Keyframes whose rays are kept while the camera stays the same."""
_TOGETHER = 256
"""Edges that are put into tensors at a time."""
_SAMPLE = 100_000
"""Measurements that are enough for a median."""


def assemble(edges: Sequence[Edge], local: dict[int, int], count: int, most: int | None) -> tuple[Edges, list[NDArray[np.intp]]]:
    """Edges between keyframes listed in `local` (keyframe -> position, ascending) as tensors, and the points of each keyframe (ascending)
    that are their columns: those seen, at most so many. count: of all points that a keyframe has."""
    chosen = sorted(edges, key=lambda e: e.source)
    source = np.array([local[e.source] for e in chosen], np.int64)
    lots = [slice(first, first + _TOGETHER) for first in range(0, len(chosen), _TOGETHER)]
    seen = np.zeros((len(local), count), bool)
    for lot in lots:
        fused.mark(source[lot], *_listed([e.index for e in chosen[lot]]), seen)
    points = [spread(np.flatnonzero(row), most or count) for row in seen]
    width = max(1, max(len(index) for index in points))
    column = np.full((len(local), count), -1, np.int32)
    for known, index in zip(column, points, strict=True):
        known[index] = np.arange(len(index))
    target, weight = np.zeros((len(chosen), width, 2), np.float32), np.zeros((len(chosen), width), np.float32)
    for lot in lots:
        some = chosen[lot]
        values = np.concatenate([e.target for e in some]), np.concatenate([e.weight for e in some])
        fused.place(source[lot], *_listed([e.index for e in some]), column, *values, target[lot], weight[lot])
    destination = np.array([local[e.destination] for e in chosen], np.int64)
    return Edges(*(torch.from_numpy(x) for x in (source, destination, target, weight))), points


def _listed(arrays: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where each of them begins in all of them one after the other (n + 1,), and these."""
    return np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64), np.concatenate(arrays)


@dataclass(frozen=True)
class Part:
    """Some keyframes of a map as a problem: keys, ascending, and which points of each (`points`, ascending) its columns are."""

    problem: Problem
    state: State
    keys: list[int]
    points: list[NDArray[np.intp]]


class Map:
    """Cameras (world-to-camera) and inverse depths of the keyframes of one Measurements, in its order. Unposed keyframes hold NaN."""

    def __init__(self, measurements: Measurements, model: str, params: Float) -> None:
        self.m = measurements
        self.model = model
        self.params = params.copy()
        self.edges: dict[tuple[int, int], Edge] = {}
        self.rotation: dict[int, Float] = {}
        self.translation: dict[int, Float] = {}
        self.inverse_depth: dict[int, Float] = {}
        self.steps = 0
        self._rays = Cache(_CACHED_RAYS)

    def trial(self, model: str, params: Float) -> Map:
        """Another map of the same measurements, in which nothing is placed."""
        other = Map(self.m, model, params)
        other.edges = self.edges
        return other

    # -- measurements ------------------------------------------------------------------------------------------------------------------

    def connect(self, pairs: Iterable[tuple[int, int]], through: Sequence[int] = ()) -> None:
        """Measure ordered pairs (source, destination) of keyframes, each once, many at a time."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self.edges]
        together: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for a, b in missing:
            together.setdefault((min(a, b), max(a, b)), []).append((a, b))
        measured = parallel.each(lambda group: [self._measure(*pair, through) for pair in group], together.values())
        found = {(edge.source, edge.destination): edge for group in measured for edge in group}
        self.edges.update((pair, found[pair]) for pair in missing)

    def _measure(self, source: int, destination: int, through: Sequence[int]) -> Edge:
        """From where the map says the points are if both ends are posed, else along the keyframes of `through` between."""
        guess = self.predict(source, destination)
        if guess is None:
            ends = [list(through).index(k) for k in (source, destination)] if source in through and destination in through else None
            step = 0 if ends is None else (1 if ends[1] > ends[0] else -1)
            return self.m.along([source, destination] if ends is None else [through[i] for i in range(ends[0], ends[1] + step, step)])
        return self.m.edge(source, destination, guess)

    def predict(self, source: int, destination: int) -> NDArray[np.float32] | None:
        """Where the grid corners of a posed keyframe appear in another posed keyframe, (G, 2) float32."""
        if source not in self.rotation or destination not in self.rotation:
            return None
        return self.predict_pose(source, self.rotation[destination], self.translation[destination], slice(self.m.grid_count)).astype(
            np.float32
        )

    def predict_pose(self, source: int, rotation: Float, translation: Float, which: NDArray[np.integer] | slice = slice(None)) -> Float:
        """Pixels of the points (P, 2) of a posed keyframe, or some of them, in a camera at (rotation, translation), world-to-camera."""
        r = rotation @ self.rotation[source].T
        t = translation - r @ self.translation[source]
        points = self.rays(source)[which] @ r.T + t * self.inverse_depth[source][which, None]
        return cameras.project(torch.from_numpy(points), torch.from_numpy(self.params), self.model).numpy()

    def rays(self, k: int) -> Float:
        """Rays (P, 3), z = 1, of the points of a keyframe, read-only."""

        def make() -> Float:
            uv = torch.from_numpy(self.m.keyframes[k].uv.astype(np.float64))
            rays = cameras.unproject(uv, torch.from_numpy(self.params), self.model).numpy()
            rays.setflags(write=False)
            return rays

        return self._rays.get((k, self.model, self.params.tobytes()), make)

    # -- start and growth --------------------------------------------------------------------------------------------------------------

    def place(self, k: int, rotation: Float, translation: Float, inverse_depth: Float) -> None:
        self.rotation[k], self.translation[k], self.inverse_depth[k] = rotation, translation, inverse_depth

    def centre(self, k: int) -> Float:
        """Where the camera of a posed keyframe is in the world (3,)."""
        return np.asarray(-self.rotation[k].T @ self.translation[k], np.float64)

    def forget(self, k: int) -> None:
        """Take back the camera of a keyframe."""
        for values in (self.rotation, self.translation, self.inverse_depth):
            values.pop(k, None)

    def detach(self, k: int) -> None:
        """Take back the camera of a keyframe and all that was measured of it."""
        self.forget(k)
        self.edges = {key: edge for key, edge in self.edges.items() if k not in key}

    def anchor(self, keys: Sequence[int]) -> None:
        """Move a connected part of the map so that its first keyframe is at identity."""
        rotation, translation = self.rotation[keys[0]], self.translation[keys[0]]
        for k in keys:
            turned = self.rotation[k] @ rotation.T
            self.place(k, turned, self.translation[k] - turned @ translation, self.inverse_depth[k])

    def snapshot(self) -> tuple[Float, dict[int, tuple[Float, Float, Float]]]:
        """Camera parameters and placed keyframes as they are now."""
        return self.params.copy(), {k: (self.rotation[k], self.translation[k], self.inverse_depth[k]) for k in self.rotation}

    def restore(self, snapshot: tuple[Float, dict[int, tuple[Float, Float, Float]]]) -> None:
        """Go back to a snapshot."""
        params, placed = snapshot
        self.params = params.copy()
        for k, values in placed.items():
            self.place(k, *values)

    def relative_rotation(self, source: int, destination: int) -> Float:
        """Rotation that best explains the measurements of one edge without translation."""
        edge = self.edges[(source, destination)]
        if len(edge.index) < 3:
            return np.eye(3)
        target = torch.from_numpy(edge.target.astype(np.float64))
        a, b = self.rays(source)[edge.index], cameras.unproject(target, torch.from_numpy(self.params), self.model).numpy()
        unit_a, unit_b = (rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (a, b))
        return align_rays(unit_a, unit_b, edge.weight.astype(np.float64))

    def rotation_residual(self, source: int, destination: int) -> float:
        """Weighted median distance in pixels between the measurements of an edge and the best rotation-only explanation."""
        edge = self.edges[(source, destination)]
        if len(edge.index) < 3:
            return 0.0
        turned = tensor(self.rays(source)[edge.index] @ self.relative_rotation(source, destination).T)
        uv = cameras.project(turned, tensor(self.params), self.model).numpy()
        distance = np.linalg.norm(uv - edge.target, axis=1)
        order = np.argsort(distance)
        total = np.cumsum(edge.weight[order])
        return float(distance[order][np.searchsorted(total, 0.5 * total[-1])])

    def extend(self, k: int, neighbours: Iterable[int], search_below: float = 0.0) -> Resection | None:
        """Pose keyframe k from posed neighbours whose points it sees; give its points the depths of what it sees of
        them. None: not enough seen. search_below: see `resect`."""
        sources = [s for s in neighbours if s in self.rotation and (s, k) in self.edges]
        if not sources:
            return None
        points, targets, weights = self._seen(sources, k)
        nearest = min(sources, key=lambda s: abs(s - k))
        starts = [(self.rotation[nearest], self.translation[nearest])]
        turn = self.relative_rotation(nearest, k)
        starts.append((turn @ self.rotation[nearest], turn @ self.translation[nearest]))
        found = resect(points, targets, weights, self.model, self.params, starts, self.m.unit, search_below)
        if found is None:
            return None
        self.place(k, found.rotation, found.translation, self._borrow_depth(k, sources, found.rotation, found.translation))
        return found

    def _seen(self, sources: Sequence[int], k: int) -> tuple[Float, Float, Float]:
        """Homogeneous world points (N, 4) of posed keyframes with their pixels (N, 2) and weights (N,) in keyframe k."""
        points, targets, weights = [], [], []
        for s in sources:
            edge = self.edges[(s, k)]
            points.append(self.world_points(s, edge.index))
            targets.append(edge.target)
            weights.append(edge.weight)
        return np.concatenate(points), np.concatenate(targets).astype(np.float64), np.concatenate(weights).astype(np.float64)

    def world_points(self, k: int, which: NDArray[np.integer] | slice = slice(None)) -> Float:
        """Homogeneous world points (P, 4) of a posed keyframe, or some of them: [x y z w] with w = inverse depth."""
        depth = self.inverse_depth[k][which]
        rotated = (self.rays(k)[which] - self.translation[k] * depth[:, None]) @ self.rotation[k]
        return np.concatenate([rotated, depth[:, None]], 1)

    def _borrow_depth(self, k: int, sources: Sequence[int], rotation: Float, translation: Float) -> Float:
        """Inverse depth for the points of k: that of the nearest point of the sources seen from k."""
        uvs, depths = [], []
        for s in sources:
            edge = self.edges[(s, k)]
            seen = edge.weight > 0.05
            points = self.world_points(s, edge.index[seen])
            z = points[:, :3] @ rotation[2] + translation[2] * points[:, 3]
            good = z > 1e-6
            uvs.append(edge.target[seen][good])
            depths.append(points[good, 3] / z[good])
        uv, depth = np.concatenate(uvs), np.concatenate(depths)
        if len(depth) < 3:
            return np.ones(len(self.m.keyframes[k].uv))
        count = min(5, len(depth))
        _, index = cKDTree(uv).query(self.m.keyframes[k].uv, k=count)
        return np.clip(np.median(depth[index.reshape(len(index), -1)], axis=1), 1e-3, 1e3)

    # -- refinement --------------------------------------------------------------------------------------------------------------------

    def part(
        self,
        free: Sequence[int],
        fixed: Sequence[int],
        intrinsics: tuple[Intrinsic, ...] = (),
        rotation_only: bool = False,
        most: int | None = None,
    ) -> Part:
        """Tensors of the part of the map made of `free` and `fixed` keyframes, with at most so many of the points seen in it of each."""
        keys = sorted({*free, *fixed})
        local = {k: i for i, k in enumerate(keys)}
        edges = [e for e in self.edges.values() if e.source in local and e.destination in local]
        measured, points = assemble(edges, local, len(self.m.keyframes[0].uv), most)
        width = measured.weight.shape[1]
        padded = np.zeros((len(keys), width), np.int64)
        for row, index in enumerate(points):
            padded[row, : len(index)] = index
        state = State(
            torch.from_numpy(np.stack([self.rotation[k] for k in keys])),
            torch.from_numpy(np.stack([self.translation[k] for k in keys])),
            torch.from_numpy(np.stack([self.inverse_depth[k][index] for k, index in zip(keys, padded, strict=True)])),
            torch.from_numpy(self.params),
        )
        uv = np.stack([self.m.keyframes[k].uv[index] for k, index in zip(keys, padded, strict=True)]).astype(np.float64)
        is_free = torch.tensor([k in set(free) for k in keys])
        depth_free = torch.full((len(keys),), not rotation_only)
        problem = Problem(self.model, torch.from_numpy(uv), measured, is_free, depth_free, intrinsics, rotation_only)
        return Part(problem, state, keys, points)

    def adjust(
        self,
        free: Sequence[int],
        fixed: Sequence[int],
        schedule: Schedule,
        intrinsics: tuple[Intrinsic, ...] = (),
        rotation_only: bool = False,
        most: int | None = None,
    ) -> Report:
        """Bundle-adjust part of the map in place; with `most`, points that are left out stay where they were."""
        part = self.part(free, fixed, intrinsics, rotation_only, most)
        if not len(part.problem.edges.source):
            return Report(cost=0.0)
        state, report = bundle.solve(part.problem, part.state, schedule)
        self.params = state.params.numpy().copy()
        for i, (k, index) in enumerate(zip(part.keys, part.points, strict=True)):
            depth = self.inverse_depth[k].copy()
            depth[index] = state.inverse_depth[i, : len(index)].numpy()
            self.place(k, state.rotation[i].numpy(), state.translation[i].numpy(), depth)
        self.steps += report.steps
        return report

    def rescale(self, keys: Sequence[int]) -> None:
        """Give a connected part of the map the scale in which its median inverse depth is 1."""
        measured = {k: np.zeros(len(self.m.keyframes[k].uv), bool) for k in keys}
        for (source, _), edge in self.edges.items():
            if source in measured:
                measured[source][edge.index] = True
        values = np.concatenate([self.inverse_depth[k][measured[k]] for k in keys])
        factor = float(np.median(values)) if len(values) else 1.0
        for k in keys:
            self.translation[k] = self.translation[k] * factor
            self.inverse_depth[k] = self.inverse_depth[k] / factor


def intrinsic_std(scene: Map, free: Sequence[int], fixed: Sequence[int], intrinsics: tuple[Intrinsic, ...], scale: float) -> Float:
    """Posterior standard deviation (n,) of the free intrinsics of a solved map, for the noise that its residuals show."""
    part = scene.part(free, fixed, intrinsics)
    return bundle.intrinsic_std(part.problem, part.state, scale).numpy() * noise(part.problem, part.state)


@dataclass(frozen=True)
class Evidence:
    """What the measurements of a solved map say of `intrinsics`, moved or not: hessian (n, n) and, by point, scores (N, n) of
    `bundle.scores`; which points share their errors, as those close in time or in one part of the picture do; noise variance."""

    intrinsics: tuple[Intrinsic, ...]
    hessian: Float
    scores: Float
    alike: tuple[NDArray[np.int64], ...]
    variance: float

    @classmethod
    def of(cls, scene: Map, part: Part, intrinsics: tuple[Intrinsic, ...], scale: float) -> Evidence:
        model = "brown" if scene.model == "pinhole" else scene.model
        problem = replace(part.problem, model=model, intrinsics=intrinsics)
        hessian, scores = bundle.scores(problem, part.state, scale)
        when = np.repeat(clustered.runs(len(part.keys), _ALIKE, _GROUPS), problem.uv.shape[1])
        side = max(scene.m.frames.width, scene.m.frames.height)
        cell = (problem.uv.numpy() * _CELLS / side).astype(np.int64).clip(0, _CELLS - 1).reshape(-1, 2)
        where = cell[:, 0] + _CELLS * cell[:, 1]
        variance = residual_scale(problem, part.state) ** 2
        return cls(intrinsics, hessian.numpy(), scores.numpy().reshape(-1, len(intrinsics)), (when, where), variance)

    def std(self) -> Float:
        """Posterior standard deviations (n,) under the priors of the intrinsics."""
        precision = np.array([1.0 / intrinsic.prior_std**2 for intrinsic in self.intrinsics])
        covariance = clustered.posterior_covariance(self.hessian, self.scores, self.alike, self.variance, precision)
        return np.asarray(np.sqrt(covariance.diagonal()), np.float64)

    def gain(self, moved: Sequence[Intrinsic]) -> float:
        """Squared error that moving these of them would save, to first order (the score test; Rao 1948)."""
        which = [self.intrinsics.index(intrinsic) for intrinsic in moved]
        total = self.scores.sum(0)[which]
        return float(total @ np.linalg.lstsq(self.hessian[np.ix_(which, which)], total)[0])


def joined(*lots: Iterable[Intrinsic]) -> tuple[Intrinsic, ...]:
    """Each intrinsic of some lots once, in their order."""
    return tuple(dict.fromkeys(itertools.chain(*lots)))


@dataclass(frozen=True)
class Camera:
    """What may be free of an unknown camera, under its priors. Centre and distortion are empty where they are taken as known; higher: what
    Brown's model has beyond `radial`."""

    focal: Intrinsic
    centre: tuple[Intrinsic, ...]
    radial: tuple[Intrinsic, ...]
    higher: tuple[Intrinsic, ...]

    @classmethod
    def of(cls, frames: FrameSequence, priors: CameraPriors) -> Camera:
        side = max(frames.width, frames.height)
        middle = (("cx", (frames.width - 1) / 2), ("cy", (frames.height - 1) / 2))
        spread, bend = priors.prior_centre_std * side, priors.prior_distortion_std
        return cls(
            Intrinsic("focal", float(np.log(priors.prior_focal * side)), priors.prior_std),
            tuple(Intrinsic(name, mean, spread) for name, mean in middle) if spread else (),
            tuple(Intrinsic(name, 0.0, bend) for name in ("k1", "k2")) if bend else (),
            (Intrinsic("k3", 0.0, _HIGHER * bend),) if bend else (),
        )

    def lens(self) -> tuple[Intrinsic, ...]:
        return (self.focal, *self.radial)

    def everything(self) -> tuple[Intrinsic, ...]:
        return (self.focal, *self.centre, *self.radial)


def residual_scale(problem: Problem, state: State) -> float:
    """Measurement noise in pixels for unit weight, from the weighted median residual."""
    step = max(1, problem.edges.weight.numel() // _SAMPLE)
    residual, weight = bundle.residuals(problem, state).numpy()[::step], problem.edges.weight.numpy()[::step]
    seen = np.isfinite(residual)
    if not seen.any():
        return 1.0
    r, w = residual[seen] * np.sqrt(weight[seen]), weight[seen]
    order = np.argsort(r)
    median = r[order][np.searchsorted(np.cumsum(w[order]), 0.5 * w.sum())]
    return float(median / 1.18)  # the median of a Rayleigh distribution is 1.18 sigma


def noise(problem: Problem, state: State) -> float:
    """`residual_scale`, widened for the correlation between measurements: those of neighbouring points and of both directions of an edge
    are not independent. _CORRELATION is the measured ratio of true to naive spread of positions on synthetic clips."""
    return residual_scale(problem, state) * _CORRELATION


def pixels_schedule(scales: Sequence[float], steps: Sequence[int], unit: float, tolerance: float = 1e-3) -> Schedule:
    """A schedule whose robust scales are given in pixels of a 640-pixel picture."""
    return Schedule(tuple(s * unit for s in scales), tuple(steps), tolerance)


def tensor(array: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
