"""Clips with their true cameras as a result of bundle adjustment, and both depth stages run on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag import synthetic
from vipe_dag.config import AlignedDepthConfig, DenseDepthConfig
from vipe_dag.results import AlignedBlock, BaPoses, DepthBlock
from vipe_dag.sequence import ArrayDepth, ArrayFrames
from vipe_dag.stages import aligned_depth, dense_depth


def true_poses(clip: synthetic.SyntheticClip, step: int = 4, spacing: int = 12, noise: float = 0.01) -> BaPoses:
    """The exact cameras; every `step`-th row is a keyframe whose points, `spacing` pixels apart, have inverse depths off by `noise`."""
    rng = np.random.default_rng(0)
    height, width, count = clip.camera.height, clip.camera.width, len(clip)
    keyframe = np.arange(0, count, step)
    v, u = np.mgrid[spacing // 2 : height : spacing, spacing // 2 : width : spacing]
    z, body = (np.stack(column)[:, v, u] for column in zip(*(clip.truth(int(k)) for k in keyframe), strict=True))
    valid = np.isfinite(z) & (body == 0)
    inverse_depth = np.where(valid, np.exp(noise * rng.standard_normal(z.shape)) / np.where(valid, z, 1), 0).astype(np.float32)
    return BaPoses(
        cam2world=clip.cam2world,
        tracked=np.ones(count, bool),
        segment=clip.shot,
        position_std=np.zeros(count),
        frame_residual_px=np.zeros(count, np.float32),
        inlier_share=np.ones(count, np.float32),
        keyframe=keyframe,
        point_uv=np.broadcast_to(np.stack((u, v), -1).astype(np.float32), (*z.shape, 2)),
        inverse_depth=inverse_depth,
        valid=valid,
        residual_px=np.zeros(z.shape, np.float32),
        camera_model=clip.camera.camera_model,
        params=clip.camera.params,
        params_std=np.zeros(9),
        parallax=np.ones(int(clip.shot.max()) + 1, bool),
        residual_px_median=0.3,
        iterations=1,
        flags=(),
    )


@dataclass(frozen=True)
class DepthRun:
    """Depth of both stages, the per-row scale, and the truth (T, H, W)."""

    dense: ArrayDepth
    aligned: ArrayDepth
    scale: NDArray[np.float64]
    truth: NDArray[np.float32]

    def error(self, depth: ArrayDepth) -> NDArray[np.float32]:
        """(T, H, W) relative error after one median scale for the clip; NaN where truth or estimate is unknown."""
        with np.errstate(invalid="ignore"):
            ratio = np.where(np.isfinite(self.truth), depth.z_depth / self.truth, np.nan)
        return np.abs(ratio / np.nanmedian(ratio) - 1).astype(np.float32)


def joined(blocks: list[DepthBlock] | list[AlignedBlock]) -> ArrayDepth:
    return ArrayDepth(*(np.concatenate([getattr(block, name) for block in blocks]) for name in ("z_depth", "confidence", "measured")))


def run(clip: synthetic.SyntheticClip, poses: BaPoses | None = None, frames: ArrayFrames | None = None) -> DepthRun:
    poses = true_poses(clip) if poses is None else poses
    frames = clip.frames() if frames is None else frames
    dense = joined(list(dense_depth.triangulate(frames, poses, DenseDepthConfig())))
    blocks = list(aligned_depth.align(frames, dense, poses, AlignedDepthConfig()))
    truth = np.stack([clip.truth(row)[0] for row in range(len(clip))])
    return DepthRun(dense, joined(blocks), np.concatenate([block.scale for block in blocks]), truth)
