"""Reading COLMAP's models: cameras, images and points3D, binary or text. Formats: https://colmap.github.io/format.html

Rigs and frames, which later versions write beside them, say nothing more about single images and are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vipe_dag.colmap_layout import CAMERAS
from vipe_dag.errors import SourceError

FILES = ("cameras", "images", "points3D")
_OBSERVATION = np.dtype([("uv", "<f8", 2), ("point", "<i8")])
_NAME_BYTES = 4096


@dataclass(frozen=True)
class Camera:
    """model: COLMAP's name of it; params as it lists them, pixels counted from the corner."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class Image:
    """name: path below the folder of images; cam2world (4, 4) float64; uv (M, 2) float64, counted from the corner; point (M,) id or -1."""

    name: str
    camera: int
    cam2world: NDArray[np.float64]
    uv: NDArray[np.float64]
    point: NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """cameras by id; images; ids (N,) int64, ascending, and xyz (N, 3) float64 of the points."""

    cameras: dict[int, Camera]
    images: list[Image]
    ids: NDArray[np.int64]
    xyz: NDArray[np.float64]


def is_model(folder: Path) -> bool:
    """Whether the files of a model lie in this folder."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in FILES[:2]) for suffix in (".bin", ".txt"))


def files_of(folder: Path) -> list[Path]:
    """The files of a model that `read_model` reads; binary ones where there are both. points3D may be absent."""
    suffix = ".bin" if (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file() else ".txt"
    return [path for name in FILES if (path := folder / f"{name}{suffix}").is_file()]


def read_model(folder: Path) -> Model:
    """Raises SourceError naming the file, and for text the line, that is not what it should be."""
    files = {path.stem: path for path in files_of(folder)}
    binary = files["cameras"].suffix == ".bin"
    cameras = dict((_binary_cameras if binary else _text_cameras)(files["cameras"]))
    images = list((_binary_images if binary else _text_images)(files["images"]))
    points: list[tuple[int, tuple[float, ...]]] = []
    if "points3D" in files:
        points = sorted((_binary_points if binary else _text_points)(files["points3D"]))
    unknown = next((image for image in images if image.camera not in cameras), None)
    if unknown is not None:
        raise SourceError(f"{files['images']}: {unknown.name} has camera {unknown.camera}, which {files['cameras'].name} does not")
    xyz = np.array([place for _, place in points], np.float64).reshape(-1, 3)
    return Model(cameras, images, np.array([number for number, _ in points], np.int64), xyz)


class _Bytes:
    """A binary file from its beginning. Raises SourceError where it ends too early."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0
        try:
            self._content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._piece(struct.calcsize(form)))

    def array(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        return np.frombuffer(self._piece(kind.itemsize * count), kind)

    def name(self) -> str:
        end = self._content.find(b"\0", self._at, self._at + _NAME_BYTES)
        if end < 0:
            raise self._ended()
        name = self._piece(end - self._at + 1)[:-1]
        return name.decode(errors="replace")

    def skip(self, count: int) -> None:
        self._piece(count)

    def _piece(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._content):
            raise self._ended()
        return self._content[start : self._at]

    def _ended(self) -> SourceError:
        return SourceError(f"{self.path}: ends in the middle, after {len(self._content)} bytes; copy it again")


def _binary_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    file = _Bytes(path)
    names = {model.number: name for name, model in CAMERAS.items()}
    for _ in range(file.take("<Q")[0]):
        number, model, width, height = file.take("<IiQQ")
        if model not in names:
            raise SourceError(f"{path}: camera {number} has the model number {model}, which is not known here; convert it with COLMAP")
        params = file.take(f"<{len(CAMERAS[names[model]].names)}d")
        yield number, _camera(names[model], width, height, params, f"{path}, camera {number}")


def _binary_images(path: Path) -> Iterator[Image]:
    file = _Bytes(path)
    for _ in range(file.take("<Q")[0]):
        _, *pose, camera = file.take("<I7dI")
        name = file.name()
        table = file.array(_OBSERVATION, file.take("<Q")[0])
        yield Image(name, camera, _cam2world(pose, f"{path}, {name}"), table["uv"].astype(np.float64), table["point"].astype(np.int64))


def _binary_points(path: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    file = _Bytes(path)
    for _ in range(file.take("<Q")[0]):
        number, *xyz, _, _, _, _, length = file.take("<Q3d3BdQ")
        file.skip(8 * length)
        yield number, _finite(xyz, f"{path}, point {number}")


def _text_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    for where, line in _lines(path):
        words = line.split()
        with _Meant(where, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS", line):
            number, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            params = tuple(map(float, words[4:]))
        yield number, _camera(model, width, height, params, where)


def _text_images(path: Path) -> Iterator[Image]:
    lines = _lines(path, blank=True)
    for where, line in lines:
        if not line.strip():
            continue
        with _Meant(where, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", line):
            words = line.split(maxsplit=9)
            pose, camera, name = list(map(float, words[1:8])), int(words[8]), words[9].strip()
        below, seen = next(lines, (where, ""))
        with _Meant(below, "X Y POINT3D_ID, again and again", seen):
            table = np.array(seen.split(), np.float64).reshape(-1, 3)
        yield Image(name, camera, _cam2world(pose, where), table[:, :2], table[:, 2].astype(np.int64))


def _text_points(path: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    for where, line in _lines(path):
        with _Meant(where, "POINT3D_ID X Y Z R G B ERROR TRACK", line):
            words = line.split(maxsplit=4)
            number, xyz = int(words[0]), [float(word) for word in words[1:4]]
            if len(xyz) < 3:
                raise ValueError
        yield number, _finite(xyz, where)


def _lines(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Lines and what to call them, without comments; blank: empty ones too."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.startswith("#") and (blank or line.strip()):
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error


class _Meant:
    """Raises SourceError for a line that does not say what it should."""

    def __init__(self, where: str, meant: str, line: str) -> None:
        self._where, self._meant, self._line = where, meant, line

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | IndexError):
            raise SourceError(f"{self._where}: expected {self._meant}, found {self._line.strip()[:80]!r}") from error


def _camera(model: str, width: int, height: int, params: tuple[float, ...], where: str) -> Camera:
    if model not in CAMERAS:
        raise SourceError(f"{where}: the camera model {model} is not known here; convert it with COLMAP to one of {', '.join(CAMERAS)}")
    if len(params) != len(CAMERAS[model].names):
        raise SourceError(f"{where}: expected {' '.join(CAMERAS[model].names)} of {model}, found {len(params)} parameters")
    return Camera(model, width, height, _finite(params, where))


def _finite(values: list[float] | tuple[float, ...], where: str) -> tuple[float, ...]:
    if not np.isfinite(values).all():
        raise SourceError(f"{where}: holds numbers that are not finite; write the model again")
    return tuple(values)


def _cam2world(pose: list[float], where: str) -> NDArray[np.float64]:
    """From qw qx qy qz tx ty tz, world to camera."""
    qw, qx, qy, qz, *translation = _finite(pose, where)
    if np.linalg.norm([qw, qx, qy, qz]) < 1e-9:
        raise SourceError(f"{where}: the quaternion is zero; write the model again")
    rotation = Rotation.from_quat([qx, qy, qz, qw]).inv()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), -rotation.apply(translation)
    return matrix
