"""KITTI odometry trajectories: one line of twelve numbers per frame, the upper three rows of cam2world, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.export import Exported
from vipe_dag.export.estimate import estimate_of
from vipe_dag.export.target import complete_file
from vipe_dag.store import VideoStore


def export(store: VideoStore, video_id: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write the trajectory of a video. Line i is row i of the video, thus frame i of a source taken whole.

    Raises SourceError when a frame has no pose: the format has no line for that.
    """
    estimate = estimate_of(store, video_id)
    lost = np.flatnonzero(~estimate.poses.tracked)
    if len(lost):
        raise SourceError(
            f"{video_id}: {len(lost)} of {len(estimate.frame)} frames have no pose (row {lost[0]} first), and KITTI has a line for every "
            "frame; export tum instead, which leaves them out"
        )
    partial = bool((estimate.frame != np.arange(len(estimate.frame))).any())
    notes = ("lines are rows of the clip, not frames of the source",) if partial else ()
    return Exported(write(out, estimate.poses.cam2world, overwrite), notes)


def write(out: str | Path, cam2world: NDArray[np.float64], overwrite: bool = False) -> Path:
    """Write poses (T, 4, 4) float64 with 17 digits, so that reading back is exact; returns the path. Raises SourceError."""
    out = Path(out)
    with complete_file(out, overwrite) as unfinished:
        np.savetxt(unfinished, np.asarray(cam2world, np.float64)[:, :3].reshape(-1, 12), fmt="%.17g")
    return out
