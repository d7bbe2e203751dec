"""The camera of every frame: motion-only adjustment against the keyframes before and after, many frames at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.mapping import Map
from vipe_kernels import parallel
from vipe_kernels.resection import Resections, resect_batch
from vipe_kernels.tracking import spread

Float = NDArray[np.float64]

_BATCH = 16
_TOGETHER = 64
"""Stretches between keyframes whose frames are posed before the next progress is told; threads divide them."""
_LEVELS = 2
_POINTS = 192
"""Of each keyframe that a frame is posed from: six unknowns need no more, and errors of neighbours are alike."""
_FEWEST = 12
"""Points that have to agree with the camera of a frame: fewer agree with many cameras."""
_WEAK = 0.8
"""Share of weight within 3 px below which a frame is followed again, from dense flow instead of interpolation."""


@dataclass
class FramePoses:
    """World-to-camera of all T frames, filled in as they are found: rotation (T, 3, 3), translation (T, 3),
    residual_px, inliers, std (T,)."""

    rotation: Float
    translation: Float
    residual_px: Float
    inliers: Float
    position_std: Float

    @classmethod
    def empty(cls, total: int) -> FramePoses:
        return cls(np.tile(np.eye(3), (total, 1, 1)), np.zeros((total, 3)), np.full(total, np.nan), np.zeros(total), np.zeros(total))


def interpolate(scene: Map, a: int, b: int, at: Float) -> tuple[Float, Float]:
    """World-to-camera (n, 3, 3), (n, 3) between keyframes a and b at shares `at` (n,) of the way: slerp of rotation,
    straight camera path."""
    turns = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([scene.rotation[a], scene.rotation[b]])))(at).as_matrix()
    ends = [scene.centre(k) for k in (a, b)]
    centre = ends[0] + at[:, None] * (ends[1] - ends[0])
    return turns, -(turns @ centre[..., None])[..., 0]


def pose_between(
    scene: Map, frames: FrameSequence, a: int, b: int, rows: Sequence[int], trust: dict[int, Float], poses: FramePoses, moves: bool
) -> None:
    """Pose `rows`, which lie between keyframes a and b, and where nothing says otherwise on the way between their cameras. trust[k] (G,):
    weight of each grid corner of keyframe k, 0 where it is of no use."""
    times = frames.time
    start, end = scene.m.keyframes[a].row, scene.m.keyframes[b].row
    at = np.array([(times[row] - times[start]) / (times[end] - times[start]) for row in rows])
    rotation, translation = interpolate(scene, a, b, at)
    poses.rotation[rows], poses.translation[rows] = rotation, translation
    poses.position_std[rows] = 0.5 * np.linalg.norm(scene.centre(b) - scene.centre(a)) if moves else 0.0
    for first in range(0, len(rows), _BATCH):
        part = slice(first, min(first + _BATCH, len(rows)))
        found = _resect(scene, (a, b), rows[part], rotation[part], translation[part], trust, dense=False)
        weak = np.nonzero(found.inliers.numpy() < _WEAK)[0]
        _keep(poses, rows[part], found, np.nonzero(found.inliers.numpy())[0], scene.m.unit, moves)
        if len(weak):
            chosen = [rows[part][int(i)] for i in weak]
            again = _resect(scene, (a, b), chosen, rotation[part][weak], translation[part][weak], trust, dense=True)
            better = np.nonzero(again.inliers.numpy() > found.inliers.numpy()[weak])[0]
            _keep(poses, chosen, again, better, scene.m.unit, moves)


def _keep(
    poses: FramePoses, rows: Sequence[int], found: Resections, which: Sequence[int] | NDArray[np.int64], unit: float, moves: bool
) -> None:
    for i in which:
        row = rows[i]
        poses.rotation[row], poses.translation[row] = found.rotation[i].numpy(), found.translation[i].numpy()
        if not moves:
            poses.translation[row] = 0.0
        poses.residual_px[row], poses.inliers[row] = float(found.residual_px[i]), float(found.inliers[i])
        sigma = max(poses.residual_px[row], 0.1 * unit) / 1.18
        poses.position_std[row] = float(found.position_std[i]) * sigma if moves else 0.0


def _resect(
    scene: Map, keyframes: tuple[int, int], rows: Sequence[int], rotation: Float, translation: Float, trust: dict[int, Float], dense: bool
) -> Resections:
    """Follow the corners of both keyframes into each row and solve all rows together; no inliers where fewer than _FEWEST agree."""
    m = scene.m
    chosen = [spread(np.flatnonzero(trust[k] > 0), _POINTS) for k in keyframes]
    bounds = np.cumsum([0, *(len(index) for index in chosen)])
    points = np.concatenate([scene.world_points(k, index) for k, index in zip(keyframes, chosen, strict=True)])
    targets = np.zeros((len(rows), len(points), 2))
    weights = np.zeros((len(rows), len(points)))

    for i, row in enumerate(rows):
        for side, (k, index) in enumerate(zip(keyframes, chosen, strict=True)):
            part = slice(bounds[side], bounds[side + 1])
            if dense:
                guess = m.carry(m.keyframes[k].uv[index], m.keyframes[k].row, row)
            else:
                guess = scene.predict_pose(k, rotation[i], translation[i], index).astype(np.float32)
            targets[i, part], weight = m.follow(k, row, guess, level=_LEVELS, which=index)
            weights[i, part] = weight * trust[k][index]
    found = resect_batch(
        torch.from_numpy(points).expand(len(rows), -1, -1),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        scene.model,
        torch.from_numpy(scene.params),
        torch.from_numpy(rotation),
        torch.from_numpy(translation),
        m.unit,
        scales=(8.0, 3.0, 1.5, 1.0),
        steps=2,
    )
    return replace(found, inliers=torch.where(found.agreeing >= _FEWEST, found.inliers, 0.0))


def pose_frames(
    scene: Map,
    frames: FrameSequence,
    shot: NDArray[np.int32],
    world: NDArray[np.int32],
    parallax: Sequence[bool],
    trust: dict[int, Float],
    poses: FramePoses,
    progress: Callable[[str, float], None],
) -> None:
    """Pose every frame that is not a keyframe. shot, world (K,): of each keyframe; parallax: of each world.

    Keyframe rows of `poses` are filled by the caller. Frames between keyframes of two worlds keep the camera of the one before, untracked.
    """
    stretches = []
    for a, b in itertools.pairwise(range(len(world))):
        rows = list(range(scene.m.keyframes[a].row + 1, scene.m.keyframes[b].row))
        if rows and shot[a] == shot[b]:
            stretches.append((a, b, rows))

    def pose(stretch: tuple[int, int, list[int]]) -> None:
        a, b, rows = stretch
        if world[a] == world[b]:
            pose_between(scene, frames, a, b, rows, trust, poses, parallax[world[a]])
        else:
            poses.rotation[rows], poses.translation[rows] = scene.rotation[a], scene.translation[a]

    for first in range(0, len(stretches), _TOGETHER):
        some = stretches[first : first + _TOGETHER]
        parallel.each(pose, some)
        progress("frames", scene.m.keyframes[some[-1][1]].row / len(frames))
