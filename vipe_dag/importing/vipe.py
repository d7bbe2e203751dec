"""ViPE's results as assets: `frames` decoded from its mp4 at full size, `ba_poses` and, where there is depth, `aligned_depth`.

Masks become `instance` of `frames`. What ViPE does not say stays unknown: uncertainties are NaN, there are no keyframes, depth counts as
completed rather than measured.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vipe_dag.calibration import Calibration
from vipe_dag.errors import SourceError
from vipe_dag.importing.assets import Instances, Target, fingerprint_of, poses_of
from vipe_dag.mei import MAX_LENS_ERROR_PX, from_mei
from vipe_dag.store import VideoStore
from vipe_dag.video import open_source
from vipe_dag.vipe_layout import CAMERAS, Layout

_BLOCK_FRAMES = 32


def names_in(root: str | Path) -> list[str]:
    """Names of the videos in a tree of ViPE's, sorted. Raises SourceError when it is none."""
    folder = Path(root) / "pose"
    names = sorted(path.stem for path in folder.glob("*.npz")) if folder.is_dir() else []
    if not names:
        raise SourceError(f"{root}: no pose/*.npz in it; give the folder that holds ViPE's rgb, pose, intrinsics and depth")
    return names


def import_video(store: VideoStore, root: str | Path, name: str) -> str:
    """Bring one video of a tree into a store; returns its id. What the store has already is not read again.

    Raises SourceError for files that are missing, damaged or contradict each other, and for panoramas.
    """
    layout = Layout(Path(root).absolute(), name)
    for path in (layout.pose, layout.intrinsics, layout.rgb):
        if not path.is_file():
            raise SourceError(f"{path}: is missing; the import needs pose, intrinsics and rgb of {name}")
    source = open_source(str(layout.rgb))
    info = source.probe()
    rows, cam2world = _poses(layout.pose)
    count = sum(1 for _ in source.iterate(pixels=False)) if info.frame_count is None else info.frame_count
    if rows[-1] >= count:
        raise SourceError(f"{layout.rgb}: has {count} frames, but there is a pose of frame {rows[-1]}; give the mp4 of this run")
    camera, lens_error = _camera(layout, rows, info.width, info.height)
    fingerprint = fingerprint_of("vipe", source, (layout.pose, layout.intrinsics, layout.depth, layout.mask, layout.phrases))
    target = Target(store, source, "vipe", fingerprint, {"origin": str(layout.root), "name": name, "lens_error_px": lens_error})
    if target.has(["frames", "ba_poses", *(["aligned_depth"] if layout.depth.is_file() else [])]):
        return target.video_id
    with _masks(layout, (info.height, info.width)) as instances:
        count = target.write_frames(min(max(info.width, info.height, 64), 8192), instances)
    target.write_poses(poses_of(rows, cam2world, camera, count))
    if layout.depth.is_file():
        _write_depth(target, layout.depth, (count, info.height, info.width))
    return target.video_id


def _poses(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows, data = _npz(path)
    if data.shape[1:] != (4, 4) or not np.isfinite(data).all():
        raise SourceError(f"{path}: expected data of finite 4x4 matrices, found shape {data.shape}; export it again from ViPE")
    rotation = data[:, :3, :3]
    if np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() > 1e-3 or (np.linalg.det(rotation) < 0).any():
        raise SourceError(f"{path}: holds a matrix that is no rigid motion; it should be camera to world without scale")
    return rows, data


def _npz(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """inds (N,) ascending and data (N, ...), N >= 1."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows, data = np.asarray(archive["inds"], np.int64), np.asarray(archive["data"], np.float64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: expected an npz with the arrays data and inds ({error})") from error
    if rows.ndim != 1 or len(rows) == 0 or len(rows) != len(data) or rows[0] < 0 or (np.diff(rows) <= 0).any():
        raise SourceError(f"{path}: inds must be ascending frame numbers, one for each of data, found {rows.shape} for {data.shape}")
    return rows, data


def _camera(layout: Layout, rows: NDArray[np.int64], width: int, height: int) -> tuple[Calibration, float]:
    """The one camera of all frames at the size of the mp4, and how far its lens is from ViPE's in pixels."""
    inds, data = _npz(layout.intrinsics)
    names = _camera_names(layout) or {"PINHOLE" if data.shape[1:] == (4,) else "MEI"}
    name = names.pop()
    if names or name not in CAMERAS:
        raise SourceError(f"{layout.camera}: the cameras {', '.join(sorted({name, *names}))} cannot be imported; one of PINHOLE, MEI can")
    if data.shape[1:] != (len(CAMERAS[name]),) or not np.array_equal(inds, rows):
        raise SourceError(
            f"{layout.intrinsics}: expected {len(CAMERAS[name])} numbers for each frame of {layout.pose.name}, found {data.shape}"
        )
    if np.ptp(data, axis=0).max() > 1e-3 * data[:, 0].max():
        raise SourceError(
            f"{layout.intrinsics}: the camera changes from frame to frame; only one camera for the whole video can be imported"
        )
    values = data[0]
    if name == "PINHOLE":
        return Calibration("pinhole", np.array([*values, 0, 0, 0, 0, 0]), width, height), 0.0
    camera, error = from_mei(values, width, height)
    if error > MAX_LENS_ERROR_PX:
        raise SourceError(
            f"{layout.intrinsics}: Mei's lens with xi {values[4]:.3g} is up to {error:.2g} px from any fisheye camera known here, "
            f"more than {MAX_LENS_ERROR_PX}; it cannot be imported"
        )
    return camera, error


def _camera_names(layout: Layout) -> set[str]:
    if not layout.camera.is_file():
        return set()
    lines = layout.camera.read_text(errors="replace").splitlines()
    return {line.partition(":")[2].strip().upper() for line in lines if line.strip()}


@contextmanager
def _masks(layout: Layout, size: tuple[int, int]) -> Iterator[Instances | None]:
    """The objects that ViPE found; None where it did not look for any."""
    if not layout.mask.is_file():
        yield None
        return
    lines = layout.phrases.read_text(errors="replace").splitlines() if layout.phrases.is_file() else []
    names = {number.strip(): phrase.strip() for number, _, phrase in (line.partition(":") for line in lines) if number.strip()}
    with zipfile.ZipFile(layout.mask) if zipfile.is_zipfile(layout.mask) else nullcontext(None) as archive:
        if archive is None:
            raise SourceError(f"{layout.mask}: not a readable zip; copy it again, or remove it to import without masks")
        yield Instances(partial(_mask, archive, layout.mask, size), names)


def _mask(archive: zipfile.ZipFile, path: Path, size: tuple[int, int], row: int) -> NDArray[np.uint8]:
    name = f"{row:05d}.png"
    try:
        with Image.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as picture:
            found = np.asarray(picture)
    except (KeyError, OSError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}, {name}: not a readable PNG ({error}); copy it again, or remove it to import without masks") from error
    if found.shape != size or found.dtype != np.uint8:
        raise SourceError(
            f"{path}, {name}: expected numbers of 8 bits, {size[1]}x{size[0]} as in the mp4, found {found.dtype} {found.shape}; "
            "remove the zip to import without masks"
        )
    return found


def _write_depth(target: Target, path: Path, shape: tuple[int, int, int]) -> None:
    count = shape[0]
    with target.store.begin(target.video_id, "aligned_depth", target.fingerprint, sizes={"frame": count}) as w:
        for block in _depth_blocks(path, shape):
            known = np.isfinite(block)
            w.append({"z_depth": block, "confidence": np.where(known, 255, 0).astype(np.uint8), "measured": np.zeros(block.shape, bool)})
        w.put("scale", np.ones(count))
        w.put("shift", np.zeros(count))
        w.put("alignment_residual", np.full(count, np.nan, np.float32))
        w.attrs({"scale_source": target.program, "flags": []} | target.attributes)


def _depth_blocks(path: Path, shape: tuple[int, int, int]) -> Iterator[NDArray[np.float16]]:
    """Depth of consecutive frames; NaN where ViPE has none, or nothing above 0."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {int(Path(name).stem): name for name in archive.namelist() if name.endswith(".exr") and Path(name).stem.isdecimal()}
            for start in range(0, shape[0], _BLOCK_FRAMES):
                block = np.full((min(_BLOCK_FRAMES, shape[0] - start), *shape[1:]), np.nan, np.float16)
                for row in range(start, start + len(block)):
                    if row in members:
                        block[row - start] = _exr(archive.read(members[row]), f"{path}, {members[row]}", shape[1:])
                block[~(block > 0)] = np.nan
                yield block
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{path}: not a readable zip ({error}); copy it again") from error


def _exr(content: bytes, where: str, size: tuple[int, ...]) -> NDArray[np.float16]:
    import OpenEXR

    try:
        with OpenEXR.File(io.BytesIO(content), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, OSError) as error:
        raise SourceError(f"{where}: not a readable EXR ({error}); copy the zip again") from error
    if "Z" not in channels or channels["Z"].shape != size:
        found = {name: pixels.shape for name, pixels in channels.items()}
        raise SourceError(f"{where}: expected one channel Z of {size[1]}x{size[0]} as in the mp4, found {found}")
    return np.asarray(channels["Z"], np.float16)
