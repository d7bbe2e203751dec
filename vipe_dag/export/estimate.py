"""What every export needs of a video: poses, times and cameras, read once from the store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError, SourceError
from vipe_dag.result_arrays import ba_poses_from
from vipe_dag.results import BaPoses
from vipe_dag.store import VideoStore
from vipe_dag.video import NOMINAL_FPS


@dataclass(frozen=True)
class Estimate:
    """frame (T,) int64 index in the source, time (T,) float64 seconds; working, source: the camera at working and source resolution.

    fps: mean rate of the times.
    """

    video_id: str
    frame: NDArray[np.int64]
    time: NDArray[np.float64]
    poses: BaPoses
    working: Calibration
    source: Calibration
    source_uri: str
    source_digest: str
    fps: float

    @property
    def lost_note(self) -> tuple[str, ...]:
        """A sentence when frames have no pose."""
        lost = int((~self.poses.tracked).sum())
        return (f"{lost} of {len(self.frame)} frames have no pose and are left out",) if lost else ()


def estimate_of(store: VideoStore, video_id: str) -> Estimate:
    """Raises StoreError where the video, its frames or its ba_poses are missing."""
    frames, stored = store.open(video_id, "frames"), store.open(video_id, "ba_poses")
    poses = ba_poses_from(stored)
    width, height, source_width, source_height = (int(frames.attrs[name]) for name in ("width", "height", "source_width", "source_height"))
    time = np.asarray(frames["time"].values, np.float64)
    return Estimate(
        video_id=video_id,
        frame=np.asarray(frames["frame"].values, np.int64),
        time=time,
        poses=poses,
        working=Calibration(poses.camera_model, poses.params, width, height),
        source=Calibration(poses.camera_model, np.asarray(stored["source_params"].values), source_width, source_height),
        source_uri=str(frames.attrs["source_uri"]),
        source_digest=str(frames.attrs["source_digest"]),
        fps=float((len(time) - 1) / (time[-1] - time[0])) if len(time) > 1 else NOMINAL_FPS,
    )


@dataclass(frozen=True)
class Selection:
    """Tracked rows of one segment, ascending, and sentences on what is left out."""

    rows: NDArray[np.int64]
    notes: tuple[str, ...]


def tracked_rows(estimate: Estimate) -> NDArray[np.int64]:
    """Rows with a pose. Raises EstimationError when there is none."""
    rows = np.flatnonzero(estimate.poses.tracked)
    if not len(rows):
        raise EstimationError(f"{estimate.video_id}: no frame has a pose, there is nothing to write; the flags of its ba_poses say why")
    return rows


def one_segment(estimate: Estimate, segment: int | None) -> Selection:
    """The tracked rows of a segment, by default of the one with most of them: each segment has its own origin and scale.

    Raises SourceError for a segment without tracked frames, EstimationError when no frame is tracked.
    """
    rows = tracked_rows(estimate)
    numbers, counts = np.unique(estimate.poses.segment[rows], return_counts=True)
    chosen = int(numbers[counts.argmax()]) if segment is None else segment
    if chosen not in numbers:
        raise SourceError(f"{estimate.video_id}: no segment {chosen} with poses; there are: {', '.join(map(str, numbers))}")
    notes = estimate.lost_note
    if len(numbers) > 1:
        notes += (f"segment {chosen} of {', '.join(map(str, numbers))}: each has its own origin and scale; choose with --segment",)
    return Selection(rows[estimate.poses.segment[rows] == chosen], notes)
