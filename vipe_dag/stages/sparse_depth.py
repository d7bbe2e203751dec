"""The sparse inverse depths of the keyframes, seen from any row: what both depth stages lean on."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vipe_dag.results import BaPoses
from vipe_kernels.cameras import in_view, project, unproject
from vipe_kernels.completion import spread
from vipe_kernels.parallel import single_threaded_opencv

F32 = NDArray[np.float32]

GRID = 4
"""The prior is computed on cells of GRID x GRID pixels."""

_REACH = 8.0  # cells over which a point is spread
_EDGE = 8.0  # grey levels that bound it
_OUTLIER = 0.15  # relative deviation of inverse depth from the surrounding surface at which a point loses three quarters of its weight


class SparseDepth:
    """Points of the bundle adjustment, moved into single rows. Keeps a few keyframes' points in memory, whatever the length."""

    def __init__(self, poses: BaPoses, height: int, width: int) -> None:
        self._poses = poses
        self._height, self._width = height, width
        self._params = torch.tensor(poses.params)
        self._rows = poses.keyframe
        self._segments = poses.segment[poses.keyframe] if len(poses.keyframe) else np.zeros(0, np.int32)
        self._world_points = lru_cache(maxsize=32)(self._compute_world_points)

    def seen_from(self, row: int, keyframes: int = 4) -> tuple[F32, F32]:
        """Pixels (P, 2) and inverse depths (P,) float32 in `row` of the valid points of the nearest keyframes (in rows) of its segment."""
        candidates = np.flatnonzero((self._segments == self._poses.segment[row]) & self._poses.tracked[self._rows])
        nearest = candidates[np.argsort(np.abs(self._rows[candidates] - row), kind="stable")[:keyframes]]
        if not len(nearest):
            return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        world = np.concatenate([self._world_points(int(k)) for k in nearest])
        camera = np.linalg.inv(self._poses.cam2world[row])
        points = torch.from_numpy(world @ camera[:3, :3].T + camera[:3, 3])
        uv = project(points, self._params, self._poses.camera_model)
        seen = in_view(points, self._params, self._poses.camera_model)
        seen &= (uv > -0.5).all(-1) & (uv[:, 0] < self._width - 0.5) & (uv[:, 1] < self._height - 0.5)
        return uv[seen].numpy().astype(np.float32), (1 / points[seen][:, 2]).numpy().astype(np.float32)

    def _compute_world_points(self, k: int) -> NDArray[np.float64]:
        poses = self._poses
        valid = poses.valid[k] & np.isfinite(poses.inverse_depth[k]) & (poses.inverse_depth[k] > 0)
        rays = unproject(torch.from_numpy(poses.point_uv[k][valid].astype(np.float64)), self._params, poses.camera_model).numpy()
        points = rays / poses.inverse_depth[k][valid].astype(np.float64)[:, None]
        pose = poses.cam2world[int(self._rows[k])]
        return points @ pose[:3, :3].T + pose[:3, 3]


def surface_through(uv: F32, inverse_depth: F32, rgb: NDArray[np.uint8]) -> F32 | None:
    """A smooth surface through sparse points: inverse depth (ceil(H/GRID), ceil(W/GRID)) float32, or None without points.

    uv (P, 2) pixels, inverse_depth (P,), rgb (H, W, 3) whose edges bound the surfaces. Points far off
    the surface that the others make, lose their weight.
    """
    if not len(uv):
        return None
    height, width = rgb.shape[:2]
    size = (-(-width // GRID), -(-height // GRID))
    with single_threaded_opencv():
        guide = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    cell = np.clip((uv[:, 1] / GRID).astype(np.int64), 0, size[1] - 1) * size[0] + np.clip(
        (uv[:, 0] / GRID).astype(np.int64), 0, size[0] - 1
    )
    logs = np.log(inverse_depth)
    weight = np.ones_like(logs)
    surface = np.zeros((size[1], size[0]), np.float32)
    for last in (False, False, True):
        count = np.bincount(cell, weight, size[0] * size[1]).astype(np.float32)
        mean = np.bincount(cell, weight * logs, size[0] * size[1]) / np.maximum(count, 1e-12)
        surface, _ = spread(mean.astype(np.float32).reshape(surface.shape), count.reshape(surface.shape), guide, _REACH, _EDGE)
        if not last:
            off = logs - surface.ravel()[cell]
            weight = ((_OUTLIER**2 / (_OUTLIER**2 + off**2)) ** 2).astype(np.float32)
    return np.exp(surface)
