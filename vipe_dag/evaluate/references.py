"""What an estimate is compared with: trajectory files and folders of depth maps."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.export import tum

DEPTH_SUFFIXES = (".npy", ".npz", ".png")
MILLIMETRES = 0.001
_NO_READING = 65535
"""Depth cameras write the largest 16-bit value, besides 0, where they measured nothing."""


@dataclass(frozen=True)
class Reference:
    """A reference trajectory: cam2world (N, 4, 4) float64, OpenCV axes; time (N,) float64 seconds, or None when row i is source frame i."""

    origin: str
    time: NDArray[np.float64] | None
    cam2world: NDArray[np.float64]


def read_reference(path: str | Path) -> Reference:
    """Read a trajectory: TUM lines (8 numbers, the first a timestamp) or KITTI lines (12 numbers, a 3 x 4 matrix, one line per frame).

    Raises SourceError for a file that is missing, empty or neither.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a trajectory ({error})") from error
    return parse_reference(text, str(path))


def parse_reference(text: str, origin: str) -> Reference:
    """What `read_reference` returns, from the text of a file that errors call `origin`. Raises SourceError."""
    rows = [words for line in text.splitlines() if (words := line.split("#", 1)[0].replace(",", " ").split())]
    if not rows or len(rows[0]) != 12:
        time, cam2world = tum.parse(text, origin)
        return Reference(origin, time, cam2world)
    try:
        table = np.array(rows, np.float64).reshape(-1, 3, 4)
    except ValueError as error:
        raise SourceError(f"{origin}: expected 12 numbers in every line, as KITTI writes poses ({error})") from error
    if not np.isfinite(table).all():
        raise SourceError(f"{origin}: holds a pose that is not finite")
    cam2world = np.tile(np.eye(4), (len(table), 1, 1))
    cam2world[:, :3] = table
    return Reference(origin, None, cam2world)


class DepthFolder:
    """Depth maps of single frames: .npy or .npz in the unit of the reference trajectory, or 16-bit .png in steps of `png_unit`.

    A map belongs to the frame whose image has its stem, else to the frame whose source index is the last number in its stem.
    """

    def __init__(self, directory: str | Path, frame_stems: Sequence[str] = (), png_unit: float = MILLIMETRES) -> None:
        """frame_stems: stems of the image files by source index, where the source is a folder. Raises SourceError when there is no map."""
        self._directory, self._png_unit = Path(directory), png_unit
        if not self._directory.is_dir():
            raise SourceError(f"{self._directory}: is no folder of depth maps")
        files = [path for path in sorted(self._directory.iterdir()) if path.suffix.lower() in DEPTH_SUFFIXES]
        if not files:
            raise SourceError(f"{self._directory}: holds no depth map ({', '.join(DEPTH_SUFFIXES)})")
        by_stem = {path.stem: path for path in files}
        self._files = {index: by_stem[stem] for index, stem in enumerate(frame_stems) if stem in by_stem}
        if not self._files:
            self._files = {int(numbers[-1]): path for path in files if (numbers := re.findall(r"\d+", path.stem))}

    def __contains__(self, frame: object) -> bool:
        return frame in self._files

    def __str__(self) -> str:
        return str(self._directory)

    @property
    def frames(self) -> list[int]:
        """Source indices that have a map, ascending."""
        return sorted(self._files)

    def read(self, frame: int) -> NDArray[np.float32]:
        """z-depth (H, W) float32 of one source frame; NaN where the reference has none. Raises SourceError for an unreadable map."""
        path = self._files[frame]
        try:
            depth = self._png(path) if path.suffix.lower() == ".png" else self._array(path)
        except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: cannot be read as a depth map ({error})") from error
        if depth.ndim != 2:
            raise SourceError(f"{path}: expected a depth map (height, width), found shape {depth.shape}")
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)

    def _png(self, path: Path) -> NDArray[np.float32]:
        import cv2

        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.dtype != np.uint16:
            raise ValueError("expected a 16-bit PNG")
        return np.where(raw == _NO_READING, 0, raw).astype(np.float32) * np.float32(self._png_unit)

    @staticmethod
    def _array(path: Path) -> NDArray[np.float32]:
        content = np.load(path, allow_pickle=False)
        if path.suffix.lower() == ".npz":
            with content:
                names = content.files
                return np.asarray(content["depth" if "depth" in names else names[0]], np.float32)
        return np.asarray(content, np.float32)


def resize_nearest(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Depth at another resolution without mixing surfaces: each target pixel centre takes the nearest source pixel.

    Raises SourceError when the two pictures have different proportions (more than 2 %).
    """
    if depth.shape == (height, width):
        return depth
    if abs(depth.shape[1] * height / (depth.shape[0] * width) - 1) > 0.02:
        raise SourceError(f"depth of {depth.shape[1]}x{depth.shape[0]} does not show the same picture as an estimate of {width}x{height}")
    return nearest_pixels(depth, height, width)


def nearest_pixels(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """An image (H, W) at another resolution: each target pixel centre takes the source pixel that it falls into."""
    if image.shape == (height, width):
        return image
    rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
    return image[rows][:, columns]
