"""A film to look at: each frame at working resolution, and its depth in colours beside it, near things bright. Unknown depth is black."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import EstimationError
from vipe_dag.export import Exported
from vipe_dag.export.movie import write_movie
from vipe_dag.export.target import complete_file
from vipe_dag.sequence import DepthSequence, FrameSequence
from vipe_dag.store import VideoStore
from vipe_dag.video import NOMINAL_FPS

_RANGE_FRAMES = 16
"""Frames from which the range of colours is taken, one for the whole film so that it does not flicker."""
_RANGE_PERCENT = (2.0, 98.0)


def export(store: VideoStore, video_id: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write every frame, timed as in the source."""
    frames = store.frames(video_id)
    depth = store.depth(video_id, "aligned_depth")
    with complete_file(out, overwrite) as unfinished:
        limits = inverse_range(depth)
        if limits is None:
            raise EstimationError(f"{video_id}: no depth is known in the frames looked at; there is nothing to colour")
        span = float(frames.time[-1] - frames.time[0])
        write_movie(unfinished, _pictures(frames, depth, limits), (len(frames) - 1) / span if span else NOMINAL_FPS)
    return Exported(out)


def _pictures(frames: FrameSequence, depth: DepthSequence, limits: tuple[float, float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    for row in range(len(frames)):
        beside = np.concatenate([frames.rgb(row), coloured(depth.depth(row)[0], limits)], axis=1)
        yield float(frames.time[row] - frames.time[0]), beside


def coloured(z_depth: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of (H, W) depth: turbo over inverse depth between `limits`, black where it is unknown."""
    from matplotlib import colormaps

    known = np.isfinite(z_depth) & (z_depth > 0)
    inverse = 1 / np.where(known, z_depth, 1)
    shade = np.clip((inverse - limits[0]) / (limits[1] - limits[0]), 0, 1)
    rgb = np.asarray(colormaps["turbo"](shade, bytes=True))[..., :3]
    return np.where(known[..., None], rgb, 0).astype(np.uint8)


def inverse_range(depth: DepthSequence) -> tuple[float, float] | None:
    """Inverse depth of far and of near things in a video, but for outliers; None where no depth is known."""
    rows = np.unique(np.linspace(0, len(depth) - 1, _RANGE_FRAMES).astype(int))
    maps = (depth.depth(int(row))[0][::4, ::4] for row in rows)
    known = np.concatenate([1 / z[np.isfinite(z) & (z > 0)] for z in maps])
    if not len(known):
        return None
    low, high = np.percentile(known, _RANGE_PERCENT).tolist()
    return low, max(high, low * (1 + 1e-3))
