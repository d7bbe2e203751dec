"""Small videos and picture folders for tests. Every frame carries its number in black and white bands, and coloured corners."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.video import Clip, open_source

BITS = 8
CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def card(number: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """(height, width, 3) test card: corners red (top left), green (top right), blue (bottom left), white; bands: the bits of `number`."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    rows, columns = height // 4, width // 4
    picture[:rows, :columns], picture[:rows, -columns:] = CORNERS["red"], CORNERS["green"]
    picture[-rows:, :columns], picture[-rows:, -columns:] = CORNERS["blue"], CORNERS["white"]
    for bit in range(BITS):
        left, right = (width * bit) // BITS, (width * (bit + 1)) // BITS
        picture[rows : height - rows, left:right] = 255 * (number >> bit & 1)
    return picture


def number_on(picture: NDArray[np.uint8]) -> int:
    """The number that an upright card carries."""
    middle = picture[picture.shape[0] // 2].mean(axis=-1)
    centres = (np.arange(BITS) + 0.5) * len(middle) / BITS
    return int(sum(int(middle[int(centre)] > 127) << bit for bit, centre in enumerate(centres)))


def numbers(uri: str | Path, clip: Clip | None = None) -> list[int]:
    """The numbers of the frames that a source gives."""
    return [number_on(frame.rgb) for frame in open_source(str(uri)).iterate(clip or Clip())]


def refusal(uri: str | Path) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(SourceError) as caught:
        list(open_source(str(uri)).iterate())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corners_of(picture: NDArray[np.uint8]) -> list[str]:
    """Colour names at top left, top right, bottom left, bottom right."""
    seen = [picture[y, x].astype(int) for y in (2, -3) for x in (2, -3)]
    return [min(CORNERS, key=lambda name: int(np.abs(pixel - CORNERS[name]).sum())) for pixel in seen]


def write_video(
    path: Path,
    frames: int = 20,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    pixel_aspect: Fraction | None = None,
    faststart: bool = True,
    sound: bool = False,
    options: dict[str, str] | None = None,
    format: str | None = None,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Frames numbered from 0 at `fps`, or at times_ms. `rotation` is counter-clockwise, as a phone held upright writes it."""
    import av

    in_front = {"movflags": "faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=muxing or in_front, format=format) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000) if times_ms else Fraction(1, fps)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        noise = container.add_stream("aac", rate=44100) if sound else None
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(card(number, *size), "rgb24")
            picture.pts, picture.time_base = (times_ms[number] if times_ms else number), stream.codec_context.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if noise is not None:
            container.mux(noise.encode(_hum(noise)))
            container.mux(noise.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """An mp4 with a second of sound only, with or without a cover picture."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt, art.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
            container.mux([*art.encode(av.VideoFrame.from_ndarray(card(0), "rgb24")), *art.encode()])
        container.mux(stream.encode(_hum(stream)))
        container.mux(stream.encode())
    return path


def write_pictures(folder: Path, names: Sequence[str], size: tuple[int, int] = (64, 48)) -> Path:
    """One card per name, numbered in the order given."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(card(number, *size)).save(folder / name)
    return folder


def _hum(stream: object) -> object:
    import av

    wave = (np.sin(np.arange(44100) / 20.0) * 3000).astype(np.int16)
    sound = av.AudioFrame.from_ndarray(wave[None, :], format="s16", layout="mono")
    sound.sample_rate, sound.pts = 44100, 0
    return sound
