"""Bundle adjustment of a whole video: cameras of keyframes, refined intrinsics, and from them the camera of every frame.

Per segment: start on the window with the most parallax, extend both ways one keyframe at a time (resection, then a local adjustment),
adjust everything now and then, add edges between keyframes that see the same place again, adjust everything to convergence. Frames between
keyframes are posed by motion-only adjustment against the keyframes on either side. A segment without parallax keeps its rotations, reports
zero translation, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import BaPosesConfig
from vipe_dag.results import BaPoses, Intrinsics, Keyframes
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.inbetween import FramePoses, pose_frames
from vipe_dag.stages.intrinsics import OBSERVABLE_STD, measure_parallax
from vipe_dag.stages.launch import launch, rotating
from vipe_dag.stages.mapping import Map, intrinsic_std, noise, pixels_schedule
from vipe_dag.stages.measurements import Measurements
from vipe_dag.stages.revisits import far_pairs
from vipe_kernels import bundle
from vipe_kernels.bundle import Intrinsic, Report

Float = NDArray[np.float64]
_INLIER_PX = 2.0
"""Residual, in pixels of a 640-pixel picture, up to which a measurement agrees with the map."""

_DISTORTION_KEYFRAMES = 8
"""Fewer views than this explain distortion as well by depth."""

_HELD_STD = 0.03
"""How far the logarithm of the focal length may drift from the calibration while the map is incomplete."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Segment:
    """Keyframes of one uninterrupted shot, and whether their motion shows a translation."""

    keyframes: tuple[int, ...]
    parallax: bool


def free_intrinsics(intrinsics: Intrinsics, config: BaPosesConfig, side: int) -> tuple[Intrinsic, ...]:
    """Which intrinsics the adjustment may move: none that were given, otherwise the focal length under its prior."""
    if intrinsics.source == "given":
        return ()
    return (Intrinsic("focal", float(np.log(config.prior_focal * side)), config.prior_std),)


def best_start(scene: Map, keyframes: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The run of at most `length` keyframes with the most parallax, looking at every half length."""
    if len(keyframes) <= length:
        return keyframes
    runs = [keyframes[i : i + length] for i in range(0, len(keyframes) - length + 1, max(1, length // 2))]
    return max(runs, key=lambda run: measure_parallax(scene, run))


class Mapper:
    """Builds the map of one video, segment by segment; `scene` holds the result.

    While the map grows only the focal length moves, held near the calibration: a short window cannot tell distortion from depth. All of
    `intrinsics` are free in the last adjustments, which see everything.
    """

    def __init__(self, scene: Map, config: BaPosesConfig, intrinsics: tuple[Intrinsic, ...]) -> None:
        self.scene, self.config, self.intrinsics = scene, config, intrinsics
        focal = float(np.log(scene.params[0]))
        self.held = tuple(Intrinsic("focal", focal, _HELD_STD) for free in intrinsics if free.name == "focal")
        self.unit = scene.m.unit

    def connect_sequence(self, keyframes: tuple[int, ...], radius: int) -> None:
        """Measure each keyframe against its `radius` predecessors, both ways."""
        for position, k in enumerate(keyframes):
            for other in keyframes[max(0, position - radius) : position]:
                self.scene.connect(other, k, through=keyframes)
                self.scene.connect(k, other, through=keyframes)

    def build(self, keyframes: tuple[int, ...], still: bool, progress: Callable[[], None]) -> Segment:
        """Pose all keyframes of one segment. still: nothing moved, all share one camera."""
        config, scene = self.config, self.scene
        if len(keyframes) < 2 or still:
            for k in keyframes:
                scene.place(k, np.eye(3), np.zeros(3), np.ones(len(scene.m.keyframes[k].uv)))
            return Segment(keyframes, False)
        self.connect_sequence(keyframes, 2)
        start = best_start(scene, keyframes, config.start_window)
        if measure_parallax(scene, start) < config.min_parallax:
            self.rotations_only(keyframes)
            return Segment(keyframes, False)
        self.connect_sequence(start, config.radius)
        launch(scene, start, config.start_scales, thorough=True)
        first, last = keyframes.index(start[0]), keyframes.index(start[-1])
        posed = list(start)
        next_global = 2 * len(posed)
        while first > 0 or last < len(keyframes) - 1:
            for forward in (True, False):
                if forward and last < len(keyframes) - 1:
                    last += 1
                    k, near = keyframes[last], list(reversed(keyframes[max(first, last - config.radius) : last]))
                elif not forward and first > 0:
                    first -= 1
                    k, near = keyframes[first], list(keyframes[first + 1 : min(last, first + config.radius) + 1])
                else:
                    continue
                self.add(k, near)
                posed.append(k)
                self.local(k, keyframes[first : last + 1], anchor=start[0])
                progress()
                if len(posed) >= next_global:
                    self.everything(sorted(posed), config.local_scales, 3, self.held)
                    next_global = 2 * len(posed)
        self.everything(keyframes, config.global_scales, config.global_steps, self.intrinsics)
        return Segment(keyframes, True)

    def add(self, k: int, near: list[int]) -> None:
        """Measure a new keyframe against posed neighbours (nearest first) and pose it from them."""
        chain = [k, *near]
        for other in near:
            self.scene.connect(other, k, through=chain)
            self.scene.connect(k, other, through=chain)
        if self.scene.extend(k, near) is None:
            neighbour = near[0]
            scene = self.scene
            scene.place(k, scene.rotation[neighbour], scene.translation[neighbour], scene.inverse_depth[neighbour].copy())

    def local(self, k: int, keyframes: tuple[int, ...], anchor: int) -> None:
        """Adjust the keyframes around the newest; those that share edges with them stay fixed."""
        config = self.config
        at = keyframes.index(k)
        free = {x for x in keyframes[max(0, at - config.window + 1) : at + config.window] if x != anchor}
        touching = {a if b in free else b for a, b in self.scene.edges if (a in free) != (b in free)}
        fixed = [x for x in touching if x in self.scene.rotation]
        self.scene.adjust(sorted(free), fixed, pixels_schedule(config.local_scales, (2,) * len(config.local_scales), self.unit))

    def everything(self, keyframes: Sequence[int], scales: tuple[float, ...], steps: int, intrinsics: tuple[Intrinsic, ...]) -> Report:
        """Adjust all keyframes given, and the intrinsics; the first stays where it is."""
        schedule = pixels_schedule(scales, (steps,) * len(scales), self.unit, tolerance=3e-4)
        self.scene.anchor(keyframes)
        report = self.scene.adjust(keyframes[1:], keyframes[:1], schedule, intrinsics)
        self.scene.rescale(keyframes)
        return report

    def consider_distortion(self, segments: Sequence[Segment]) -> tuple[Intrinsic, ...]:
        """Take up radial distortion where the longest moving segment shows it; returns the intrinsics then free.

        Distortion is confounded with focal length and depth, so it is kept only if it lowers the robust cost by `distortion_gain` and is
        more than three standard deviations from none.
        """
        moving = [s.keyframes for s in segments if s.parallax]
        if (
            not any(len(keyframes) >= _DISTORTION_KEYFRAMES for keyframes in moving)
            or not self.intrinsics
            or self.config.prior_k1_std == 0
            or self.scene.model != "pinhole"
        ):
            return self.intrinsics
        keyframes = max(moving, key=len)
        scales = self.config.global_scales[-2:]
        before = self.scene.snapshot()
        plain = self.everything(keyframes, scales, self.config.global_steps, self.intrinsics)
        without = self.scene.snapshot()
        self.scene.restore(before)
        self.scene.model = "brown"
        free = (*self.intrinsics, Intrinsic("k1", 0.0, self.config.prior_k1_std))
        bent = self.everything(keyframes, scales, self.config.global_steps, free)
        std = intrinsic_std(self.scene, keyframes[1:], keyframes[:1], free, scales[-1] * self.unit)[-1]
        if bent.cost < plain.cost * (1 - self.config.distortion_gain) and abs(float(self.scene.params[4])) > 3 * std:
            for other in moving:
                if other is not keyframes:
                    self.everything(other, scales, self.config.global_steps, ())
            return free
        self.scene.model = "pinhole"
        self.scene.restore(without)
        return self.intrinsics

    def rotations_only(self, keyframes: tuple[int, ...]) -> None:
        """Pose a segment whose camera turned but did not visibly move."""
        rotating(self.scene, keyframes, 0.0)
        schedule = pixels_schedule(self.config.local_scales, (4,) * len(self.config.local_scales), self.unit)
        self.scene.adjust(keyframes[1:], keyframes[:1], schedule, rotation_only=True)

    def close(self, keyframes: tuple[int, ...], progress: Callable[[], None]) -> int:
        """Add verified edges between keyframes far apart in time that see the same place; returns how many."""
        added = 0
        for a, b in far_pairs(self.scene, keyframes, self.config.radius, self.config.revisits):
            if (a, b) in self.scene.edges or not len(self.scene.m.matches(a, b)):
                continue
            self.scene.connect(a, b)
            self.scene.connect(b, a)
            added += 1
            progress()
        return added


@dataclass
class Quality:
    """What the solved map says about itself, per keyframe and point: residual_px, valid (K, P); inliers, position_std
    (K,); params_std (9,)."""

    residual_px: Float
    valid: NDArray[np.bool_]
    inliers: Float
    median_px: Float
    position_std: Float
    params_std: Float


def judge(scene: Map, segments: list[Segment], free: tuple[Intrinsic, ...], intrinsics: Intrinsics, config: BaPosesConfig) -> Quality:
    """Residuals, validity of every inverse depth, and uncertainties."""
    count, points = len(scene.m.keyframes), len(scene.m.keyframes[0].uv)
    quality = Quality(
        np.full((count, points), np.nan),
        np.zeros((count, points), bool),
        np.zeros(count),
        np.full(count, np.nan),
        np.zeros(count),
        intrinsics.params_std.copy(),
    )
    scale = config.global_scales[-1] * scene.m.unit
    most = 0
    for segment in segments:
        if len(segment.keyframes) < 2:
            continue
        problem, state, keys = scene.problem(
            segment.keyframes[1:], segment.keyframes[:1], free if segment.parallax else (), not segment.parallax
        )
        distance = bundle.residuals(problem, state).numpy()
        weight = np.where(np.isfinite(distance), problem.edges.weight.numpy(), 0.0)
        distance = np.nan_to_num(distance)
        good = distance < _INLIER_PX * scene.m.unit
        for position, k in enumerate(keys):
            rows = (problem.edges.source == position).numpy()
            touching = rows | (problem.edges.destination == position).numpy()
            mass = weight[touching].sum()
            quality.inliers[k] = (weight * good)[touching].sum() / mass if mass > 0 else 0.0
            inlying = distance[touching][(weight[touching] > 0)]
            quality.median_px[k] = np.median(inlying) if len(inlying) else np.nan
            total = weight[rows].sum(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                quality.residual_px[k] = (weight * np.minimum(distance, 10 * scene.m.unit))[rows].sum(0) / total
        if segment.parallax:
            found = bundle.posterior(problem, state, scale)
            sigma = noise(problem, state)
            relative = found.depth_std.numpy() * sigma / state.inverse_depth.numpy()
            quality.valid[keys] = (relative < config.max_depth_std) & (quality.residual_px[keys] < _INLIER_PX * scene.m.unit)
            quality.position_std[keys] = found.position_std.numpy() * sigma
            if free and len(keys) > most:
                most = len(keys)
                std = found.intrinsic_std.numpy() * sigma
                quality.params_std[:2] = scene.params[:2] * std[0]
                quality.params_std[4] = std[1] if len(std) > 1 else 0.0
    return quality


def solve(
    frames: FrameSequence, keyframes: Keyframes, intrinsics: Intrinsics, config: BaPosesConfig, progress: Progress | None = None
) -> BaPoses:
    """Cameras of all frames.

    Returns cam2world with the first keyframe of each segment at identity; the scale of a segment is arbitrary (median
    depth 1 of its points). Flags: those of the inputs and `no_parallax`, `lost_frames`, `focal_unobservable`.
    """
    tell = progress or (lambda _phase, _share: None)
    measurements = Measurements(frames, config.grid_columns, config.matches)
    for row in keyframes.keyframe:
        measurements.add(int(row))
        tell("features", len(measurements.keyframes) / len(keyframes.keyframe))
    scene = Map(measurements, intrinsics.camera_model, intrinsics.params)
    free = free_intrinsics(intrinsics, config, max(frames.width, frames.height))
    mapper = Mapper(scene, config, free)
    total, done = len(keyframes.keyframe), 0

    def step() -> None:
        nonlocal done
        done += 1
        tell("mapping", min(1.0, done / total))

    of_keyframe = keyframes.segment[keyframes.keyframe]
    segments = [
        mapper.build(tuple(int(k) for k in np.nonzero(of_keyframe == value)[0]), "static" in keyframes.flags, step)
        for value in np.unique(of_keyframe)
    ]
    for segment in segments:
        for _ in range(config.revisit_rounds if segment.parallax else 0):
            if not mapper.close(segment.keyframes, lambda: tell("revisits", 1.0)):
                break
            mapper.everything(segment.keyframes, config.global_scales, config.global_steps, free)
    free = mapper.consider_distortion(segments)
    quality = judge(scene, segments, free, intrinsics, config)
    return gather(frames, keyframes, intrinsics, scene, segments, quality, config, tell)


def gather(
    frames: FrameSequence,
    keyframes: Keyframes,
    intrinsics: Intrinsics,
    scene: Map,
    segments: list[Segment],
    quality: Quality,
    config: BaPosesConfig,
    tell: Progress,
) -> BaPoses:
    """Pose the frames between keyframes and put everything into the record."""
    m, count = scene.m, scene.m.grid_count
    poses = FramePoses.empty(len(frames))
    trust = {}
    for segment in segments:
        for k in segment.keyframes:
            row = m.keyframes[k].row
            poses.rotation[row], poses.translation[row] = scene.rotation[k], scene.translation[k]
            poses.residual_px[row], poses.inliers[row], poses.position_std[row] = (
                quality.median_px[k],
                quality.inliers[k],
                quality.position_std[k],
            )
            trust[k] = (quality.valid[k, :count] if segment.parallax else m.keyframes[k].sigma[:count] < m.unit).astype(np.float64)
    pose_frames(scene, frames, [(s.keyframes, s.parallax) for s in segments], trust, poses, tell)
    interpolate_std(poses, keyframes, quality)
    cam2world = np.tile(np.eye(4), (len(frames), 1, 1))
    cam2world[:, :3, :3] = poses.rotation.transpose(0, 2, 1)
    cam2world[:, :3, 3] = -(cam2world[:, :3, :3] @ poses.translation[..., None])[..., 0]
    still = "static" in keyframes.flags
    tracked = (poses.inliers > config.min_inliers) | still
    tracked[[m.keyframes[s.keyframes[0]].row for s in segments]] = True
    parallax = np.array([s.parallax for s in segments])
    flags = set(keyframes.flags) | set(intrinsics.flags)
    if intrinsics.source != "given":
        observable = quality.params_std[0] < OBSERVABLE_STD * scene.params[0] and bool(parallax.any())
        flags = (flags - {"focal_unobservable"}) | (set() if observable else {"focal_unobservable"})
    flags |= {word for word, holds in (("no_parallax", not parallax.all()), ("lost_frames", not tracked.all())) if holds}
    shape = (len(m.keyframes), *m.grid_shape)
    inverse_depth = np.stack([scene.inverse_depth[k][:count] for k in range(len(m.keyframes))])
    residual = poses.residual_px[np.isfinite(poses.residual_px)]
    return BaPoses(
        cam2world=cam2world,
        tracked=tracked,
        segment=keyframes.segment,
        position_std=poses.position_std,
        frame_residual_px=poses.residual_px.astype(np.float32),
        inlier_share=poses.inliers.astype(np.float32),
        keyframe=keyframes.keyframe,
        point_uv=np.stack([p.uv[:count] for p in m.keyframes]).reshape(*shape, 2),
        inverse_depth=inverse_depth.astype(np.float32).reshape(shape),
        valid=quality.valid[:, :count].reshape(shape),
        residual_px=quality.residual_px[:, :count].astype(np.float32).reshape(shape),
        camera_model=scene.model,
        params=scene.params,
        params_std=quality.params_std,
        parallax=parallax,
        residual_px_median=float(np.median(residual)) if len(residual) else 0.0,
        iterations=scene.steps,
        flags=tuple(sorted(flags)),
    )


def interpolate_std(poses: FramePoses, keyframes: Keyframes, quality: Quality) -> None:
    """Add to each frame's own uncertainty that of the keyframes it was posed against, interpolated over rows."""
    rows = np.arange(len(poses.position_std))
    from_map = np.interp(rows, keyframes.keyframe, quality.position_std)
    own = np.where(np.isin(rows, keyframes.keyframe), 0.0, poses.position_std)
    poses.position_std = np.hypot(from_map, own)
