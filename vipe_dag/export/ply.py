"""PLY point clouds, binary little endian: x y z float, red green blue uchar, confidence uchar."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vipe_dag.export import Exported
from vipe_dag.export.cloud import Cloud, Thinning, cloud_of
from vipe_dag.export.estimate import estimate_of, one_segment
from vipe_dag.export.target import complete_file
from vipe_dag.store import VideoStore

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "u1")])
_HEADER = """ply
format binary_little_endian 1.0
comment {comment}
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar confidence
end_header
"""


def export(
    store: VideoStore, video_id: str, out: Path, *, thinning: Thinning | None = None, segment: int | None = None, overwrite: bool = False
) -> Exported:
    """Write the cloud of one segment of a video, from aligned_depth at working resolution."""
    estimate = estimate_of(store, video_id)
    selection = one_segment(estimate, segment)
    with complete_file(out, overwrite) as unfinished:
        depth = store.depth(video_id, "aligned_depth")
        cloud = cloud_of(estimate, selection.rows, store.frames(video_id), depth, thinning or Thinning())
        write(unfinished, cloud, video_id)
    return Exported(out, (f"{len(cloud)} points", *selection.notes))


def write(path: Path, cloud: Cloud, comment: str) -> None:
    """Write a cloud; `comment` is one line of ASCII in the header."""
    table = np.empty(len(cloud), _VERTEX)
    table["xyz"], table["rgb"], table["confidence"] = cloud.xyz, cloud.rgb, cloud.confidence
    with path.open("wb") as file:
        file.write(_HEADER.format(comment=comment, count=len(cloud)).encode("ascii"))
        file.write(table.tobytes())
