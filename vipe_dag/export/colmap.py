"""COLMAP reconstructions: images/ and sparse/K, one model per segment, with the points and tracks of the keyframes.

COLMAP counts pixels from the corner of the picture (the centre of the first pixel is at 0.5), poses are world to camera with w first, and
ids count from 1; an image's id is its row + 1. Formats: https://colmap.github.io/format.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vipe_dag.calibration import Calibration
from vipe_dag.colmap_layout import CAMERAS, CORNER
from vipe_dag.export import Exported
from vipe_dag.export.estimate import Estimate, estimate_of, tracked_rows
from vipe_dag.export.pictures import Encoding, write_pictures
from vipe_dag.export.target import complete_folder
from vipe_dag.export.tracks import Tracks, tracks_of
from vipe_dag.store import VideoStore


@dataclass(frozen=True)
class Model:
    """One reconstruction. camera at source resolution; row (I,) ids less one, names (I,), cam2world (I, 4, 4) of its images.

    tracks: uv and residual_px at source resolution, pixel centres at integers, rows among those of the images.
    """

    camera: Calibration
    row: NDArray[np.int64]
    names: list[str]
    cam2world: NDArray[np.float64]
    tracks: Tracks


def export(store: VideoStore, video_id: str, out: Path, *, text: bool = False, encoding: Encoding = "jpg") -> Exported:
    """Write every tracked frame at source resolution, one model for each segment; binary, or text."""
    estimate = estimate_of(store, video_id)
    rows = tracked_rows(estimate)
    with complete_folder(out) as folder:
        names = write_pictures(store, estimate, rows, folder / "images", encoding)
        notes = list(estimate.lost_note)
        for number, segment in enumerate(np.unique(estimate.poses.segment[rows]).tolist()):
            model = _model(store, estimate, rows[estimate.poses.segment[rows] == segment], segment, names)
            place = folder / "sparse" / str(number)
            place.mkdir(parents=True)
            (write_text if text else write_binary)(model, place)
            notes.append(
                f"sparse/{number}: {len(model.row)} images, {len(model.tracks.xyz)} points, {len(model.tracks.point)} observations"
            )
    return Exported(out, tuple(notes))


def _model(store: VideoStore, estimate: Estimate, rows: NDArray[np.int64], segment: int, names: dict[int, str]) -> Model:
    working, source = estimate.working, estimate.source
    tracks = tracks_of(estimate.poses, working, store.frames(estimate.video_id), segment)
    factor = np.array([source.width / working.width, source.height / working.height])
    uv = (tracks.uv + 0.5) * factor - 0.5
    residual = tracks.residual_px * float(factor.mean())
    at_source = Tracks(tracks.xyz, tracks.rgb, tracks.point, tracks.row, uv, residual)
    return Model(source, rows, [names[row] for row in rows.tolist()], estimate.poses.cam2world[rows], at_source)


def camera_of(calibration: Calibration) -> tuple[str, list[float]]:
    """COLMAP's model and its parameters."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = calibration.params.tolist()
    head = [fx, fy, cx + CORNER, cy + CORNER]
    if calibration.camera_model == "pinhole":
        return "PINHOLE", head
    if calibration.camera_model == "fisheye":
        return "OPENCV_FISHEYE", [*head, k1, k2, p1, p2]
    return ("FULL_OPENCV", [*head, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]) if k3 else ("OPENCV", [*head, k1, k2, p1, p2])


def write_text(model: Model, folder: Path) -> None:
    """cameras.txt, images.txt and points3D.txt, with enough digits to read back exactly."""
    name, params = camera_of(model.camera)
    size = f"{model.camera.width} {model.camera.height}"
    (folder / "cameras.txt").write_text(f"1 {name} {size} {' '.join(map(repr, params))}\n")
    observations, places = _by_image(model)
    lines = []
    for (row, name), pose in zip(zip(model.row.tolist(), model.names, strict=True), _world2cam(model.cam2world), strict=True):
        lines.append(f"{row + 1} {' '.join(map(repr, pose.tolist()))} 1 {name}")
        chosen = observations[row]
        uv, point = (model.tracks.uv[chosen] + CORNER).tolist(), (model.tracks.point[chosen] + 1).tolist()
        lines.append(" ".join(f"{u!r} {v!r} {number}" for (u, v), number in zip(uv, point, strict=True)))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    points = []
    for number, (xyz, rgb, error, track) in enumerate(_points(model.tracks), 1):
        seen = " ".join(f"{model.tracks.row[m] + 1} {places[m]}" for m in track)
        points.append(f"{number} {' '.join(map(repr, xyz))} {' '.join(map(str, rgb))} {error!r} {seen}\n")
    (folder / "points3D.txt").write_text("".join(points))


def write_binary(model: Model, folder: Path) -> None:
    """cameras.bin, images.bin and points3D.bin, little endian."""
    name, params = camera_of(model.camera)
    with (folder / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<QIiQQ", 1, 1, CAMERAS[name].number, model.camera.width, model.camera.height))
        file.write(struct.pack(f"<{len(params)}d", *params))
    observations, places = _by_image(model)
    place = np.dtype([("uv", "<f8", 2), ("point", "<u8")])
    with (folder / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(model.row)))
        for (row, name), pose in zip(zip(model.row.tolist(), model.names, strict=True), _world2cam(model.cam2world), strict=True):
            file.write(struct.pack("<I7dI", row + 1, *pose.tolist(), 1) + name.encode() + b"\0")
            chosen = observations[row]
            table = np.empty(len(chosen), place)
            table["uv"], table["point"] = model.tracks.uv[chosen] + CORNER, model.tracks.point[chosen] + 1
            file.write(struct.pack("<Q", len(chosen)) + table.tobytes())
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(model.tracks.xyz)))
        for number, (xyz, rgb, error, track) in enumerate(_points(model.tracks), 1):
            file.write(struct.pack("<Q3d3BdQ", number, *xyz, *rgb, error, len(track)))
            seen = np.column_stack([model.tracks.row[track] + 1, places[track]]).astype("<u4")
            file.write(seen.tobytes())


def _world2cam(cam2world: NDArray[np.float64]) -> NDArray[np.float64]:
    """qw qx qy qz tx ty tz (I, 7)."""
    rotation = Rotation.from_matrix(cam2world[:, :3, :3]).inv()
    quaternion = rotation.as_quat(canonical=True)
    return np.column_stack([quaternion[:, 3], quaternion[:, :3], -rotation.apply(cam2world[:, :3, 3])])


def _by_image(model: Model) -> tuple[dict[int, NDArray[np.int64]], NDArray[np.int64]]:
    """Observations of each image by its row, and for each observation its place in that list."""
    chosen = {row: np.flatnonzero(model.tracks.row == row) for row in model.row.tolist()}
    places = np.zeros(len(model.tracks.row), np.int64)
    for numbers in chosen.values():
        places[numbers] = np.arange(len(numbers))
    return chosen, places


def _points(tracks: Tracks) -> list[tuple[list[float], list[int], float, NDArray[np.int64]]]:
    """xyz, rgb, mean residual in pixels and the observations of each point."""
    ends = np.cumsum(np.bincount(tracks.point, minlength=len(tracks.xyz)))
    groups = np.split(np.arange(len(tracks.point)), ends[:-1]) if len(ends) else []
    return [
        (tracks.xyz[number].tolist(), tracks.rgb[number].tolist(), float(tracks.residual_px[group].mean()), group)
        for number, group in enumerate(groups)
    ]
