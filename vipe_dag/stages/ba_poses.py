"""Bundle adjustment of a whole video: cameras of keyframes, refined intrinsics, and from them the camera of every frame.

The map grows over keyframes (`mapper`) into one or more worlds, the segments of the result: shots that show the same place share one.
Frames between keyframes are posed by motion-only adjustment against the keyframes on either side. A segment without parallax keeps its
rotations, reports zero translation, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import BaPosesConfig
from vipe_dag.results import BaPoses, Intrinsics, Keyframes
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.finds import Finds
from vipe_dag.stages.inbetween import FramePoses, pose_frames
from vipe_dag.stages.intrinsics import OBSERVABLE_STD, params_std
from vipe_dag.stages.mapper import Mapper, Segment
from vipe_dag.stages.mapping import Camera, Evidence, Map, Part, joined, noise
from vipe_dag.stages.measurements import Measurements
from vipe_kernels import bundle
from vipe_kernels.bundle import Intrinsic
from vipe_kernels.parallel import give_back_memory, our_threads

Float = NDArray[np.float64]
_USABLE = 96
"""Points of a keyframe that frames may be posed from although their depth is not known, as where a camera only turns: what moves little
is followed as well by them, and a handful of known ones would not do."""
_INLIER_PX = 2.0
"""Residual, in pixels of a 640-pixel picture, up to which a measurement agrees with the map."""

_AGREE = 0.5
"""Share of the measurements of a keyframe that has to agree with its camera for it to be believed."""

Progress = Callable[[str, float], None]


def free_intrinsics(scene: Map, intrinsics: Intrinsics, config: BaPosesConfig) -> tuple[Intrinsic, ...]:
    """Which intrinsics the adjustment may move: none that were given, otherwise the focal length, and the lens if calibration found one,
    under their priors."""
    if intrinsics.source == "given":
        return ()
    camera = Camera.of(scene.m.frames, config)
    return camera.lens() if scene.model != "pinhole" else (camera.focal,)


@dataclass
class Quality:
    """What the solved map says about itself, per keyframe and point: residual_px, valid, usable (K, P); inliers, position_std
    (K,); params_std (9,). usable: points that frames may be posed from: valid ones and, where few corners are, the surest others."""

    residual_px: Float
    valid: NDArray[np.bool_]
    usable: NDArray[np.bool_]
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
        part = scene.part(segment.keyframes[1:], segment.keyframes[:1], free if segment.parallax else (), not segment.parallax)
        problem, state, keys = part.problem, part.state, part.keys
        weigh_residuals(part, scene.m.unit, quality)
        if segment.parallax:
            found = bundle.posterior(problem, state, scale)
            sigma = noise(problem, state)
            relative = found.depth_std.numpy() * sigma / state.inverse_depth.numpy()
            for k, index, spread in zip(keys, part.points, relative, strict=True):
                agrees = quality.residual_px[k, index] < _INLIER_PX * scene.m.unit
                quality.valid[k, index] = agrees & (spread[: len(index)] < config.max_depth_std)
                agrees &= index < scene.m.grid_count
                surest = np.argsort(np.where(agrees, spread[: len(index)], np.inf), kind="stable")[: min(_USABLE, agrees.sum())]
                quality.usable[k] = quality.valid[k]
                quality.usable[k, index[surest]] = True
            quality.position_std[keys] = found.position_std.numpy() * sigma
            if free and len(keys) > most:
                most = len(keys)
                camera = joined(Camera.of(scene.m.frames, config).everything(), free)
                quality.params_std = params_std(scene.params, camera, Evidence.of(scene, part, camera, scale).std())
    return quality


def weigh_residuals(part: Part, unit: float, quality: Quality) -> None:
    """Fill in, for the keyframes of a part, the share of measurements that agree, their median distance, and the residual of each point."""
    distance = bundle.residuals(part.problem, part.state).numpy()
    weight = np.where(np.isfinite(distance), part.problem.edges.weight.numpy(), np.float32(0))
    np.nan_to_num(distance, copy=False)
    source, destination = part.problem.edges.source.numpy(), part.problem.edges.destination.numpy()
    leaving = np.searchsorted(source, np.arange(len(part.keys) + 1))
    by_destination = np.argsort(destination, kind="stable")
    arriving = np.searchsorted(destination[by_destination], np.arange(len(part.keys) + 1))
    for position, k in enumerate(part.keys):
        rows = slice(leaving[position], leaving[position + 1])
        touching = np.r_[rows, by_destination[arriving[position] : arriving[position + 1]]]
        w, d = weight[touching].astype(np.float64), distance[touching]
        mass = w.sum()
        quality.inliers[k] = (w * (d < _INLIER_PX * unit)).sum() / mass if mass > 0 else 0.0
        quality.median_px[k] = np.median(d[w > 0]) if (w > 0).any() else np.nan
        w, d = weight[rows].astype(np.float64), distance[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            residual = (w * np.minimum(d, 10 * unit)).sum(0) / w.sum(0)
        quality.residual_px[k, part.points[position]] = residual[: len(part.points[position])]


@our_threads()
def solve(
    frames: FrameSequence,
    keyframes: Keyframes,
    intrinsics: Intrinsics,
    config: BaPosesConfig,
    progress: Progress | None = None,
    finds: Finds | None = None,
) -> BaPoses:
    """Cameras of all frames. finds: what `intrinsics.calibrate` found in the same frames; emptied.

    Returns cam2world with the first keyframe of each segment at identity; the scale of a segment is arbitrary (median
    depth 1 of its points). Flags: those of the inputs and `no_parallax`, `lost_frames`, `inconsistent`, `focal_unobservable`,
    `focal_uncertain`.
    """
    tell = progress or (lambda _phase, _share: None)
    measurements = Measurements(frames, config.grid_columns, config.matches, keyframes.followed(), finds)
    rows = [int(row) for row in keyframes.keyframe]
    measurements.add(rows, lambda: tell("features", len(measurements.keyframes) / len(rows)))
    scene = Map(measurements, intrinsics.camera_model, intrinsics.params)
    free = free_intrinsics(scene, intrinsics, config)
    mapper = Mapper(scene, config, free, keyframes.segment[keyframes.keyframe])
    total, done = len(keyframes.keyframe), 0

    def step() -> None:
        nonlocal done
        done += 1
        tell("mapping", min(1.0, done / total))

    segments = mapper.build("static" in keyframes.flags, step)
    for segment in segments:
        for _ in range(config.revisit_rounds if segment.parallax else 0):
            if not mapper.close(segment.keyframes, lambda: tell("revisits", 1.0)):
                break
    measurements.let_go()
    give_back_memory()
    free = mapper.refine_camera(segments)
    give_back_memory()
    mapper.finish(segments, free)
    give_back_memory()
    quality = judge(scene, segments, free, intrinsics, config)
    give_back_memory()
    found = gather(frames, keyframes, intrinsics, scene, mapper.add_lost(segments), quality, config, tell)
    measurements.finds.clear()
    return found


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
            trust[k] = (quality.usable[k, :count] if segment.parallax else m.keyframes[k].sigma[:count] < m.unit).astype(np.float64)
    world = np.zeros(len(m.keyframes), np.int32)
    for n, segment in enumerate(segments):
        world[list(segment.keyframes)] = n
    of_row = np.searchsorted(keyframes.keyframe, np.arange(len(frames)), side="right") - 1
    pose_frames(scene, frames, keyframes.segment[keyframes.keyframe], world, [s.parallax for s in segments], trust, poses, tell)
    interpolate_std(poses, keyframes, quality)
    cam2world = np.tile(np.eye(4), (len(frames), 1, 1))
    cam2world[:, :3, :3] = poses.rotation.transpose(0, 2, 1)
    cam2world[:, :3, 3] = -(cam2world[:, :3, :3] @ poses.translation[..., None])[..., 0]
    still = "static" in keyframes.flags
    tracked = (poses.inliers > config.min_inliers) | still
    tracked[[m.keyframes[next((k for k in s.keyframes if quality.inliers[k] > 0), s.keyframes[0])].row for s in segments]] = True
    parallax = np.array([s.parallax for s in segments])
    flags = (set(keyframes.flags) | set(intrinsics.flags)) - {"focal_unobservable"}
    if intrinsics.source != "given":
        flags |= focal_flags(quality.params_std[0] / scene.params[0] if parallax.any() else np.inf, config)
    said = {
        "no_parallax": not parallax.all(),
        "lost_frames": not tracked.all(),
        "inconsistent": is_inconsistent(quality.inliers),
        "segments": len(segments) > 1,
    }
    flags = (flags - {"segments"}) | {word for word, holds in said.items() if holds}
    shape = (len(m.keyframes), *m.grid_shape)
    inverse_depth = np.stack([scene.inverse_depth[k][:count] for k in range(len(m.keyframes))])
    residual = poses.residual_px[np.isfinite(poses.residual_px)]
    return BaPoses(
        cam2world=cam2world,
        tracked=tracked,
        segment=world[of_row],
        position_std=np.where(tracked, poses.position_std, np.nan),
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


def is_inconsistent(inliers: Float) -> bool:
    """Whether cameras contradict most of what was measured, in half of the keyframes (K,) that anything was measured of: then the map is
    wrong somewhere, however sure each part of it is."""
    measured = inliers[inliers > 0]
    return len(measured) > 0 and float(np.median(measured)) < _AGREE


def focal_flags(std: float, config: BaPosesConfig) -> set[str]:
    """What is to be said of an estimated focal length with this relative standard deviation."""
    if std >= OBSERVABLE_STD:
        return {"focal_unobservable"}
    return {"focal_uncertain"} if std > config.max_focal_std else set()


def interpolate_std(poses: FramePoses, keyframes: Keyframes, quality: Quality) -> None:
    """Add to each frame's own uncertainty that of the keyframes it was posed against, interpolated over rows."""
    rows = np.arange(len(poses.position_std))
    from_map = np.interp(rows, keyframes.keyframe, quality.position_std)
    own = np.where(np.isin(rows, keyframes.keyframe), 0.0, poses.position_std)
    poses.position_std = np.hypot(from_map, own)
