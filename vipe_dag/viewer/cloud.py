"""Depth maps to coloured points: unprojection through every camera model, filters, and the sparse map. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration

Points = NDArray[np.float32]
Colours = NDArray[np.uint8]

_ITERATIONS = 20
_TINY = 1e-12


@dataclass(frozen=True)
class CloudFilter:
    """Which pixels become points.

    min_confidence: 0..255; measured_only: leave completed pixels out; max_step: largest relative difference of depth to a direct neighbour
    (a larger one is an edge, where a pixel mixes two surfaces), None keeps edges; pixel_step: take every n-th pixel along both axes.
    """

    min_confidence: int = 0
    measured_only: bool = False
    max_step: float | None = 0.1
    pixel_step: int = 4


@dataclass(frozen=True)
class Cloud:
    """points (n, 3) float32 in the world of the poses; colours (n, 3) uint8."""

    points: Points
    colours: Colours

    def __len__(self) -> int:
        return len(self.points)


def rays(camera: Calibration, u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.float64]:
    """(..., 3) directions (x, y, 1) through pixels (u, v), the inverse of the camera model; NaN where a fisheye looks sideways or back.

    brown: fixed-point iteration as in OpenCV's undistortPoints. fisheye: Newton on theta (1 + k1 theta^2 + ...) = r (Kannala and Brandt).
    """
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = camera.params
    x, y = (np.asarray(u, np.float64) - cx) / fx, (np.asarray(v, np.float64) - cy) / fy
    if camera.camera_model == "brown":
        x, y = _undistort_brown(x, y, k1, k2, p1, p2, k3)
    elif camera.camera_model == "fisheye":
        radius = np.hypot(x, y)
        theta = _fisheye_angle(radius, np.array([k1, k2, p1, p2]))
        factor = np.where(theta < np.pi / 2, np.tan(np.minimum(theta, np.pi / 2 - 1e-6)), np.nan) / np.maximum(radius, _TINY)
        factor = np.where(radius < _TINY, 1.0, factor)
        x, y = x * factor, y * factor
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def depth_steps(z_depth: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) largest relative difference |z - n| / min(z, n) to the four direct neighbours n whose depth is known; 0 where none is."""
    z = np.where(np.isfinite(z_depth) & (z_depth > 0), z_depth, np.nan).astype(np.float32)
    steps = np.zeros(z.shape, np.float32)
    for axis in (0, 1):
        first, second = (np.moveaxis(z, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        step = np.nan_to_num(np.abs(first - second) / np.minimum(first, second), nan=0.0)
        target = np.moveaxis(steps, axis, 0)
        np.maximum(target[:-1], step, out=target[:-1])
        np.maximum(target[1:], step, out=target[1:])
    return steps


def chosen(
    z_depth: NDArray[Any], confidence: NDArray[np.uint8], measured: NDArray[np.bool_], choice: CloudFilter
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels that pass: known, positive, finite depth, and what the filter asks. All inputs (H, W)."""
    step = choice.pixel_step
    grid = (slice(step // 2, None, step), slice(step // 2, None, step))
    z = z_depth[grid]
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(z) & (z > 0) & (confidence[grid] >= choice.min_confidence)
    if choice.measured_only:
        keep &= measured[grid]
    if choice.max_step is not None:
        keep &= depth_steps(z_depth)[grid] <= choice.max_step
    rows, columns = np.nonzero(keep)
    return rows * step + step // 2, columns * step + step // 2


def frame_cloud(
    z_depth: NDArray[Any],
    confidence: NDArray[np.uint8],
    measured: NDArray[np.bool_],
    rgb: NDArray[np.uint8],
    camera: Calibration,
    cam2world: NDArray[np.float64],
    choice: CloudFilter,
) -> Cloud:
    """The points of one frame in the world.

    z_depth, confidence, measured (H, W); rgb (h, w, 3) of any size; camera at any size of the same picture; cam2world (4, 4), OpenCV axes.
    """
    height, width = z_depth.shape
    v, u = chosen(z_depth, confidence, measured, choice)
    local = rays(camera.scaled(width, height), u, v) * z_depth[v, u].astype(np.float64)[:, None]
    world = local @ cam2world[:3, :3].T + cam2world[:3, 3]
    known = np.isfinite(world).all(axis=1)
    colours = rgb[((v + 0.5) * rgb.shape[0] / height).astype(np.int64), ((u + 0.5) * rgb.shape[1] / width).astype(np.int64)]
    return Cloud(world[known].astype(np.float32), colours[known])


def sparse_points(
    point_uv: NDArray[np.float32],
    inverse_depth: NDArray[np.float32],
    valid: NDArray[np.bool_],
    camera: Calibration,
    cam2world: NDArray[np.float64],
) -> Points:
    """World points (n, 3) float32 of bundle adjustment that belong to one keyframe.

    point_uv (gy, gx, 2) pixels at the resolution of `camera`; inverse_depth, valid (gy, gx); cam2world (4, 4).
    """
    keep = valid & (inverse_depth > 0)
    uv = point_uv[keep].astype(np.float64)
    local = rays(camera, uv[:, 0], uv[:, 1]) / inverse_depth[keep].astype(np.float64)[:, None]
    world = local @ cam2world[:3, :3].T + cam2world[:3, 3]
    return world[np.isfinite(world).all(axis=1)].astype(np.float32)


def pixel_step_for(width: int, height: int, frames: int, budget: int) -> int:
    """The smallest step with which `frames` frames of that size stay within a budget of points."""
    return max(1, int(np.ceil(np.sqrt(width * height * max(1, frames) / budget))))


def _undistort_brown(
    x: NDArray[np.float64], y: NDArray[np.float64], k1: float, k2: float, p1: float, p2: float, k3: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = x, y
    for _ in range(_ITERATIONS):
        r2 = a * a + b * b
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        da = 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
        db = p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
        a, b = (x - da) / radial, (y - db) / radial
    return a, b


def _fisheye_angle(radius: NDArray[np.float64], k: NDArray[np.float64]) -> NDArray[np.float64]:
    theta = np.minimum(radius, np.pi / 2)
    powers = np.array([3, 5, 7, 9])
    for _ in range(_ITERATIONS):
        raised = theta[..., None] ** powers
        value = theta + raised @ k - radius
        slope = 1 + (theta[..., None] ** (powers - 1)) @ (k * powers)
        theta = np.clip(theta - value / np.where(np.abs(slope) < _TINY, _TINY, slope), 0, np.pi)
    return theta
