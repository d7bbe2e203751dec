"""Projection and its inverse in plain NumPy float64: the truth of the synthetic worlds, written apart from the engine's own camera code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration

Array = NDArray[np.float64]


def _brown(x: Array, y: Array, k: Array) -> tuple[Array, Array]:
    """OpenCV's five-parameter lens (calib3d documentation, `distCoeffs`): k = k1 k2 p1 p2 k3."""
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))
    return (
        x * radial + 2.0 * k[2] * x * y + k[3] * (r2 + 2.0 * x * x),
        y * radial + k[2] * (r2 + 2.0 * y * y) + 2.0 * k[3] * x * y,
    )


def _fisheye(x: Array, y: Array, k: Array) -> tuple[Array, Array]:
    """Kannala-Brandt as in OpenCV's `fisheye` module: theta_d = theta (1 + k1 theta^2 + ... + k4 theta^8)."""
    r = np.hypot(x, y)
    theta = np.arctan(r)
    t2 = theta * theta
    theta_d = theta * (1.0 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))))
    scale = np.where(r > 1e-12, theta_d / np.maximum(r, 1e-12), 1.0)
    return x * scale, y * scale


def distort(camera: Calibration, x: Array, y: Array) -> tuple[Array, Array]:
    """Pixel of normalised directions (x, y, 1); arrays of one shape, float64."""
    fx, fy, cx, cy = camera.params[:4]
    k = camera.params[4:]
    if camera.camera_model == "brown":
        x, y = _brown(x, y, k)
    elif camera.camera_model == "fisheye":
        x, y = _fisheye(x, y, k)
    return fx * x + cx, fy * y + cy


def project(camera: Calibration, points: Array) -> tuple[Array, Array]:
    """Pixels (..., 2) and z-depth (...) of camera-frame points (..., 3). Pixels of points with z <= 0 are NaN."""
    z = points[..., 2]
    safe = np.where(z > 1e-9, z, np.nan)
    u, v = distort(camera, points[..., 0] / safe, points[..., 1] / safe)
    return np.stack([u, v], axis=-1), z


def undistort(camera: Calibration, u: Array, v: Array) -> tuple[Array, Array]:
    """Normalised directions (x, y), so that (x, y, 1) is the ray of pixel (u, v). Newton's method on the forward model.

    Raises ValueError where the lens is not invertible at a requested pixel (the distortion folds back inside the picture).
    """
    fx, fy, cx, cy = camera.params[:4]
    k = camera.params[4:]
    xd, yd = (np.asarray(u, np.float64) - cx) / fx, (np.asarray(v, np.float64) - cy) / fy
    if camera.camera_model == "pinhole":
        return xd, yd
    if camera.camera_model == "fisheye":
        x, y, error = _undistort_fisheye(xd, yd, k)
    else:
        x, y, error = _undistort_brown(xd, yd, k)
    worst = float(np.nanmax(error)) if error.size else 0.0
    if not np.isfinite(error).all() or worst > 1e-9:
        raise ValueError(f"the {camera.camera_model} lens does not reach every requested pixel (error {worst:.2g}): use milder distortion")
    return x, y


def _undistort_brown(xd: Array, yd: Array, k: Array) -> tuple[Array, Array, Array]:
    x, y = xd.copy(), yd.copy()
    for _ in range(30):
        r2 = x * x + y * y
        radial = 1.0 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))
        slope = k[0] + r2 * (2.0 * k[1] + 3.0 * r2 * k[4])
        fx, fy = _brown(x, y, k)
        ex, ey = fx - xd, fy - yd
        j00 = radial + 2.0 * x * x * slope + 2.0 * k[2] * y + 6.0 * k[3] * x
        j01 = 2.0 * x * y * slope + 2.0 * k[2] * x + 2.0 * k[3] * y
        j11 = radial + 2.0 * y * y * slope + 6.0 * k[2] * y + 2.0 * k[3] * x
        det = j00 * j11 - j01 * j01
        dx, dy = (j11 * ex - j01 * ey) / det, (j00 * ey - j01 * ex) / det
        x, y = x - dx, y - dy
        if max(np.abs(dx).max(initial=0.0), np.abs(dy).max(initial=0.0)) < 1e-13:
            break
    fx, fy = _brown(x, y, k)
    return x, y, np.hypot(fx - xd, fy - yd)


def _undistort_fisheye(xd: Array, yd: Array, k: Array) -> tuple[Array, Array, Array]:
    theta_d = np.hypot(xd, yd)
    theta = np.minimum(theta_d, 1.5)
    for _ in range(30):
        t2 = theta * theta
        value = theta * (1.0 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3])))) - theta_d
        slope = 1.0 + t2 * (3.0 * k[0] + t2 * (5.0 * k[1] + t2 * (7.0 * k[2] + t2 * 9.0 * k[3])))
        step = value / slope
        theta = theta - step
        if np.abs(step).max(initial=0.0) < 1e-13:
            break
    scale = np.where(theta_d > 1e-12, np.tan(theta) / np.maximum(theta_d, 1e-12), 1.0)
    x, y = xd * scale, yd * scale
    fx, fy = _fisheye(x, y, k)
    return x, y, np.hypot(fx - xd, fy - yd)
