"""What each stage returns: frozen records of plain NumPy arrays, named as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.sequence import luma

PARAM_NAMES = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3")
"""One camera vector everywhere, float64. For `fisheye` the slots k1 k2 p1 p2 hold Kannala-Brandt k1..k4."""


@dataclass(frozen=True)
class FrameBlock:
    """Consecutive decoded frames: index (n,) int64 in the source, time (n,) float64 seconds, rgb (n, H, W, 3) uint8."""

    index: NDArray[np.int64]
    time: NDArray[np.float64]
    rgb: NDArray[np.uint8]

    @property
    def luma(self) -> NDArray[np.uint8]:
        """(n, H, W) luma of rgb."""
        return np.stack([luma(rgb) for rgb in self.rgb])


@dataclass(frozen=True)
class Keyframes:
    """Where the camera moved enough.

    keyframe (K,) int64 rows, ascending; motion (T,) float32, median flow in pixels since the last keyframe of the first pass; segment
    (T,) int32, which uninterrupted shot a row belongs to; sharpness (T,) float32, variance of the Laplacian of grey levels; flow_to_next,
    flow_from_next (K, fy, fx, 2) float16 pixels: where the cells that a keyframe is divided into are in the next one, and the other way, as
    followed through the frames between; NaN where fewer than two are between or it was not followed; flags: words of the data contract.
    """

    keyframe: NDArray[np.int64]
    motion: NDArray[np.float32]
    segment: NDArray[np.int32]
    sharpness: NDArray[np.float32]
    flow_to_next: NDArray[np.float16]
    flow_from_next: NDArray[np.float16]
    flags: tuple[str, ...]

    def followed(self) -> dict[tuple[int, int], NDArray[np.float16]]:
        """What is known of the flow from a row to another, (fy, fx, 2) pixels."""
        known = [n for n in range(len(self.keyframe) - 1) if np.isfinite(self.flow_to_next[n]).all()]
        rows = [(int(self.keyframe[n]), int(self.keyframe[n + 1])) for n in known]
        there = {(a, b): self.flow_to_next[n] for n, (a, b) in zip(known, rows, strict=True)}
        return there | {(b, a): self.flow_from_next[n] for n, (a, b) in zip(known, rows, strict=True)}


@dataclass(frozen=True)
class Intrinsics:
    """Calibration at working resolution: params, params_std (9,) float64 in the order of PARAM_NAMES (a given value has std 0).

    source is `given`, `metadata` or `estimated`. candidate_focal, candidate_cost (C,): where
    the starts worth pursuing ended, and the robust cost each reached.
    focal_observable is False when the motion does not determine the focal length and the prior decided.
    """

    camera_model: str
    params: NDArray[np.float64]
    params_std: NDArray[np.float64]
    source: str
    candidate_focal: NDArray[np.float64]
    candidate_cost: NDArray[np.float64]
    focal_observable: bool
    flags: tuple[str, ...]


@dataclass(frozen=True)
class BaPoses:
    """Cameras of every frame and the sparse inverse depth of keyframes, from bundle adjustment.

    cam2world (T, 4, 4) float64, OpenCV axes, one arbitrary scale per segment; tracked (T,) bool; segment (T,) int32;
    position_std (T,) float64 in the same unit as translations, after the similarity that fits the positions of the segment to the truth
    best, so that its RMS is the ATE to be expected; NaN where not tracked; frame_residual_px, inlier_share (T,) float32;
    keyframe (K,) int64 rows; point_uv (K, gy, gx, 2) float32 pixel of each grid point in its keyframe; inverse_depth (K, gy, gx) float32
    (1 / z-depth); valid (K, gy, gx) bool; residual_px (K, gy, gx) float32; params, params_std (9,) float64 at working resolution;
    parallax (S,) bool, per segment: was a translation observable; residual_px_median float; iterations int.
    """

    cam2world: NDArray[np.float64]
    tracked: NDArray[np.bool_]
    segment: NDArray[np.int32]
    position_std: NDArray[np.float64]
    frame_residual_px: NDArray[np.float32]
    inlier_share: NDArray[np.float32]
    keyframe: NDArray[np.int64]
    point_uv: NDArray[np.float32]
    inverse_depth: NDArray[np.float32]
    valid: NDArray[np.bool_]
    residual_px: NDArray[np.float32]
    camera_model: str
    params: NDArray[np.float64]
    params_std: NDArray[np.float64]
    parallax: NDArray[np.bool_]
    residual_px_median: float
    iterations: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class DepthBlock:
    """Depth of consecutive rows from `start`: z_depth (n, H, W) float32 (NaN = unknown), confidence (n, H, W) uint8,
    measured (n, H, W) bool."""

    start: int
    z_depth: NDArray[np.float32]
    confidence: NDArray[np.uint8]
    measured: NDArray[np.bool_]


@dataclass(frozen=True)
class AlignedBlock:
    """A DepthBlock in the scale of the poses: inverse depth was mapped by scale * x + shift, per row;
    alignment_residual (n,) is relative."""

    start: int
    z_depth: NDArray[np.float32]
    confidence: NDArray[np.uint8]
    measured: NDArray[np.bool_]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    alignment_residual: NDArray[np.float32]
