"""Tiny video files for tests of what is around the numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, frames: int = 24, width: int = 160, height: int = 120, seed: int = 0) -> Path:
    """A texture that slides by, as H.264 at 12 frames per second."""
    texture = (
        np.random.default_rng(seed).integers(0, 255, (height // 8, (width + 4 * frames) // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "yuv420p", Fraction(1, 12)
        for number in range(frames):
            picture = np.ascontiguousarray(texture[:, 4 * number : 4 * number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
