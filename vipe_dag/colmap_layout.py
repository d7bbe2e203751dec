"""COLMAP's camera models: numbers, parameters, and which of ours they are. The export writes them, the import reads them.

https://colmap.github.io/cameras.html
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CameraModel:
    """number: in binary files; names: of the parameters, in order; ours: the camera model here that has the same form, None for none.

    A name that ours has no slot for is an extension: zero, and the two are the same.
    """

    number: int
    names: tuple[str, ...]
    ours: str | None


def _model(number: int, names: str, ours: str | None) -> CameraModel:
    return CameraModel(number, tuple(names.split()), ours)


CAMERAS: dict[str, CameraModel] = {
    "SIMPLE_PINHOLE": _model(0, "f cx cy", "brown"),
    "PINHOLE": _model(1, "fx fy cx cy", "brown"),
    "SIMPLE_RADIAL": _model(2, "f cx cy k1", "brown"),
    "RADIAL": _model(3, "f cx cy k1 k2", "brown"),
    "OPENCV": _model(4, "fx fy cx cy k1 k2 p1 p2", "brown"),
    "OPENCV_FISHEYE": _model(5, "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    "FULL_OPENCV": _model(6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6", "brown"),
    "FOV": _model(7, "fx fy cx cy omega", None),
    "SIMPLE_RADIAL_FISHEYE": _model(8, "f cx cy k1", "fisheye"),
    "RADIAL_FISHEYE": _model(9, "f cx cy k1 k2", "fisheye"),
    "THIN_PRISM_FISHEYE": _model(10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", "fisheye"),
    "RAD_TAN_THIN_PRISM_FISHEYE": _model(11, "fx fy cx cy k1 k2 k3 k4 k5 k6 p1 p2 s1 s2 s3 s4", "fisheye"),
    "SIMPLE_DIVISION": _model(12, "f cx cy k", None),
    "DIVISION": _model(13, "fx fy cx cy k", None),
    "SIMPLE_FISHEYE": _model(14, "f cx cy", "fisheye"),
    "FISHEYE": _model(15, "fx fy cx cy", "fisheye"),
    "EUCM": _model(16, "fx fy cx cy alpha beta", None),
    "EQUIRECTANGULAR": _model(17, "w h", None),
}
"""By COLMAP's name."""

SLOTS = {"brown": ("k1", "k2", "p1", "p2", "k3"), "fisheye": ("k1", "k2", "k3", "k4")}
"""Names of the coefficients of our models, in the order of their slots."""

CORNER = 0.5
"""COLMAP counts pixels from the corner of the picture, so the centre of the first pixel is here."""
