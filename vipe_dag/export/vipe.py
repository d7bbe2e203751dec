"""ViPE's tree of results, as its viewer and its scripts read it. Unknown depth is 0; masks are those of an import, none are estimated."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vipe_dag.calibration import Calibration
from vipe_dag.evaluate.references import nearest_pixels, resize_nearest
from vipe_dag.export import Exported
from vipe_dag.export.estimate import Estimate, estimate_of, one_segment
from vipe_dag.export.movie import write_movie
from vipe_dag.export.pictures import source_frames
from vipe_dag.export.straight import Straight
from vipe_dag.export.target import complete_folder
from vipe_dag.mei import MAX_LENS_ERROR_PX, to_mei
from vipe_dag.store import VideoStore
from vipe_dag.store.rows import AHEAD_BYTES
from vipe_dag.vipe_layout import Layout


def export(store: VideoStore, video_id: str, out: Path, *, segment: int | None = None) -> Exported:
    """Write the tracked frames of one segment, and an mp4 of all frames, at source resolution; depth is enlarged by nearest neighbour.

    ViPE's cameras are pinholes and Mei's. For any other lens pictures and depth are those of a pinhole in its place; a note says so.
    """
    estimate = estimate_of(store, video_id)
    selection = one_segment(estimate, segment)
    lens = lens_of(estimate.source)
    with complete_folder(out) as folder:
        layout = Layout(folder, video_id)
        for path in (layout.pose, layout.intrinsics, layout.rgb, layout.depth, layout.info):
            path.parent.mkdir()
        _write_cameras(layout, estimate, selection.rows, lens)
        layout.info.write_bytes(pickle.dumps({"ba_residual": estimate.poses.residual_px_median}))
        depth = store.depth(video_id, "aligned_depth")
        size = estimate.source.height, estimate.source.width
        enlarged = ((row, resize_nearest(depth.depth(row)[0], *size)) for row in selection.rows.tolist())
        write_depth(layout.depth, ((row, lens.view.depth(z) if lens.view else z) for row, z in enlarged))
        _write_masks(layout, store, estimate, lens.view)
        start = float(estimate.time[0])
        pictures = (
            (float(estimate.time[row]) - start, lens.view.rgb(rgb) if lens.view else rgb) for row, rgb in source_frames(store, estimate)
        )
        write_movie(layout.rgb, pictures, estimate.fps)
    return Exported(out, (*selection.notes, *lens.notes))


@dataclass(frozen=True)
class Lens:
    """A camera of ViPE's: its name and values; view: what turns our pictures into its, None where they are the same."""

    name: str
    values: NDArray[np.float64]
    view: Straight | None = None
    notes: tuple[str, ...] = ()


def lens_of(camera: Calibration) -> Lens:
    """What stands for a camera in ViPE's files: the same pinhole, Mei's where it is as good as the same, else a pinhole in its place."""
    if camera.camera_model == "fisheye":
        values, error = to_mei(camera)
        if error <= MAX_LENS_ERROR_PX:
            return Lens("MEI", values, notes=(f"the lens is fisheye: written as Mei's camera, which is within {error:.2g} px of it",))
    view = Straight(camera)
    if not view.bent:
        return Lens("PINHOLE", camera.params[:4])
    note = (
        f"the lens is {camera.camera_model} with distortion, which ViPE's files cannot hold: pictures and depth are as a pinhole sees them"
    )
    return Lens("PINHOLE", view.camera.params[:4], view, (note,))


def _write_cameras(layout: Layout, estimate: Estimate, rows: NDArray[np.int64], lens: Lens) -> None:
    np.savez(layout.pose, data=estimate.poses.cam2world[rows].astype(np.float32), inds=rows)
    np.savez(layout.intrinsics, data=np.tile(lens.values.astype(np.float32), (len(rows), 1)), inds=rows)
    layout.camera.write_text("".join(f"{row}: {lens.name}\n" for row in rows.tolist()))


def _write_masks(layout: Layout, store: VideoStore, estimate: Estimate, view: Straight | None) -> None:
    """The objects of every frame, where the frames have some."""
    opened = store.opened(estimate.video_id, "frames")
    if "instance" not in opened.group:
        return
    layout.mask.parent.mkdir()
    rows, size = opened.rows("instance", AHEAD_BYTES), (estimate.source.height, estimate.source.width)
    with zipfile.ZipFile(layout.mask, "w", zipfile.ZIP_STORED) as archive:
        for row in range(len(rows)):
            numbers = nearest_pixels(rows.row(row), *size)
            picture = io.BytesIO()
            Image.fromarray(view.labels(numbers) if view else numbers).save(picture, format="PNG")
            archive.writestr(f"{row:05d}.png", picture.getvalue())
    names: Any = opened.group.attrs.get("instances", {})
    layout.phrases.write_text("".join(f"{number}: {phrase}\n" for number, phrase in names.items()))


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
