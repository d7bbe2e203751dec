"""The unified camera of Mei in terms of ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration

_SAMPLES = 400


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


def _angle(radius: float, xi: float) -> float:
    """Angle off the axis whose normalised radius it is: radius (cos + xi) = sin."""
    return float(np.arcsin(min(1.0, xi * radius / np.hypot(1, radius))) + np.arctan(radius))
