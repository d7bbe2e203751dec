"""Recordings for Rerun (https://rerun.io): cameras, pictures and depth over time, and the cloud, one tree of entities for each segment.

    segment_K/camera         pose (camera to world) and pinhole of the present frame, at working resolution
    segment_K/camera/rgb     its picture, JPEG
    segment_K/camera/depth   its depth in the scale of the poses, float16; 0 is unknown
    segment_K/path, segment_K/keyframes, segment_K/cloud    the whole segment
    segment, keyframe        number of the segment; 1 at keyframes, else 0

The timeline `time` is in seconds of the source, `frame` counts its frames. Rerun counts pixels from the corner of the picture: the centre
of the first pixel is at 0.5.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vipe_dag.errors import ConfigError, EstimationError
from vipe_dag.export import Exported
from vipe_dag.export.cloud import Thinning, cloud_of
from vipe_dag.export.estimate import Estimate, estimate_of, tracked_rows
from vipe_dag.export.mp4 import inverse_range
from vipe_dag.export.pictures import JPEG_QUALITY
from vipe_dag.export.straight import Straight
from vipe_dag.export.target import complete_file
from vipe_dag.store import VideoStore

if TYPE_CHECKING:
    import rerun as rr

_FRAMES_IN_MEMORY = 32
"""Frames that Rerun may hold before they have to be on disk."""


def export(store: VideoStore, video_id: str, out: Path, *, thinning: Thinning | None = None, overwrite: bool = False) -> Exported:
    """Write every tracked frame, one after another, and the cloud of each segment. Raises ConfigError when rerun-sdk is not installed."""
    estimate = estimate_of(store, video_id)
    rows = tracked_rows(estimate)
    notes = list(estimate.lost_note)
    straight = Straight(estimate.working)
    if straight.bent:
        notes.append(f"the lens is {estimate.poses.camera_model} with distortion: Rerun gets pictures and depth as a pinhole sees them")
    with complete_file(out, overwrite) as unfinished:
        pointer = store.current(video_id, "ba_poses")
        with _recording(unfinished, f"{video_id}-{pointer.generation if pointer else ''}", video_id) as stream:
            for segment in np.unique(estimate.poses.segment[rows]).tolist():
                notes += _whole_segment(stream, store, estimate, rows[estimate.poses.segment[rows] == segment], thinning or Thinning())
            _frame_by_frame(stream, store, estimate, straight)
    return Exported(out, tuple(notes))


@contextmanager
def _recording(path: Path, identity: str, name: str) -> Iterator[rr.RecordingStream]:
    """A stream into a new file, complete when the block is left. Raises OSError when the file cannot be written."""
    try:
        import rerun as rr
    except ImportError as error:
        raise ConfigError("the export to rerun needs the package rerun-sdk: pip install 'vipe-dag[rerun]'") from error
    stream = rr.RecordingStream("vipe-dag", recording_id=identity)
    try:
        with _writing():
            stream.save(path)
        stream.send_recording_name(name)
        yield stream
        with _writing():
            stream.flush()
    finally:
        stream.disconnect()


@contextmanager
def _writing() -> Iterator[None]:
    """Rerun's word for a file that cannot be written, as everybody else's."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _whole_segment(
    stream: rr.RecordingStream, store: VideoStore, estimate: Estimate, rows: NDArray[np.int64], thinning: Thinning
) -> tuple[str, ...]:
    """What does not change over time, for the rows of one segment; a sentence when it has no cloud."""
    import rerun as rr

    poses, place = estimate.poses, _place(estimate, int(rows[0]))
    stream.log(place, rr.ViewCoordinates.RDF, static=True)
    stream.log(f"{place}/path", rr.LineStrips3D([poses.cam2world[rows, :3, 3]]), static=True)
    stream.log(f"{place}/keyframes", rr.Points3D(poses.cam2world[np.intersect1d(rows, poses.keyframe), :3, 3]), static=True)
    try:
        cloud = cloud_of(estimate, rows, store.frames(estimate.video_id), store.depth(estimate.video_id, "aligned_depth"), thinning)
    except EstimationError as error:
        return (f"{place} has no cloud: {error}",)
    stream.log(f"{place}/cloud", rr.Points3D(cloud.xyz, colors=cloud.rgb), static=True)
    return ()


def _frame_by_frame(stream: rr.RecordingStream, store: VideoStore, estimate: Estimate, straight: Straight) -> None:
    import rerun as rr

    frames, depth = store.frames(estimate.video_id), store.depth(estimate.video_id, "aligned_depth")
    shades = inverse_range(depth)
    keyframes, shown = set(estimate.poses.keyframe.tolist()), ""
    for row in range(len(estimate.frame)):
        stream.set_time("time", duration=float(estimate.time[row]))
        stream.set_time("frame", sequence=int(estimate.frame[row]))
        place = f"{_place(estimate, row)}/camera" if estimate.poses.tracked[row] else ""
        if shown and shown != place:
            stream.log(shown, rr.Clear(recursive=True))
        shown = place
        if place:
            stream.log(place, *_camera(estimate.poses.cam2world[row], straight))
            stream.log(f"{place}/rgb", rr.EncodedImage(contents=_jpeg(straight.rgb(frames.rgb(row))), media_type="image/jpeg"))
            z = np.nan_to_num(straight.depth(depth.depth(row)[0]), nan=0.0, posinf=np.inf).astype(np.float16)
            stream.log(f"{place}/depth", rr.DepthImage(z, meter=1.0, depth_range=shades and (1 / shades[1], 1 / shades[0])))
            stream.log("segment", rr.Scalars(int(estimate.poses.segment[row])))
            stream.log("keyframe", rr.Scalars(float(row in keyframes)))
        if row % _FRAMES_IN_MEMORY == _FRAMES_IN_MEMORY - 1:
            with _writing():
                stream.flush()


def _camera(cam2world: NDArray[np.float64], straight: Straight) -> tuple[Any, Any]:
    import rerun as rr

    fx, fy, cx, cy = straight.camera.params[:4].tolist()
    matrix = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
    size = [straight.camera.width, straight.camera.height]
    return (
        rr.Transform3D(translation=cam2world[:3, 3], mat3x3=cam2world[:3, :3]),
        rr.Pinhole(image_from_camera=matrix, camera_xyz=rr.ViewCoordinates.RDF, resolution=size),
    )


def _place(estimate: Estimate, row: int) -> str:
    return f"segment_{int(estimate.poses.segment[row])}"


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()
