"""Decoded rows of one video at one size, in a file on a fast local disk: reading a row is one read, several processes may share it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import StoreError

_READY = b"\x01"


@dataclass(frozen=True)
class Pixels:
    """One row: rgb (3, H, W) uint8, z_depth (H, W) float16, confidence (H, W) uint8, measured (H, W) bool."""

    rgb: NDArray[np.uint8]
    z_depth: NDArray[np.float16]
    confidence: NDArray[np.uint8]
    measured: NDArray[np.bool_]


class SampleCache:
    """A sparse file with a record of fixed size per row, 7 bytes per pixel and one that says that the record is complete.

    Two processes that miss the same row both write the same bytes. It may be deleted when nobody reads it. `content` names what the rows
    are of: another content or size is another file. Raises StoreError when the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, content: str, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._pixels = height * width
        self._record = 7 * self._pixels + 1
        digest = blake2b(f"{content} {height}x{width}".encode(), digest_size=8).hexdigest()
        self._path = folder / f"{name}-{digest}.samples"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._failed(error) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def row(self, row: int, make: Callable[[int], Pixels]) -> Pixels:
        """The row from the file, or made and put there. Raises StoreError when the disk is full or fails."""
        start = row * self._record
        try:
            found = np.empty(self._record, np.uint8)
            if os.preadv(self._file, [found.data], start) == self._record and found[-1:].tobytes() == _READY:
                return self._parsed(found)
            made = make(row)
            parts = (made.rgb, made.z_depth, made.confidence, made.measured)
            self._write(b"".join(np.ascontiguousarray(part).tobytes() for part in parts), start)
            self._write(_READY, start + self._record - 1)
        except OSError as error:
            raise self._failed(error) from error
        return made

    def _write(self, content: bytes, start: int) -> None:
        written = 0
        while written < len(content):
            written += os.pwrite(self._file, memoryview(content)[written:], start + written)

    def _parsed(self, record: NDArray[np.uint8]) -> Pixels:
        size, n = (self._height, self._width), self._pixels
        return Pixels(
            np.frombuffer(record, np.uint8, 3 * n).reshape(3, *size),
            np.frombuffer(record, np.float16, n, 3 * n).reshape(size),
            np.frombuffer(record, np.uint8, n, 5 * n).reshape(size),
            np.frombuffer(record, np.bool_, n, 6 * n).reshape(size),
        )

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(f"{self._path}: the cache of samples failed ({error.strerror or error}); give a folder with room, or no cache")
