"""nerfstudio data: transforms.json with the lens and one matrix per picture, images/, and the cloud that splats start from.

The matrices are camera to world in OpenGL axes (x right, y up, z back), the principal point counts from the corner of the picture: the
centre of the first pixel is at 0.5. World coordinates are those of the poses, so the cloud needs no transform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.export import Exported, ply
from vipe_dag.export.cloud import Thinning, cloud_of
from vipe_dag.export.estimate import estimate_of, one_segment
from vipe_dag.export.pictures import Encoding, write_pictures
from vipe_dag.export.target import complete_folder
from vipe_dag.store import VideoStore

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
CLOUD = "sparse_pc.ply"


def export(
    store: VideoStore,
    video_id: str,
    out: Path,
    *,
    thinning: Thinning | None = None,
    segment: int | None = None,
    encoding: Encoding = "jpg",
) -> Exported:
    """Write the tracked frames of one segment at source resolution, and the cloud of its aligned_depth."""
    estimate = estimate_of(store, video_id)
    selection = one_segment(estimate, segment)
    with complete_folder(out) as folder:
        frames, depth = store.frames(video_id), store.depth(video_id, "aligned_depth")
        cloud = cloud_of(estimate, selection.rows, frames, depth, thinning or Thinning())
        ply.write(folder / CLOUD, cloud, video_id)
        names = write_pictures(store, estimate, selection.rows, folder / "images", encoding)
        pictures = [_frame(names[row], estimate.poses.cam2world[row], float(estimate.time[row])) for row in selection.rows.tolist()]
        content = {**camera(estimate.source), "ply_file_path": CLOUD, "frames": pictures}
        (folder / "transforms.json").write_text(json.dumps(content, indent=1) + "\n")
    return Exported(out, selection.notes)


def camera(calibration: Calibration) -> dict[str, Any]:
    """The camera in nerfstudio's keys."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = calibration.params.tolist()
    lens: dict[str, Any] = {"camera_model": "OPENCV", "k1": k1, "k2": k2, "p1": p1, "p2": p2, "k3": k3}
    if calibration.camera_model == "fisheye":
        lens = {"camera_model": "OPENCV_FISHEYE", "k1": k1, "k2": k2, "k3": p1, "k4": p2}
    size = {"w": calibration.width, "h": calibration.height}
    return {**lens, **size, "fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5}


def _frame(name: str, cam2world: NDArray[np.float64], time: float) -> dict[str, Any]:
    return {"file_path": f"images/{name}", "transform_matrix": (cam2world @ OPENGL_FROM_OPENCV).tolist(), "timestamp": time}
