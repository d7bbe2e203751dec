"""Named clips: which place, which camera path, which lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.synthetic import places
from vipe_dag.synthetic.clip import SyntheticClip
from vipe_dag.synthetic.trajectory import Path, companion, forward_drive, handheld, orbit, pure_rotation, still, turn_first
from vipe_dag.synthetic.world import World

BARREL = (-0.26, 0.07, 0.0006, -0.0004, 0.0)
FISHEYE = (-0.03, 0.006, -0.002, 0.0004, 0.0)


def camera(
    width: int = 640, height: int = 360, fov: float = 65.0, model: str = "pinhole", distortion: tuple[float, ...] = (0.0,) * 5
) -> Calibration:
    """A camera whose focal length gives `fov` degrees horizontally before distortion; principal point in the middle of the picture."""
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    params = np.array([focal, focal, (width - 1) / 2, (height - 1) / 2, *distortion], np.float64)
    return Calibration(model, params, width, height)


def _walk(shake: float = 1.0) -> Path:
    """A loop around the table at eye height; the gaze wanders over the table and what stands behind it."""
    points = (
        (-1.75, 0.02, -2.2),
        (-0.4, -0.06, -2.75),
        (1.2, 0.05, -2.3),
        (1.85, -0.02, -0.6),
        (1.75, 0.04, 1.6),
        (0.4, -0.05, 2.7),
        (-1.2, 0.03, 2.4),
        (-1.8, 0.0, 0.4),
    )
    targets = (
        (0.3, 0.45, 1.0),
        (0.2, 0.55, 1.2),
        (-0.2, 0.5, 1.1),
        (-0.6, 0.5, 0.5),
        (-0.4, 0.55, -0.4),
        (0.1, 0.5, -0.8),
        (0.4, 0.5, -0.5),
        (0.6, 0.5, 0.3),
    )
    return handheld(points, targets, speed=0.8, shake=shake)


_ROTATION_PLACE = (-0.6, 0.0, -2.4)


@dataclass(frozen=True)
class _Shot:
    world: Callable[[float], World]
    path: Path


@lru_cache(maxsize=4)
def _room() -> World:
    return places.room()


@lru_cache(maxsize=2)
def _street() -> World:
    return places.street()


@lru_cache(maxsize=1)
def _narrow_street() -> World:
    return places.street(seed=4)


@lru_cache(maxsize=1)
def _plain_room() -> World:
    return places.room(contrast=0.12)


@lru_cache(maxsize=1)
def _hall() -> World:
    return places.hall()


def _room_with_figure(height: float) -> World:
    return places.room(movers=((companion(_walk(shake=0.0), 1.05), height),))


@dataclass(frozen=True)
class Scene:
    """What a name stands for: shots of equal length, the default number of frames and rate, the lens, and the sensor.

    shutter: share of the time between two frames during which a frame is exposed; exposure, noise: see SyntheticClip.
    """

    shots: tuple[_Shot, ...]
    n_frames: int = 90
    fps: float = 20.0
    model: str = "pinhole"
    distortion: tuple[float, ...] = (0.0,) * 5
    longest: float = float("inf")
    """Seconds after which the path leaves the place."""
    shutter: float = 0.0
    exposure: float = 0.0
    noise: float = 0.0


def _static_room(_: float) -> World:
    return _room()


def _static_street(_: float) -> World:
    return _street()


def _static_narrow_street(_: float) -> World:
    return _narrow_street()


def _static_plain_room(_: float) -> World:
    return _plain_room()


def _static_hall(_: float) -> World:
    return _hall()


_WALK = (_Shot(_static_room, _walk()),)
_DRIVE = _Shot(_static_street, forward_drive((0.4, 0.0, 0.0), speed=6.0))

SCENES: dict[str, Scene] = {
    "room": Scene(_WALK),
    "room_moving": Scene((_Shot(_room_with_figure, _walk()),)),
    "room_barrel": Scene(_WALK, model="brown", distortion=BARREL),
    "room_fisheye": Scene(_WALK, model="fisheye", distortion=FISHEYE),
    "orbit": Scene((_Shot(_static_room, orbit((0.1, 0.55, 0.3), 1.9, 0.55, 9.0)),), n_frames=120),
    "street": Scene((_DRIVE,), n_frames=80, fps=10.0, longest=18.0),
    "rotation": Scene((_Shot(_static_room, pure_rotation(_ROTATION_PLACE)),), n_frames=60),
    "static": Scene((_Shot(_static_room, still(_ROTATION_PLACE, (0.1, 0.5, 0.6))),), n_frames=40),
    "cut": Scene((*_WALK, _DRIVE), n_frames=80, fps=10.0, longest=18.0),
    "straight": Scene(
        (_Shot(_static_street, forward_drive((0.4, 0.0, 0.0), speed=6.0, sway=0.0, yaw=0.0)),), n_frames=80, fps=10.0, longest=18.0
    ),
    "swerve": Scene(
        (_Shot(_static_narrow_street, forward_drive((0.2, 0.0, 0.0), speed=5.0, sway=0.6, yaw=0.35)),), n_frames=80, fps=10.0, longest=18.0
    ),
    "turn_then_walk": Scene((_Shot(_static_room, turn_first(_walk(), 2.5)),)),
    "shake": Scene((_Shot(_static_room, _walk(shake=8.0)),), shutter=0.5, exposure=0.25),
    "plain": Scene((_Shot(_static_plain_room, _walk()),), noise=1.5),
    "hall": Scene((_Shot(_static_hall, forward_drive((0.2, 0.0, 0.0), speed=1.5)),), longest=35.0),
}


def scene(
    name: str,
    n_frames: int | None = None,
    width: int = 640,
    height: int = 360,
    fov: float = 65.0,
    fps: float | None = None,
    noise: float | None = None,
    exposure: float | None = None,
    supersample: int = 2,
    moving_share: float = 0.2,
) -> SyntheticClip:
    """A named clip (see SCENES). n_frames, fps, noise and exposure default to the scene's own; fov is horizontal, in degrees.

    moving_share: about how much of the picture the moving figure of "room_moving" covers. supersample=1 is four times faster, for clips
    of thousands of frames. Raises KeyError for an unknown name, ValueError for a clip longer than its path.
    """
    spec = SCENES[name]
    count, rate = n_frames or spec.n_frames, fps or spec.fps
    if count / rate > spec.longest:
        raise ValueError(
            f"{name}: {count} frames at {rate:g} per second last {count / rate:.0f} s, but the path ends after {spec.longest:.0f} s"
        )
    lens = camera(width, height, fov, spec.model, spec.distortion)
    time = np.arange(count) / rate
    shot = (np.arange(count) * len(spec.shots) // count).astype(np.int32)
    poses = np.concatenate([s.path(time[shot == k]) for k, s in enumerate(spec.shots)])
    figure_height = _figure_height(lens, moving_share)
    worlds = tuple(s.world(figure_height) for s in spec.shots)
    noise, exposure = spec.noise if noise is None else noise, spec.exposure if exposure is None else exposure
    shutter = _shutter(spec, time, shot, rate) if spec.shutter else None
    return SyntheticClip(name, worlds, shot, poses, lens, rate, noise, exposure, supersample, shutter)


_INSTANTS = 5
"""Pictures averaged into a blurred one; odd, so that the middle one is the row's own camera."""


def _shutter(spec: Scene, time: NDArray[np.float64], shot: NDArray[np.int32], rate: float) -> NDArray[np.float64]:
    """(T, S, 4, 4) cameras spread evenly over an exposure that is centred on the row's time."""
    instants = time[:, None] + spec.shutter / rate * np.linspace(-0.5, 0.5, _INSTANTS)
    return np.concatenate([s.path(instants[shot == k].ravel()) for k, s in enumerate(spec.shots)]).reshape(-1, _INSTANTS, 4, 4)


def _figure_height(lens: Calibration, share: float) -> float:
    """Height in metres of a figure one metre away, 0.62 times as wide, that covers `share` of the picture."""
    area = share * lens.width * lens.height / float(lens.params[0] * lens.params[1])
    return float(np.sqrt(area / 0.62))
