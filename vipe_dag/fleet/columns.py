"""The columns of the catalogue: names, types and meaning of what is known about a video, in one row."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vipe_dag.graph import STAGES

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("video_id", "text", "name of the video in the store"),
    ("shard", "integer", "number of its shard"),
    ("status", "text", "`done`: every stage has a result that may be built on; `failed`; `partial`: stages were never run"),
    ("failed_stage", "text", "where it failed; the stages below were not run"),
    ("reason", "text", "why it failed"),
    ("tries", "integer", "runs in which it failed"),
    ("behind", "texts", "stages that were not as the configuration asked for when the row was written"),
    ("source", "text", "path or URL of the video file"),
    ("digest", "text", "digest of its content"),
    ("start_s", "number", "first second of the clip, if it is one"),
    ("end_s", "number", "second at which the clip ends"),
    ("stride", "integer", "every N-th frame was taken"),
    ("calibration_digest", "text", "digest of the calibration that was given with it"),
    ("frames", "integer", "number of frames"),
    ("duration_s", "number", "time between first and last frame"),
    ("fps", "number", "frames per second of the result"),
    ("width", "integer", "at working resolution, pixel"),
    ("height", "integer", "at working resolution, pixel"),
    ("source_width", "integer", "of the video file, pixel"),
    ("source_height", "integer", "of the video file, pixel"),
    ("codec", "text", "of the video file"),
    ("camera_model", "text", "`pinhole`, `brown` or `fisheye`"),
    ("intrinsics_source", "text", "`given`, `metadata` or `estimated`"),
    ("focal_observable", "flag", "the motion determined the focal length"),
    ("focal_px", "number", "fx at working resolution, of ba_poses where there is one"),
    ("focal_std_px", "number", "its standard deviation"),
    ("focal_of_width", "number", "fx over the width: free of resolution"),
    ("residual_px", "number", "median reprojection residual"),
    ("inlier_share", "number", "mean over tracked frames of the share of correspondences that agree with the pose"),
    ("tracked_share", "number", "share of frames that were tracked"),
    ("keyframes", "integer", "number of keyframes"),
    ("segments", "integer", "parts that each have a world and scale of their own"),
    ("path_length", "number", "of the camera, in the video's own scale"),
    ("scale_source", "text", "what the scale is: `arbitrary` from one moving camera"),
    ("depth_scale", "number", "median factor that aligned_depth applied to inverse depth"),
    ("alignment_residual", "number", "median relative residual of that alignment"),
    ("depth_share", "number", "share of pixels with depth, of aligned_depth"),
    ("measured_share", "number", "share of pixels with triangulated depth"),
    ("flags", "texts", "everything that some stage flagged"),
    ("warnings", "texts", "checks that did not pass, as `stage.check`"),
    ("bytes", "integer", "stored size of all current results"),
    ("peak_rss_mb", "number", "largest resident size of the process in any stage"),
    *((f"{stage.name}_fingerprint", "text", f"of the current result of {stage.name}") for stage in STAGES),
    *((f"{stage.name}_written_at", "time", f"when the current result of {stage.name} was written, UTC") for stage in STAGES),
    *((f"{stage.name}_s", "number", f"seconds that computing {stage.name} took") for stage in STAGES),
    ("pool", "text", "pooled arrays of the shard that hold its frames; empty without ba_poses"),
    ("pool_start", "integer", "its first row there"),
    ("pool_rows", "integer", "its number of rows there"),
)
"""Name, type and meaning. A value that is not known is null."""


@cache
def schema() -> pa.Schema:
    """The columns as Arrow has them."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "integer": pa.int64(),
        "number": pa.float64(),
        "flag": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(name, types[kind]) for name, kind, _ in COLUMNS])
