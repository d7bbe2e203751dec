"""One still picture: its bytes become upright 8-bit RGB. And the resize that every source shares."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")

_ORIENTATION, _FOCAL_35MM, _EXIF_IFD, _EXIF_WIDTH, _EXIF_HEIGHT = 0x0112, 0xA405, 0x8769, 0xA002, 0xA003
_BITS_PER_SAMPLE = 258
_WITH_EXIF = ("JPEG", "MPO", "WEBP", "TIFF")
"""Formats whose EXIF is read. Both decoders turn a TIFF upright themselves."""
_RGB_OF_8_BIT = b"\x08\x02"
"""Bits of a sample and type of colour in the header of a PNG."""
_DEPTHS = (8, 10, 12, 14, 16)
_TURNS = {1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True), 5: (270, True), 6: (90, False), 7: (90, True), 8: (270, False)}
"""EXIF orientation -> degrees clockwise to turn after an optional left-right flip."""


@dataclass(frozen=True)
class PictureHeader:
    """width, height of the upright picture; rotation, mirrored as in SourceInfo; deep: samples over 8 bit; focal_35mm: mm or None."""

    width: int
    height: int
    format: str
    rotation: int
    mirrored: bool
    deep: bool
    focal_35mm: float | None


def read_header(content: bytes, origin: object, max_pixels: int) -> PictureHeader:
    """Facts of an encoded picture without decoding it. Raises SourceError: not a picture, or larger than max_pixels."""
    with _opened(content, origin) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise SourceError(f"{origin}: {width}x{height} pixels exceed frames.max_pixels = {max_pixels}; scale down or raise it")
        exif = image.getexif() if image.format in _WITH_EXIF else {}
        rotation, mirrored = _TURNS.get(exif.get(_ORIENTATION, 1), (0, False)) if image.format != "TIFF" else (0, False)
        if rotation % 180:
            width, height = height, width
        return PictureHeader(width, height, str(image.format), rotation, mirrored, _is_deep(image, content), _focal_35mm(exif, image.size))


def _plain_png(content: bytes, origin: object) -> NDArray[np.uint8]:
    """What Pillow makes of it, in half the time."""
    import imagecodecs

    try:
        return np.asarray(imagecodecs.png_decode(content))[..., :3]
    except imagecodecs.PngError as error:
        raise _damaged(origin, error) from error


def _damaged(origin: object, error: Exception) -> SourceError:
    return SourceError(f"{origin}: the picture is damaged ({error}); replace it or take it out of the folder")


def sample_bits(content: bytes, origin: object) -> int:
    """The smallest of 8, 10, 12, 14, 16 bits that holds every sample of a picture. Raises SourceError."""
    peak = int(_deep_samples(content, origin).max(initial=0))
    return next(bits for bits in _DEPTHS if peak < 1 << bits)


def decode_picture(content: bytes, header: PictureHeader, bits: int, origin: object) -> NDArray[np.uint8]:
    """Upright (H, W, 3) uint8 RGB; transparency is dropped, grey is repeated, samples of `bits` bits are scaled to 8 by 255 / (2^bits - 1).

    Raises SourceError for damaged content.
    """
    if header.deep:
        samples = _deep_samples(content, origin).astype(np.float32)
        rgb = np.clip(samples * (255.0 / ((1 << bits) - 1)) + 0.5, 0, 255).astype(np.uint8)
    elif header.format == "PNG" and content[24:26] == _RGB_OF_8_BIT:
        rgb = _plain_png(content, origin)
    else:
        with _opened(content, origin) as image:
            try:
                rgb = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:
                raise _damaged(origin, error) from error
    return upright(rgb, header.rotation, header.mirrored)


def upright(rgb: NDArray[np.uint8], rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """Flip left-right when mirrored, then turn by `rotation` degrees clockwise; contiguous."""
    turned = np.rot90(rgb[:, ::-1] if mirrored else rgb, -(rotation // 90))
    return np.ascontiguousarray(turned)


def resized(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture at width x height: area averages when it shrinks, else bilinear; pixel centres map by c -> s * (c + 0.5) - 0.5."""
    import cv2

    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = width <= rgb.shape[1] and height <= rgb.shape[0]
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8)


def working_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) with the longer side at most `long_side`, never enlarged, each side rounded to the nearest pixel.

    Sides are not made even or divisible: that would change the aspect, hence the ratio of the focal lengths, more than rounding does.
    """
    scale = min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _opened(content: bytes, origin: object) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise SourceError(f"{origin}: {error}; scale it down") from error
    except UnidentifiedImageError as error:
        raise SourceError(f"{origin}: not a picture, whatever its name says; replace it or take it out of the folder") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(origin, error) from error


def _is_deep(image: Any, content: bytes) -> bool:
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "PNG":
        return content[24] == 16
    return image.format == "TIFF" and max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8


def _deep_samples(content: bytes, origin: object) -> NDArray[np.uint16]:
    import cv2

    samples = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise SourceError(f"{origin}: the picture is damaged or of an unusual kind; replace it or save it as an 8-bit png")
    if samples.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{origin}: samples of type {samples.dtype} have no natural range; save it as an 8 or 16-bit png")
    if samples.ndim == 2:
        return np.repeat(samples[..., None], 3, axis=-1).astype(np.uint16)
    return samples[..., 2::-1].astype(np.uint16)


def _focal_35mm(exif: Any, size: tuple[int, int]) -> float | None:
    """FocalLengthIn35mmFilm in mm; None when absent, zero, or when EXIF says that the picture was cropped since."""
    if not exif:
        return None
    fields = exif.get_ifd(_EXIF_IFD)
    try:
        focal = float(fields.get(_FOCAL_35MM, 0))
        taken = float(fields.get(_EXIF_WIDTH, size[0])), float(fields.get(_EXIF_HEIGHT, size[1]))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 0 < focal < 10_000 or min(taken) <= 0:
        return None
    aspects = sorted((taken[0] / taken[1], taken[1] / taken[0])), sorted((size[0] / size[1], size[1] / size[0]))
    return focal if abs(aspects[0][1] / aspects[1][1] - 1) < 0.02 else None
