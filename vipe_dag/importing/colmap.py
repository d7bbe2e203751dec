"""COLMAP's reconstructions as assets: `frames` from its images, `ba_poses` from its poses and points; each model becomes a segment.

A picture without a pose is a frame that is not tracked. A point belongs to the middle one of the images that observe it, at its projection
there, so that it keeps its place; its residual is the distance from what was observed. Uncertainties are unknown, and there is no depth.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.colmap_layout import CAMERAS, CORNER, SLOTS
from vipe_dag.errors import SourceError
from vipe_dag.importing.assets import NO_POINTS, Sparse, Target, fingerprint_of, poses_of
from vipe_dag.importing.colmap_model import Camera, Image, Model, files_of, is_model, read_model
from vipe_dag.store import VideoStore
from vipe_dag.video import ImageFolder, SourceInfo, open_source
from vipe_dag.video.picture import working_size

LONG_SIDE = 1920
"""Longer side of the stored pictures: photos may be larger than what a store of videos is made for."""
_SAME_ASPECT = 0.01
_SAME_CAMERA = 1e-3


def import_video(store: VideoStore, root: str | Path, images: str | Path | None = None) -> str:
    """Bring a reconstruction into a store; returns the id of its video. What the store has already is not read again.

    root: the folder of a model, or one that holds models in sparse/K; images: the folder that COLMAP worked on, by default root/images.
    Raises SourceError for files that are missing, damaged or contradict each other, and for cameras that differ or have no equal here.
    """
    root = Path(root).absolute()
    folders = _model_folders(root)
    models = _disjoint([read_model(folder) for folder in folders], root)
    source = _pictures(root, root / "images" if images is None else Path(images).absolute(), models)
    info = source.probe()
    theirs = _one_camera(models, root)
    camera = _at_size(calibration_of(theirs, str(root)), info, source.uri)
    rows = [_rows(source, model.images) for model in models]
    target = Target(
        store,
        source,
        "colmap",
        fingerprint_of("colmap", source, [path for folder in folders for path in files_of(folder)]),
        {"origin": str(root), "models": len(models), "camera": theirs.model},
    )
    if target.has(["frames", "ba_poses"]):
        return target.video_id
    working = camera.scaled(*working_size(info.width, info.height, LONG_SIDE))
    seen = [
        _seen(model, image, row, first, working)
        for model, numbers, first in zip(models, rows, np.cumsum([0, *(len(model.ids) for model in models)]).tolist(), strict=False)
        for image, row in zip(model.images, numbers.tolist(), strict=True)
    ]
    every = np.concatenate(rows)
    order = np.argsort(every)
    poses = poses_of(
        every[order],
        np.array([image.cam2world for model in models for image in model.images])[order],
        working,
        target.write_frames(LONG_SIDE),
        segment=np.repeat(np.arange(len(models), dtype=np.int32), [len(numbers) for numbers in rows])[order],
        sparse=_sparse(seen),
        residual_px=np.array([np.median(view.residual) if len(view.residual) else np.nan for view in seen])[order],
    )
    target.write_poses(poses)
    return target.video_id


def calibration_of(camera: Camera, where: str) -> Calibration:
    """The same camera here. Raises SourceError where no model of ours has its form."""
    form = CAMERAS[camera.model]
    remedy = "undistort the images with COLMAP (image_undistorter) and import that model"
    if form.ours is None:
        raise SourceError(f"{where}: cameras of the model {camera.model} have no equal here; {remedy}")
    values = dict(zip(form.names, camera.params, strict=True))
    focal = [values[name] if name in values else values["f"] for name in ("fx", "fy")]
    centre = [values["cx"] - CORNER, values["cy"] - CORNER]
    bend = [values.get(name, 0.0) for name in SLOTS[form.ours]]
    extra = {name: value for name, value in values.items() if name[0] in "kps" and name not in SLOTS[form.ours] and value}
    if extra:
        found = ", ".join(f"{name} {value:g}" for name, value in extra.items())
        raise SourceError(f"{where}: the camera {camera.model} has {found}, which no camera here has; {remedy}")
    ours = "pinhole" if form.ours == "brown" and not any(bend) else form.ours
    try:
        return Calibration(ours, np.array([*focal, *centre, *bend, *[0.0] * (5 - len(bend))]), camera.width, camera.height)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error


def _model_folders(root: Path) -> list[Path]:
    """The folders of the models, those in numbered folders in the order of their numbers."""
    for place in (root, root / "sparse"):
        numbered = [path for path in place.iterdir() if path.name.isdecimal() and is_model(path)] if place.is_dir() else []
        found = [place] if is_model(place) else sorted(numbered, key=lambda path: int(path.name))
        if found:
            return found
    raise SourceError(f"{root}: no COLMAP model in it; give the folder with cameras and images (.bin or .txt), or the one above sparse")


def _disjoint(models: Sequence[Model], root: Path) -> list[Model]:
    """The models that have images, each image in one of them: the one with most."""
    taken: set[str] = set()
    left: dict[int, Model] = {}
    for number in sorted(range(len(models)), key=lambda number: -len(models[number].images)):
        own = [image for image in models[number].images if image.name not in taken]
        taken.update(image.name for image in own)
        if own:
            left[number] = replace(models[number], images=own)
    if not left:
        raise SourceError(f"{root}: the model has no images with a pose; there is nothing to import")
    return [left[number] for number in sorted(left)]


def _pictures(root: Path, folder: Path, models: Sequence[Model]) -> ImageFolder:
    inner = sorted({posixpath.dirname(image.name) for model in models for image in model.images})
    if len(inner) > 1:
        raise SourceError(f"{root}: its images lie in several folders ({', '.join(inner[:4])}), but a video is one folder of pictures")
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; name the one with the images of the model by --images")
    source = open_source(str(folder / inner[0] if (folder / inner[0]).is_dir() else folder))
    if not isinstance(source, ImageFolder):
        raise SourceError(f"{folder}: expected a folder of pictures, as COLMAP worked on")
    return source


def _rows(source: ImageFolder, images: Sequence[Image]) -> NDArray[np.int64]:
    """The frame of each image."""
    row_of = {file.name: row for row, file in enumerate(source.files)}
    names = [posixpath.basename(image.name) for image in images]
    missing = [name for name in names if name not in row_of]
    if missing:
        raise SourceError(f"{source.uri}: lacks {len(missing)} images of the model, as {missing[0]}; name their folder by --images")
    return np.array([row_of[name] for name in names], np.int64)


def _one_camera(models: Sequence[Model], root: Path) -> Camera:
    """The camera that all images share. Raises SourceError where there are several."""
    used = {model.cameras[image.camera] for model in models for image in model.images}
    kinds = {(camera.model, camera.width, camera.height) for camera in used}
    first = models[0].cameras[models[0].images[0].camera]
    if len(kinds) > 1 or not all(np.allclose(camera.params, first.params, _SAME_CAMERA, _SAME_CAMERA) for camera in used):
        raise SourceError(
            f"{root}: its images have {len(used)} cameras that differ, but a video has one; give COLMAP --ImageReader.single_camera 1, "
            "or import a single model of several"
        )
    return first


def _at_size(camera: Calibration, info: SourceInfo, uri: str) -> Calibration:
    """The camera at the size of the pictures. Raises SourceError where they are not those of the camera."""
    if abs(camera.width * info.height / (camera.height * info.width) - 1) > _SAME_ASPECT:
        raise SourceError(
            f"{uri}: the pictures are {info.width}x{info.height} upright, the camera of the model {camera.width}x{camera.height}; "
            "name the folder that COLMAP worked on by --images"
        )
    return camera.scaled(info.width, info.height)


@dataclass(frozen=True)
class _Seen:
    """What one image observes: its row; of M points their number over all models, depth z, projection uv (M, 2) and residual (M,).

    Pixels are those of the stored pictures.
    """

    row: int
    point: NDArray[np.int64]
    uv: NDArray[np.float64]
    z: NDArray[np.float64]
    residual: NDArray[np.float64]


def _seen(model: Model, image: Image, row: int, first: int, working: Calibration) -> _Seen:
    """first: number of the model's first point."""
    import torch

    from vipe_kernels.cameras import in_view, project

    number = np.searchsorted(model.ids, image.point).clip(0, max(len(model.ids) - 1, 0))
    known = (image.point >= 0) & (model.ids[number] == image.point) if len(model.ids) else np.zeros(len(image.point), bool)
    number = number[known]
    points = torch.from_numpy((model.xyz[number] - image.cam2world[:3, 3]) @ image.cam2world[:3, :3])
    params = torch.from_numpy(working.params.copy())
    shown = in_view(points, params, working.camera_model).numpy()
    uv = project(points, params, working.camera_model).numpy()[shown]
    theirs = model.cameras[image.camera]
    observed = image.uv[known][shown] * [working.width / theirs.width, working.height / theirs.height] - CORNER
    return _Seen(row, number[shown] + first, uv, points.numpy()[shown, 2], np.linalg.norm(uv - observed, axis=1))


def _sparse(seen: Sequence[_Seen]) -> Sparse:
    """Each point in the middle one of the images that observe it."""
    view = np.repeat(np.arange(len(seen)), [len(entry.point) for entry in seen])
    if not len(view):
        return NO_POINTS
    point, z, residual = (np.concatenate([getattr(entry, name) for entry in seen]) for name in ("point", "z", "residual"))
    uv, row = np.concatenate([entry.uv for entry in seen]), np.array([entry.row for entry in seen])[view]
    order = np.lexsort((row, point))
    _, start, count = np.unique(point[order], return_index=True, return_counts=True)
    chosen = order[start + count // 2]
    chosen = chosen[np.argsort(row[chosen], kind="stable")]
    keyframe, start, count = np.unique(row[chosen], return_index=True, return_counts=True)
    line, place = np.repeat(np.arange(len(keyframe)), count), np.arange(len(chosen)) - np.repeat(start, count)
    sparse = Sparse.empty(keyframe.astype(np.int64), int(count.max()))
    sparse.point_uv[line, 0, place] = uv[chosen]
    sparse.inverse_depth[line, 0, place] = 1 / z[chosen]
    sparse.residual_px[line, 0, place] = residual[chosen]
    sparse.valid[line, 0, place] = True
    return sparse
