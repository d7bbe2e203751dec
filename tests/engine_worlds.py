"""Problems whose answer is known: cameras and points with exact projections for the solvers, small rendered clips for the stages.

Measurements of a `Rig` never touch a picture, so its solution is exact to rounding. Clips and what the stages made of them are computed
once per process and shared between tests, which must not change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_dag import synthetic
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.evaluate import trajectory
from vipe_dag.results import BaPoses, Intrinsics, Keyframes
from vipe_dag.sequence import ArrayFrames
from vipe_dag.stages import ba_poses, intrinsics, keyframes
from vipe_dag.synthetic import SyntheticClip
from vipe_kernels import bundle
from vipe_kernels.bundle import Edges, Intrinsic, Problem, State

torch.set_num_threads(1)
cv2.setNumThreads(1)

Float = NDArray[np.float64]
WIDTH, HEIGHT = 640, 360
DISTORTION = {
    "pinhole": (0.0, 0.0, 0.0, 0.0, 0.0),
    "brown": (-0.15, 0.03, 0.001, -0.0005, 0.0),
    "fisheye": (-0.02, 0.005, -0.001, 0.0002, 0.0),
}


def lens(model: str = "pinhole", fov: float = 60.0) -> Tensor:
    """Parameters (9,) of a 640 x 360 camera, `fov` degrees wide before distortion."""
    focal = WIDTH / 2 / np.tan(np.radians(fov) / 2)
    return torch.tensor([focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, *DISTORTION[model]], dtype=torch.float64)


@dataclass(frozen=True)
class Rig:
    """A bundle adjustment problem and its exact solution."""

    problem: Problem
    truth: State

    def with_targets(self, target: Tensor) -> Rig:
        """The same cameras and points with other measurements (E, P, 2)."""
        return replace(self, problem=replace(self.problem, edges=replace(self.problem.edges, target=target)))

    def noisy(self, sigma: float, seed: int = 1) -> Rig:
        """Gaussian noise of `sigma` pixels on every coordinate."""
        return self.with_targets(self.problem.edges.target + sigma * normal(self.problem.edges.target.shape, seed))

    def with_outliers(self, share: float, seed: int = 2) -> Rig:
        """`share` of the measurements moved to anywhere in the picture."""
        rng = np.random.default_rng(seed)
        wrong = torch.from_numpy(rng.random(self.problem.edges.weight.shape) < share)
        anywhere = torch.from_numpy(rng.uniform((0, 0), (WIDTH, HEIGHT), (*self.problem.edges.weight.shape, 2)))
        return self.with_targets(torch.where(wrong[..., None], anywhere, self.problem.edges.target))

    def perturbed(self, amount: float, seed: int = 3, focal: float = 1.0) -> State:
        """A start near the truth: free poses by `amount` (radians and units), inverse depths by that share, focal length by a factor."""
        problem, truth = self.problem, self.truth
        move = amount * normal((len(truth.rotation), 6), seed) * problem.free_pose[:, None]
        if problem.rotation_only:
            move[:, :3] = 0.0
        r, t = bundle.exp_se3(move)
        depth = torch.exp(amount * normal(truth.inverse_depth.shape, seed + 1) * problem.free_depth[:, None])
        params = truth.params.clone()
        params[:2] *= focal
        return State(r @ truth.rotation, (r @ truth.translation[..., None])[..., 0] + t, truth.inverse_depth * depth, params)


def normal(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers, float64, the same for the same seed."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)))


def rig(
    model: str = "pinhole",
    keyframes: int = 5,
    points: int = 40,
    fixed: Sequence[int] = (0,),
    intrinsics: tuple[Intrinsic, ...] = (),
    baseline: float = 0.15,
    turn: float = 0.04,
    fov: float = 60.0,
    seed: int = 0,
    rotation_only: bool = False,
) -> Rig:
    """Cameras on a gentle curve that see points at depths 1 to 4, every keyframe measured against every other.

    The first camera is the identity. baseline: step between cameras in units of the nearest depth; turn: radians between cameras.
    """
    rng = np.random.default_rng(seed)
    params = lens(model, fov)
    step = np.arange(keyframes)
    centre = baseline * np.stack([step, 0.4 * np.sin(2.0 * step), 0.5 * step], 1)
    axis = rng.normal(size=(keyframes, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    rotation, _ = bundle.exp_se3(torch.from_numpy(np.concatenate([np.zeros((keyframes, 3)), turn * axis * (step > 0)[:, None]], 1)))
    translation = -(rotation @ torch.from_numpy(centre)[..., None])[..., 0]
    uv = torch.from_numpy(rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40), (keyframes, points, 2)))
    inverse_depth = torch.from_numpy(1.0 / rng.uniform(1.0, 4.0, (keyframes, points)))
    truth = State(rotation, translation, inverse_depth, params)
    pairs = [(i, j) for i in range(keyframes) for j in range(keyframes) if i != j]
    source, destination = torch.tensor(pairs).T
    edges = Edges.of(source, destination, torch.zeros(len(pairs), points, 2).double(), torch.ones(len(pairs), points).double())
    free_pose = torch.ones(keyframes, dtype=torch.bool)
    free_pose[list(fixed)] = False
    free_depth = torch.full((keyframes,), not rotation_only)
    problem = Problem(model, uv, edges, free_pose, free_depth, intrinsics, rotation_only)
    seen, front = bundle.transfer(problem, truth)
    inside = front & (seen >= 0).all(-1) & (seen <= torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])).all(-1)
    edges = replace(edges, target=seen, weight=inside.double())
    return Rig(replace(problem, edges=edges), truth)


def to_scale(state: State, truth: State) -> State:
    """`state` in the scale of `truth`; bundle adjustment with one fixed camera at the origin leaves the scale open."""
    factor = float(torch.median(state.inverse_depth / truth.inverse_depth))
    return replace(state, translation=state.translation * factor, inverse_depth=state.inverse_depth / factor)


def angle_deg(a: Tensor | Float, b: Tensor | Float) -> Float:
    """Angle in degrees between rotations (..., 3, 3)."""
    difference = np.asarray(a) - np.asarray(b)
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(difference, axis=(-2, -1)) / np.sqrt(8), 0, 1)))


def focal(prior_std: float = float("inf"), mean: float = 6.2) -> Intrinsic:
    """A free focal length whose logarithm has this prior."""
    return Intrinsic("focal", mean, prior_std)


# -- rendered clips ------------------------------------------------------------------------------------------------------------------------

CLIPS: dict[str, tuple[int, float]] = {
    "orbit": (20, 10.0),
    "room": (20, 7.0),
    "rotation": (16, 8.0),
    "static": (8, 10.0),
    "cut": (20, 10.0),
    "room_barrel": (20, 7.0),
    "room_fisheye": (20, 7.0),
}
"""Number of frames and frames per second of each clip that the stages are tried on, 320 x 240 pixels."""


@cache
def config() -> PipelineConfig:
    """A coarse and quick configuration: fewer corners, keyframes and starts."""
    return load_config(
        overrides=[
            "intrinsics.grid_columns=16",
            "intrinsics.matches=96",
            "intrinsics.starts=[0.65,0.85,1.3]",
            "intrinsics.windows=1",
            "intrinsics.window=6",
            "ba_poses.grid_columns=16",
            "ba_poses.matches=96",
            "ba_poses.radius=2",
            "ba_poses.window=4",
            "ba_poses.start_window=5",
            "ba_poses.global_steps=4",
        ]
    )


@cache
def clip(name: str, n_frames: int | None = None, fps: float | None = None, width: int = 320, height: int = 240) -> SyntheticClip:
    """A short clip of a synthetic scene; length and rate default to CLIPS."""
    count, rate = CLIPS[name]
    fov = 90.0 if name == "room_fisheye" else 65.0
    return synthetic.scene(name, n_frames=n_frames or count, width=width, height=height, fov=fov, fps=fps or rate, supersample=1)


@cache
def frames(name: str, n_frames: int | None = None, fps: float | None = None, width: int = 320, height: int = 240) -> ArrayFrames:
    """Its rendered frames."""
    return clip(name, n_frames, fps, width, height).frames()


def still_frames(image: NDArray[np.uint8], count: int) -> ArrayFrames:
    """The same picture (H, W, 3) over and over, ten times a second."""
    return ArrayFrames(np.repeat(image[None], count, 0), np.arange(count) / 10.0, np.arange(count))


@cache
def selected(name: str) -> Keyframes:
    return keyframes.select(frames(name), config().keyframes)


@cache
def calibrated(name: str) -> Intrinsics:
    return intrinsics.calibrate(frames(name), selected(name), config().intrinsics)


@cache
def known(name: str) -> Intrinsics:
    """The true camera, as a user would give it."""
    return intrinsics.calibrate(frames(name), selected(name), config().intrinsics, clip(name).camera)


@cache
def solved(name: str, given: bool = False) -> BaPoses:
    """Bundle adjustment with the estimated camera, or with the true one."""
    return ba_poses.solve(frames(name), selected(name), known(name) if given else calibrated(name), config().ba_poses)


@dataclass(frozen=True)
class Errors:
    """Of one segment after the best similarity: ate_percent of the path length, largest rotation error in degrees."""

    ate_percent: float
    rotation_deg: float


def ate_percent(cam2world: Float, truth: Float, length: float) -> float:
    """RMS distance of cameras (n, 4, 4) from the true ones after the best similarity, in percent of a length."""
    aligned = trajectory.align(cam2world, truth)
    miss = np.linalg.norm(aligned.estimate[:, :3, 3] - aligned.reference[:, :3, 3], axis=1)
    return 100 * float(np.sqrt(np.square(miss).mean())) / max(length, 1e-9)


def errors(name: str, poses: BaPoses, segment: int = 0) -> Errors:
    """Estimated against true cameras of one segment."""
    rows = poses.segment == segment
    truth = clip(name).cam2world[rows]
    aligned = trajectory.align(poses.cam2world[rows], truth)
    length = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    return Errors(ate_percent(poses.cam2world[rows], truth, length), float(angle_deg(aligned.estimate[:, :3, :3], truth[:, :3, :3]).max()))
