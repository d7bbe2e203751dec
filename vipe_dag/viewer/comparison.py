"""Other trajectories moved into the world of a viewed video: references, and other generations of the same video."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import EstimationError
from vipe_dag.evaluate import Reference, align, associate, default_tolerance
from vipe_dag.viewer.video import ViewedVideo


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation."""

    scale: float = 1.0
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    translation: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def points(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, 3) moved."""
        return self.scale * points @ self.rotation.T + self.translation

    def poses(self, cam2world: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 4, 4) cameras moved; rotations stay rotations."""
        moved = cam2world.copy()
        moved[:, :3, :3] = self.rotation @ cam2world[:, :3, :3]
        moved[:, :3, 3] = self.points(cam2world[:, :3, 3])
        return moved


def similarity_onto(estimate: NDArray[np.float64], target: NDArray[np.float64]) -> Similarity:
    """The best similarity that moves cameras (n, 4, 4) onto others (n, 4, 4), n > 1: Umeyama's, through vipe_dag.evaluate."""
    found = align(estimate, target)
    rotation = found.estimate[0, :3, :3] @ estimate[0, :3, :3].T
    return Similarity(found.scale, rotation, found.estimate[0, :3, 3] - found.scale * rotation @ estimate[0, :3, 3])


def reference_paths(video: ViewedVideo, reference: Reference) -> list[NDArray[np.float64]]:
    """Positions (n, 3) of the reference in the world of the video, one path per segment that has two frames in common with it.

    A reference without times is matched by source frame. Raises EstimationError when no segment has two.
    """
    if reference.time is None:
        time, reference_time, tolerance = video.frame.astype(np.float64), np.arange(len(reference.cam2world), dtype=np.float64), 0.25
    else:
        time, reference_time, tolerance = video.time, reference.time, default_tolerance(video.time)
    tracked = np.flatnonzero(video.tracked)
    rows, reference_rows = associate(time[tracked], reference_time, tolerance) if len(tracked) else (tracked, tracked)
    rows = tracked[rows]
    paths = []
    for number in np.unique(video.segment[rows]):
        inside = video.segment[rows] == number
        if inside.sum() > 1:
            ours, theirs = rows[inside], reference_rows[inside]
            moved = similarity_onto(reference.cam2world[theirs], video.cam2world[ours])
            paths.append(moved.poses(reference.cam2world[theirs[0] : theirs[-1] + 1])[:, :3, 3])
    if not paths:
        raise EstimationError(
            f"{reference.origin}: fewer than two of its poses belong to tracked frames of one segment of {video.video_id}; "
            "give a trajectory with the timestamps of this source"
        )
    return paths


def generation_onto(other: ViewedVideo, video: ViewedVideo) -> dict[int, Similarity]:
    """Per segment of `other` the similarity that moves it onto `video`, from frames tracked in both; segments without two are absent."""
    _, theirs, ours = np.intersect1d(other.frame, video.frame, return_indices=True)
    usable = other.tracked[theirs] & video.tracked[ours]
    theirs, ours = theirs[usable], ours[usable]
    found = {}
    for number in np.unique(other.segment[theirs]):
        inside = other.segment[theirs] == number
        if inside.sum() > 1:
            found[int(number)] = similarity_onto(other.cam2world[theirs[inside]], video.cam2world[ours[inside]])
    return found
