"""Random access to the pixels and depth of one video: what a stage sees instead of a store, a file or a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class FrameSequence(Protocol):
    """The decoded frames of one video at working resolution. `row` is the 0-based position on the `frame` dimension."""

    @property
    def frame(self) -> NDArray[np.int64]:
        """(T,) index of each row in the source video."""

    @property
    def time(self) -> NDArray[np.float64]:
        """(T,) presentation time of each row, seconds, from the container."""

    @property
    def height(self) -> int:
        """Rows of pixels of every frame."""

    @property
    def width(self) -> int:
        """Columns of pixels of every frame."""

    def __len__(self) -> int: ...

    def rgb(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) colours of one row. Several threads may ask at a time."""

    def luma(self, row: int) -> NDArray[np.uint8]:
        """(H, W) `luma` of the colours of one row, which may be much cheaper to read. Several threads may ask at a time."""


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) brightness of (H, W, 3) colours: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded."""
    import cv2

    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


class DepthSequence(Protocol):
    """Dense depth of one video, row by row, aligned with a FrameSequence."""

    def __len__(self) -> int: ...

    def depth(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """(H, W) z-depth (NaN = unknown), (H, W) confidence 0..255, (H, W) measured."""


@dataclass(frozen=True)
class ArrayFrames:
    """Frames held in memory, for notebooks and tests.

    rgb_array (T, H, W, 3) uint8; time (T,) float64 seconds; frame (T,) int64 source index.
    """

    rgb_array: NDArray[np.uint8]
    time: NDArray[np.float64]
    frame: NDArray[np.int64]

    @property
    def height(self) -> int:
        return int(self.rgb_array.shape[1])

    @property
    def width(self) -> int:
        return int(self.rgb_array.shape[2])

    def __len__(self) -> int:
        return len(self.rgb_array)

    def rgb(self, row: int) -> NDArray[np.uint8]:
        return self.rgb_array[row]

    def luma(self, row: int) -> NDArray[np.uint8]:
        return luma(self.rgb(row))


@dataclass(frozen=True)
class ArrayDepth:
    """Depth held in memory: z_depth (T, H, W) float, confidence (T, H, W) uint8, measured (T, H, W) bool."""

    z_depth: NDArray[np.float32]
    confidence: NDArray[np.uint8]
    measured: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.z_depth)

    def depth(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        return self.z_depth[row].astype(np.float32), self.confidence[row], self.measured[row]
