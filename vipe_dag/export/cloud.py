"""The coloured point cloud of a video: depth of tracked frames, carried into the world, thinned as it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.errors import ConfigError, EstimationError
from vipe_dag.export.estimate import Estimate
from vipe_dag.sequence import DepthSequence, FrameSequence

_BATCH_POINTS = 4_000_000
"""Points that are held before voxels are merged."""
_SCALE_FRAMES = 8
"""Frames whose median depth gives the unit of a voxel."""


@dataclass(frozen=True)
class Cloud:
    """xyz (N, 3) float32 in the world of the poses; rgb (N, 3) uint8; confidence (N,) uint8."""

    xyz: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    confidence: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Thinning:
    """Which points are taken.

    every: of the frames, each every-th; stride: of the pixels, each stride-th along both axes; measured_only: leave out what was
    completed rather than triangulated; min_confidence: 0 to 255; voxel: edge of the cubes in which points are averaged, as a share of the
    median depth, 0 for none. Raises ConfigError for values out of bounds.
    """

    every: int = 4
    stride: int = 2
    measured_only: bool = True
    min_confidence: int = 64
    voxel: float = 0.005

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("every", self.every, 1, 1_000_000),
            ("stride", self.stride, 1, 1_000),
            ("min-confidence", self.min_confidence, 0, 255),
            ("voxel", self.voxel, 0, 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"--{name} {value}: expected {low} to {high}")


def cloud_of(estimate: Estimate, rows: NDArray[np.int64], frames: FrameSequence, depth: DepthSequence, thinning: Thinning) -> Cloud:
    """Points of every thinning.every-th of the rows, which must share one world. Raises EstimationError when nothing is left."""
    rows = rows[:: thinning.every]
    pieces = _pieces(estimate, rows, frames, depth, thinning)
    cloud = _joined(pieces) if thinning.voxel == 0 else _merged(pieces, thinning.voxel * _median_depth(rows, depth, estimate.video_id))
    if not len(cloud):
        raise EstimationError(
            f"{estimate.video_id}: no depth passes the filters; lower --min-confidence, or take completed depth too with --all-depth"
        )
    return cloud


def rays(camera: Calibration) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rays (H, W, 3) float64 with z = 1 through the pixel centres, and (H, W) bool: the lens reaches the pixel."""
    import torch

    from vipe_kernels.cameras import unproject_valid

    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    found, valid = unproject_valid(torch.from_numpy(np.stack([u, v], -1)), torch.from_numpy(camera.params.copy()), camera.camera_model)
    return found.numpy(), valid.numpy()


def _pieces(
    estimate: Estimate, rows: NDArray[np.int64], frames: FrameSequence, depth: DepthSequence, thinning: Thinning
) -> Iterator[Cloud]:
    thin = (slice(None, None, thinning.stride),) * 2
    directions, reached = (array[thin] for array in rays(estimate.working))
    for row in rows:
        whole = depth.depth(int(row))
        z, confidence, measured = whole[0][thin], whole[1][thin], whole[2][thin]
        keep = reached & np.isfinite(z) & (z > 0) & (confidence >= thinning.min_confidence)
        if thinning.measured_only:
            keep &= measured
        pose = estimate.poses.cam2world[row]
        points = (directions[keep] * z[keep, None]) @ pose[:3, :3].T + pose[:3, 3]
        yield Cloud(points.astype(np.float32), frames.rgb(int(row))[thin][keep], confidence[keep])


def _median_depth(rows: NDArray[np.int64], depth: DepthSequence, video_id: str) -> float:
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _SCALE_FRAMES).astype(int))]
    known = np.concatenate([z[np.isfinite(z) & (z > 0)] for z in (depth.depth(int(row))[0][::4, ::4] for row in chosen)])
    if not len(known):
        raise EstimationError(f"{video_id}: no depth is known in the frames looked at; there is no cloud to write")
    return float(np.median(known))


def _joined(pieces: Iterable[Cloud]) -> Cloud:
    found = list(pieces)
    return Cloud(*(np.concatenate([getattr(piece, name) for piece in found]) for name in ("xyz", "rgb", "confidence")))


def _merged(pieces: Iterable[Cloud], edge: float) -> Cloud:
    """One point per cube of that edge: mean position and colour, highest confidence; means are weighted by the points behind them."""
    held: list[NDArray[np.float64]] = []
    waiting = 0
    for piece in pieces:
        ones = np.ones((len(piece), 1))
        held.append(np.hstack([piece.xyz, piece.rgb, ones, piece.confidence[:, None]]).astype(np.float64))
        waiting += len(piece)
        if waiting > _BATCH_POINTS:
            held, waiting = [_cubes(np.concatenate(held), edge)], 0
    table = _cubes(np.concatenate(held), edge)
    return Cloud(table[:, :3].astype(np.float32), np.rint(table[:, 3:6]).astype(np.uint8), table[:, 7].astype(np.uint8))


def _cubes(table: NDArray[np.float64], edge: float) -> NDArray[np.float64]:
    """Rows x y z r g b weight confidence, merged by cube."""
    x, y, z = (np.unique(np.floor(column / edge), return_inverse=True)[1].astype(np.int64) for column in table[:, :3].T)
    ny, nz = (int(axis.max(initial=0)) + 1 for axis in (y, z))
    _, cube = np.unique((x * ny + y) * nz + z, return_inverse=True)
    count = int(cube.max(initial=-1)) + 1
    weight = np.bincount(cube, table[:, 6], count)
    means = [np.bincount(cube, table[:, column] * table[:, 6], count) / weight for column in range(6)]
    confidence = np.zeros(count)
    np.maximum.at(confidence, cube, table[:, 7])
    return np.column_stack([*means, weight, confidence])
