"""ViPE's tree of results, as its viewer and its scripts read it. Unknown depth is 0; there are no masks, since none are estimated."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.evaluate.references import resize_nearest
from vipe_dag.export import Exported
from vipe_dag.export.estimate import Estimate, estimate_of, one_segment
from vipe_dag.export.movie import write_movie
from vipe_dag.export.pictures import source_frames
from vipe_dag.export.target import complete_folder
from vipe_dag.store import VideoStore
from vipe_dag.vipe_layout import Layout


def export(store: VideoStore, video_id: str, out: Path, *, segment: int | None = None) -> Exported:
    """Write the tracked frames of one segment, and an mp4 of all frames, at source resolution; depth is enlarged by nearest neighbour.

    Raises SourceError for a lens that ViPE's files cannot hold.
    """
    estimate = estimate_of(store, video_id)
    selection = one_segment(estimate, segment)
    if estimate.poses.params[4:].any():
        raise SourceError(
            f"{video_id}: the lens is {estimate.poses.camera_model} with distortion, and ViPE's files hold pinhole cameras; "
            "export colmap or nerfstudio, which keep it"
        )
    with complete_folder(out) as folder:
        layout = Layout(folder, video_id)
        for path in (layout.pose, layout.intrinsics, layout.rgb, layout.depth, layout.info):
            path.parent.mkdir()
        _write_cameras(layout, estimate, selection.rows)
        layout.info.write_bytes(pickle.dumps({"ba_residual": estimate.poses.residual_px_median}))
        depth = store.depth(video_id, "aligned_depth")
        size = estimate.source.height, estimate.source.width
        write_depth(layout.depth, ((row, resize_nearest(depth.depth(row)[0], *size)) for row in selection.rows.tolist()))
        start = float(estimate.time[0])
        pictures = ((float(estimate.time[row]) - start, rgb) for row, rgb in source_frames(store, estimate))
        write_movie(layout.rgb, pictures, estimate.fps)
    return Exported(out, selection.notes)


def _write_cameras(layout: Layout, estimate: Estimate, rows: NDArray[np.int64]) -> None:
    np.savez(layout.pose, data=estimate.poses.cam2world[rows].astype(np.float32), inds=rows)
    np.savez(layout.intrinsics, data=np.tile(estimate.source.params[:4].astype(np.float32), (len(rows), 1)), inds=rows)
    layout.camera.write_text("".join(f"{row}: PINHOLE\n" for row in rows.tolist()))


def write_depth(path: Path, maps: Iterator[tuple[int, NDArray[Any]]]) -> None:
    """A deflated zip of NNNNN.exr; depth (H, W), NaN becomes 0."""
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for row, depth in maps:
            picture = io.BytesIO()
            with OpenEXR.File(header, {"Z": np.ascontiguousarray(np.nan_to_num(depth, nan=0.0, posinf=np.inf), np.float16)}) as file:
                file.write(picture)
            archive.writestr(f"{row:05d}.exr", picture.getvalue())
