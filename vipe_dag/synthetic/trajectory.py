"""Exact camera paths: each is a function of time in seconds that returns camera-to-world matrices.

World axes are OpenCV's with y down, so the identity is an upright camera that looks along +z. Units: metres, seconds, radians.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
Path = Callable[[Array], Array]
"""(T,) seconds -> (T, 4, 4) float64 cam2world."""


def look_at(eye: ArrayLike, target: ArrayLike) -> Array:
    """(..., 4, 4) upright camera at eye (..., 3) that looks at target (..., 3)."""
    eye, target = np.broadcast_arrays(np.asarray(eye, np.float64), np.asarray(target, np.float64))
    forward = target - eye
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    pose = np.zeros((*eye.shape[:-1], 4, 4))
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2], pose[..., :3, 3] = right, np.cross(forward, right), forward, eye
    pose[..., 3, 3] = 1.0
    return pose


def _loop(points: ArrayLike) -> tuple[CubicSpline, float]:
    """A closed spline through points (N, 3), by chord length, and its period."""
    closed = np.asarray(points, np.float64)
    closed = np.concatenate([closed, closed[:1]])
    knots = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    return CubicSpline(knots, closed, bc_type="periodic"), float(knots[-1])


def _tremor(time: Array, seed: int, amount: float) -> tuple[Array, Array]:
    """Hand shake: rotation vector (T, 3) and offset (T, 3), sums of slow sines; `amount` 1 is a calm hand."""
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.4, 2.6, (2, 3, 4))
    phase = rng.uniform(0, 2 * np.pi, (2, 3, 4))
    waves = np.sin(2 * np.pi * frequency[..., None] * time + phase[..., None]).mean(axis=2)
    return amount * 0.012 * waves[0].T, amount * 0.012 * waves[1].T


def handheld(points: ArrayLike, targets: ArrayLike, speed: float = 0.8, shake: float = 1.0, seed: int = 0) -> Path:
    """A walk along a closed spline at about `speed` m/s, looking at a point that wanders along its own closed spline.

    points, targets (N, 3): the two splines share one parameter, so targets[i] is looked at when passing points[i].
    """
    eye, length = _loop(points)
    aim_knots = np.concatenate([eye.x[: len(eye.x)]])
    closed_targets = np.asarray(targets, np.float64)
    aim = CubicSpline(aim_knots, np.concatenate([closed_targets, closed_targets[:1]]), bc_type="periodic")

    def path(time: Array) -> Array:
        time = np.atleast_1d(np.asarray(time, np.float64))
        s = (speed * time) % length
        rotation, offset = _tremor(time, seed, shake)
        step = 0.012 * shake * np.sin(2 * np.pi * 1.8 * time)
        pose = look_at(eye(s) + offset + np.stack([0 * step, step, 0 * step], axis=-1), aim(s))
        pose[:, :3, :3] = pose[:, :3, :3] @ Rotation.from_rotvec(rotation).as_matrix()
        return pose

    return path


def orbit(centre: ArrayLike, radius: float, height: float, period: float) -> Path:
    """A circle around `centre`, `height` metres above it, once in `period` seconds, always looking at it."""

    def path(time: Array) -> Array:
        angle = 2 * np.pi * np.atleast_1d(np.asarray(time, np.float64)) / period
        middle = np.asarray(centre, np.float64)
        eye = middle + np.stack([radius * np.sin(angle), np.full_like(angle, -height), -radius * np.cos(angle)], axis=-1)
        return look_at(eye, middle)

    return path


def forward_drive(start: ArrayLike, speed: float, sway: float = 0.25, yaw: float = 0.06) -> Path:
    """A drive along +z: gentle lane changes of `sway` metres, heading that swings by `yaw` radians, a little pitch and bounce."""

    def path(time: Array) -> Array:
        t = np.atleast_1d(np.asarray(time, np.float64))
        pose = np.tile(np.eye(4), (len(t), 1, 1))
        turn = np.stack([0.008 * np.sin(2.1 * t), yaw * np.sin(0.9 * t), 0.006 * np.sin(1.7 * t + 1)], axis=-1)
        pose[:, :3, :3] = Rotation.from_rotvec(turn).as_matrix()
        pose[:, :3, 3] = np.asarray(start, np.float64) + np.stack([sway * np.sin(0.8 * t), 0.015 * np.sin(5 * t), speed * t], axis=-1)
        return pose

    return path


def pure_rotation(eye: ArrayLike, yaw: float = 0.6, pitch: float = 0.15, period: float = 4.0) -> Path:
    """A camera that pans by +-`yaw` and tilts by +-`pitch` radians about its own centre at `eye`: no parallax at all."""

    def path(time: Array) -> Array:
        t = 2 * np.pi * np.atleast_1d(np.asarray(time, np.float64)) / period
        pose = np.tile(np.eye(4), (len(t), 1, 1))
        pose[:, :3, :3] = Rotation.from_euler("YX", np.stack([yaw * np.sin(t), pitch * np.sin(2 * t)], axis=-1)).as_matrix()
        pose[:, :3, 3] = eye
        return pose

    return path


def turn_first(path: Path, seconds: float, yaw: float = 0.5) -> Path:
    """A camera that pans to both sides by `yaw` radians for some seconds, where `path` begins, before it follows `path`."""

    def turned(time: Array) -> Array:
        t = np.atleast_1d(np.asarray(time, np.float64))
        pose = path(np.maximum(t - seconds, 0.0))
        angle = yaw * np.sin(2 * np.pi * np.minimum(t, seconds) / seconds)
        pose[:, :3, :3] = pose[:, :3, :3] @ Rotation.from_rotvec(angle[:, None] * [0.0, 1.0, 0.0]).as_matrix()
        return pose

    return turned


def still(eye: ArrayLike, target: ArrayLike) -> Path:
    """A camera on a tripod."""
    pose = look_at(eye, target)
    return lambda time: np.tile(pose, (np.atleast_1d(time).shape[0], 1, 1))


def companion(path: Path, distance: float, sway: float = 0.22, period: float = 3.1, turn: float = 0.5) -> Path:
    """Object-to-world poses of something that travels `distance` metres ahead of the camera on `path`, swaying and turning by itself."""

    def motion(time: Array) -> Array:
        t = np.atleast_1d(np.asarray(time, np.float64))
        camera = path(t)
        w = 2 * np.pi * t / period
        ahead = camera[:, :3, 2] * [1.0, 0.0, 1.0]
        ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
        side = np.cross([0.0, 1.0, 0.0], ahead)
        down = np.array([0.0, 1.0, 0.0])
        place = camera[:, :3, 3] + ahead * (distance + 0.1 * np.sin(1.7 * w))[:, None] + side * (sway * np.sin(w))[:, None]
        place += down * (0.04 * np.sin(2.3 * w))[:, None]
        pose = look_at(place, place + ahead)
        pose[:, :3, :3] = pose[:, :3, :3] @ Rotation.from_rotvec(turn * np.sin(1.3 * w)[:, None] * down).as_matrix()
        return pose

    return motion
