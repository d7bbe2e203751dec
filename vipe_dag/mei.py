"""The unified camera of Mei, which ViPE has for wide lenses, in terms of ours and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration

MAX_LENS_ERROR_PX = 0.1
"""How far apart a camera of Mei's and ours may be to count as the same."""
_SAMPLES = 400
_WIDEST = 3.0
"""Angle off the axis, in radians, beyond which no lens is looked at."""


def from_mei(values: NDArray[np.float64], width: int, height: int) -> tuple[Calibration, float]:
    """The fisheye camera nearest to u = f X / (Z + xi |X|) + c, and the largest distance between the two in pixels over the picture.

    values: fx fy cx cy xi.

    At an angle theta off the axis Mei's radius is f sin(theta) / (cos(theta) + xi), an odd function; fisheye's is the polynomial
    f' theta (1 + k1 theta^2 + .. + k4 theta^8), whose five coefficients are found by least squares in the angles that the picture shows.
    """
    fx, fy, cx, cy, xi = values.tolist()
    corner = max(np.hypot((x - cx) / fx, (y - cy) / fy) for x in (0, width - 1) for y in (0, height - 1))
    theta = np.linspace(0, _angle(float(corner), xi), _SAMPLES)[1:]
    radius = np.sin(theta) / (np.cos(theta) + xi)
    powers = theta[:, None] ** np.arange(1, 11, 2)
    coefficients = np.linalg.lstsq(powers, radius, rcond=None)[0]
    error = float(np.abs(powers @ coefficients - radius).max() * max(fx, fy))
    head, bend = coefficients[0], coefficients[1:] / coefficients[0]
    return Calibration("fisheye", np.array([fx * head, fy * head, cx, cy, *bend, 0.0]), width, height), error


def to_mei(camera: Calibration) -> tuple[NDArray[np.float64], float]:
    """The camera of Mei's nearest to a fisheye camera: fx fy cx cy xi, and the largest distance in pixels; inf where there is none.

    f sin(theta) / (cos(theta) + xi) = r is linear in f and xi once it is multiplied out: f sin(theta) - xi r = r cos(theta).
    """
    fx, fy, cx, cy, *bend = camera.params[:8].tolist()
    corner = max(np.hypot((x - cx) / fx, (y - cy) / fy) for x in (0, camera.width - 1) for y in (0, camera.height - 1))
    theta = np.linspace(0, _WIDEST, 10 * _SAMPLES)[1:]
    radius = theta * (1 + theta[:, None] ** np.arange(2, 10, 2) @ bend)
    outside = np.flatnonzero(radius >= corner)
    if not len(outside):
        return np.array([fx, fy, cx, cy, 0.0]), np.inf
    theta, radius = theta[: outside[0] + 1], radius[: outside[0] + 1]
    columns = np.stack([np.sin(theta), -radius], axis=-1)
    focal, xi = np.linalg.lstsq(columns, radius * np.cos(theta), rcond=None)[0]
    xi = max(0.0, xi)
    below = np.cos(theta) + xi
    error = np.abs(focal * np.sin(theta) / below - radius).max() * max(fx, fy) if below.min() > 0 else np.inf
    return np.array([fx * focal, fy * focal, cx, cy, xi]), float(error)


def _angle(radius: float, xi: float) -> float:
    """Angle off the axis whose normalised radius it is: radius (cos + xi) = sin."""
    return float(np.arcsin(min(1.0, xi * radius / np.hypot(1, radius))) + np.arctan(radius))
