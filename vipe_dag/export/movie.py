"""An H.264 mp4 of pictures with times of their own."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TICK = Fraction(1, 90_000)
"""Unit of the timestamps, that of broadcast video: exact for the common frame rates."""


def write_movie(path: Path, frames: Iterable[tuple[float, NDArray[np.uint8]]], fps: float, crf: int = 18) -> int:
    """Write pictures (H, W, 3) uint8 with their times in seconds, ascending from 0; returns how many. crf: x264's quality, less is better.

    Colour is 4:2:0, or 4:4:4 where a side is odd, which 4:2:0 cannot hold.
    """
    import av

    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), "preset": "fast"})
        stream.codec_context.time_base = _TICK
        for time, rgb in frames:
            if not count:
                stream.height, stream.width = rgb.shape[:2]
                stream.pix_fmt = "yuv444p" if rgb.shape[0] % 2 or rgb.shape[1] % 2 else "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = round(time / _TICK), _TICK
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count
