"""The pictures of an export: a folder's own files, byte for byte, or the frames of a video at source resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vipe_dag.errors import SourceError
from vipe_dag.export.estimate import Estimate
from vipe_dag.store import VideoStore
from vipe_dag.video import ImageFolder, Limits, VideoSource, open_source
from vipe_dag.video.picture import decode_picture, read_header

Encoding = Literal["jpg", "png"]
JPEG_QUALITY = 95
_MAX_PIXELS = 2**28
"""Bound on pictures whose digest shows that an earlier pass accepted them."""
_MAX_FILE_BYTES = 1 << 30


def opened_source(estimate: Estimate) -> VideoSource:
    """The source of a video. Raises SourceError when it is gone or is no longer what the poses were computed from."""
    source = open_source(estimate.source_uri)
    if source.digest != estimate.source_digest:
        raise SourceError(f"{estimate.source_uri}: its content changed since the poses were computed; restore it, or run the video again")
    return source


def write_pictures(
    store: VideoStore, estimate: Estimate, rows: NDArray[np.int64], folder: Path, encoding: Encoding = "jpg"
) -> dict[int, str]:
    """Put the pictures of `rows` (ascending) into a new folder; returns their names by row.

    Files of an image folder are copied and keep their names; those that a reader would have to turn (EXIF orientation) are written upright
    as PNG, since the camera is that of the upright picture. Frames of a video become frame_NNNNNN by source index: png is lossless, jpg is
    4:4:4 at quality 95. Raises SourceError when the source is gone, changed or lacks a frame.
    """
    source = opened_source(estimate)
    folder.mkdir()
    if isinstance(source, ImageFolder):
        return _copied(source, estimate, rows, folder)
    return _decoded(source, store, estimate, rows, folder, encoding)


def _copied(source: ImageFolder, estimate: Estimate, rows: NDArray[np.int64], folder: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for row in rows.tolist():
        index = int(estimate.frame[row])
        file = source.files[index]
        content = file.read(_MAX_FILE_BYTES)
        header = read_header(content, file, _MAX_PIXELS)
        name = file.name if file.name.lower() not in taken else f"{index:06d}_{file.name}"
        if header.rotation or header.mirrored:
            name = f"{Path(name).stem}.png"
            Image.fromarray(decode_picture(content, header, 8, file)).save(folder / name)
        else:
            (folder / name).write_bytes(content)
        taken.add(name.lower())
        names[row] = name
    return names


def source_frames(store: VideoStore, estimate: Estimate) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every row and its picture (H, W, 3) uint8, upright, at source resolution. Raises SourceError: source gone, changed, or a frame."""
    yield from _frames(opened_source(estimate), store, estimate, np.arange(len(estimate.frame)))


def _frames(source: VideoSource, store: VideoStore, estimate: Estimate, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    row_of = {int(estimate.frame[row]): int(row) for row in rows}
    for frame in source.iterate(store.source(estimate.video_id).clip, limits=Limits(max_pixels=_MAX_PIXELS)):
        row = row_of.pop(frame.index, None)
        if row is not None:
            yield row, frame.rgb
        if not row_of:
            return
    raise SourceError(f"{estimate.source_uri}: no longer gives frame {min(row_of)}; run the video again")


def _decoded(
    source: VideoSource, store: VideoStore, estimate: Estimate, rows: NDArray[np.int64], folder: Path, encoding: Encoding
) -> dict[int, str]:
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if encoding == "jpg" else {"compress_level": 3}
    names: dict[int, str] = {}
    for row, rgb in _frames(source, store, estimate, rows):
        names[row] = f"frame_{int(estimate.frame[row]):06d}.{encoding}"
        Image.fromarray(rgb).save(folder / names[row], **options)
    return names
