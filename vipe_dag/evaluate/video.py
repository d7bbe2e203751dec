"""Evaluate one stored video: its poses, calibration and depth against reference files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError, SourceError, StoreError, VipeDagError
from vipe_dag.evaluate.depth import DepthAlignment, DepthErrors, DepthPair, compare_depth
from vipe_dag.evaluate.references import MILLIMETRES, DepthFolder, Reference, parse_reference, read_reference, resize_nearest
from vipe_dag.evaluate.temporal import TemporalErrors, TimedDepth, temporal_errors
from vipe_dag.evaluate.trajectory import Aligned, Alignment, TrajectoryErrors, compare

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore


@dataclass(frozen=True)
class Evaluation:
    """Errors of one video. depth and focal_error_percent are None where no reference was given for them, temporal (which needs none, and
    takes out the motion of the estimate's own cameras) where it was not wanted or consecutive frames have no depth in common.
    """

    video_id: str
    reference: str
    trajectory: TrajectoryErrors
    depth: DepthErrors | None = None
    focal_error_percent: float | None = None
    temporal: TemporalErrors | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "video_id": self.video_id,
            "reference": self.reference,
            "trajectory": self.trajectory.to_dict(),
            "depth": self.depth.to_dict() if self.depth else None,
            "focal_error_percent": self.focal_error_percent,
            "temporal": self.temporal.to_dict() if self.temporal else None,
        }


@dataclass(frozen=True)
class StoredPoses:
    """Tracked frames of a video: frame (n,) source index, time (n,) seconds, cam2world (n, 4, 4), segment (n,).

    camera: refined by bundle adjustment, at working resolution; source_size: (width, height) of the source.
    """

    frame: NDArray[np.int64]
    time: NDArray[np.float64]
    cam2world: NDArray[np.float64]
    segment: NDArray[np.int32]
    camera: Calibration
    source_size: tuple[int, int]


def stored_poses(store: VideoStore, video_id: str) -> StoredPoses:
    """The tracked frames of ba_poses. Raises StoreError where the video or the asset is missing."""
    frames, poses = store.group(video_id, "frames"), store.group(video_id, "ba_poses")
    width, height, source_width, source_height = (
        int(str(frames.attrs[name])) for name in ("width", "height", "source_width", "source_height")
    )

    def array(group: Any, name: str) -> NDArray[Any]:
        return np.asarray(group[name][:])

    tracked = array(poses, "tracked")
    camera = Calibration(str(poses.attrs["camera_model"]), array(poses, "params"), width, height)
    return StoredPoses(
        array(frames, "frame")[tracked],
        array(frames, "time")[tracked],
        array(poses, "cam2world")[tracked],
        array(poses, "segment")[tracked],
        camera,
        (source_width, source_height),
    )


def evaluate_video(
    root: str | Path | VideoStore,
    video_id: str,
    reference: str | Path | None = None,
    *,
    depth_dir: str | Path | None = None,
    intrinsics: str | Path | None = None,
    alignment: Alignment = "sim3",
    depth_alignment: DepthAlignment = "median",
    depth_unit: float = MILLIMETRES,
    tolerance: float | None = None,
    temporal: bool = True,
) -> Evaluation:
    """Compare a stored video with reference files.

    reference: TUM (associated by time, within `tolerance` seconds, by default half the median frame gap) or KITTI poses (line i = source
    frame i); None takes the one that is registered for the video. depth_dir: see DepthFolder; compared with aligned_depth after
    `depth_alignment`; depth_unit: one step of a 16-bit PNG. intrinsics: JSON with fx fy cx cy at source resolution. temporal: also say how
    steady aligned_depth is. Raises SourceError, StoreError, EstimationError.
    """
    from vipe_dag.store import VideoStore

    store = root if isinstance(root, VideoStore) else VideoStore(root)
    poses = stored_poses(store, video_id)
    given = registered_reference(store, video_id) if reference is None else read_reference(reference)
    try:
        errors, _ = compare_with(poses, given, alignment, tolerance)
        depth = None if depth_dir is None else _depth_errors(store, video_id, depth_dir, depth_alignment, depth_unit)
    except EstimationError as error:
        raise EstimationError(f"{video_id} against {given.origin}: {error}") from error
    focal = None if intrinsics is None else focal_error_percent(poses.camera, read_intrinsics(intrinsics, *poses.source_size))
    return Evaluation(video_id, given.origin, errors, depth, focal, evaluate_steadiness(store, video_id) if temporal else None)


def register_reference(store: VideoStore, video_id: str, path: str | Path) -> None:
    """Copy a trajectory file into the store as what this video is judged by. Raises SourceError: not one; StoreError: no such video."""
    read_reference(path)
    if video_id not in store.videos():
        store.source(video_id)
    store.register_reference(video_id, Path(path).read_bytes())


def registered_reference(store: VideoStore, video_id: str) -> Reference:
    """Raises StoreError when none is registered, SourceError when it is damaged."""
    content = store.reference(video_id)
    if content is None:
        raise StoreError(f"{video_id} has no registered reference; give a file with --reference, and keep it with --register")
    place = store.reference_place(video_id)
    try:
        return parse_reference(content.decode(), place)
    except UnicodeDecodeError as error:
        raise SourceError(f"{place}: cannot be read as a trajectory ({error})") from error


def evaluate_steadiness(store: VideoStore, video_id: str) -> TemporalErrors | None:
    """Temporal errors of aligned_depth with the video's own poses; measured pixels are its static areas, since depth is triangulated where
    the world holds still. None where there is no such depth, or no two consecutive frames have some in common. Raises StoreError.
    """
    if store.current(video_id, "aligned_depth") is None:
        return None
    from vipe_dag.store.reader import stored_array

    poses, depth = store.group(video_id, "ba_poses"), store.depth(video_id, "aligned_depth")
    cam2world, tracked, segment = (np.asarray(stored_array(poses, name)[:]) for name in ("cam2world", "tracked", "segment"))
    if len(depth) != len(tracked):
        raise StoreError(f"{video_id}: aligned_depth has {len(depth)} rows, ba_poses {len(tracked)}; run the video until aligned_depth")

    def frames() -> Iterator[TimedDepth]:
        for row in np.flatnonzero(tracked).tolist():
            z_depth, _, measured = depth.depth(row)
            yield TimedDepth(row, z_depth, measured, cam2world[row], int(segment[row]))

    try:
        return temporal_errors(frames(), stored_poses(store, video_id).camera)
    except EstimationError:
        return None


def compare_with(
    poses: StoredPoses, reference: Reference, alignment: Alignment = "sim3", tolerance: float | None = None
) -> tuple[TrajectoryErrors, list[Aligned]]:
    """Trajectory errors of stored poses; a reference without times is matched by source frame index. Raises EstimationError."""
    if reference.time is None:
        index = np.arange(len(reference.cam2world), dtype=np.float64)
        return compare(poses.frame.astype(np.float64), poses.cam2world, index, reference.cam2world, alignment, poses.segment, 0.25)
    return compare(poses.time, poses.cam2world, reference.time, reference.cam2world, alignment, poses.segment, tolerance)


def focal_error_percent(estimate: Calibration, reference: Calibration) -> float:
    """Relative error, in percent, of the focal length sqrt(fx fy), after scaling the reference to the estimate's resolution."""
    truth = reference.scaled(estimate.width, estimate.height)
    return float(100 * abs(np.sqrt(estimate.params[0] * estimate.params[1] / (truth.params[0] * truth.params[1])) - 1))


def read_intrinsics(path: str | Path, width: int, height: int) -> Calibration:
    """A calibration file; width and height are the resolution it refers to where it names none. Raises SourceError."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a calibration ({error})") from error
    return Calibration.from_json(content, str(path), width, height)


def _depth_errors(store: VideoStore, video_id: str, directory: str | Path, alignment: DepthAlignment, unit: float) -> DepthErrors:
    folder = DepthFolder(directory, _frame_stems(store, video_id), unit)
    depth = store.depth(video_id, "aligned_depth")
    frame = np.asarray(store.group(video_id, "frames")["frame"][:])  # type: ignore[index]
    rows = [row for row in range(len(depth)) if int(frame[row]) in folder]
    if not rows:
        raise EstimationError(
            f"no depth map in {folder} belongs to a frame: the maps are of frames {folder.frames[0]} to {folder.frames[-1]}, "
            f"the video has {int(frame[0])} to {int(frame[-1])}"
        )

    def pairs() -> Iterator[DepthPair]:
        for row in rows:
            estimate = depth.depth(row)[0]
            yield estimate, resize_nearest(folder.read(int(frame[row])), *estimate.shape)

    return compare_depth(pairs, alignment)


def _frame_stems(store: VideoStore, video_id: str) -> tuple[str, ...]:
    """Stems of the image files of a folder source; empty for a video file, and for a source that is no longer there."""
    from vipe_dag.video import open_source
    from vipe_dag.video.images import ImageFolder

    try:
        source = open_source(store.source(video_id).uri)
    except VipeDagError:
        return ()
    return source.stems if isinstance(source, ImageFolder) else ()
