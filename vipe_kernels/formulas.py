"""The arithmetic of one measurement, written once for every implementation.

Operators only, so that the same text runs on tensors (`cameras`), on floats compiled by numba (`fused`) and on blocks compiled by Triton
(`gpu`). Arguments are numbers, or arrays that broadcast, of one floating type.
"""

from __future__ import annotations


def brown(x, y, k1, k2, p1, p2, k3):
    """Brown-Conrady distortion as in OpenCV's calib3d documentation, and its derivative.

    x, y normalised. Returns distorted x, y, then dxd/dx, dxd/dy = dyd/dx, dyd/dy.
    """
    r2 = x * x + y * y
    # With m = 2 (p1 y + p2 x), the tangential part is (m x + p2 r2, m y + p1 r2).
    factor = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + 2 * (p1 * y + p2 * x)
    slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3)))  # d factor / dx = slope x + 2 p2
    sx = slope * x + 2 * p2
    sy = slope * y + 2 * p1
    return (
        x * factor + p2 * r2,
        y * factor + p1 * r2,
        factor + sx * x + 2 * p2 * x,
        sy * x + 2 * p2 * y,
        factor + sy * y + 2 * p1 * y,
    )


def fisheye_angle(theta, k1, k2, k3, k4):
    """Kannala-Brandt's distorted angle theta (1 + k1 theta^2 + .. + k4 theta^8) and its derivative by the angle."""
    t2 = theta * theta
    distorted = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
    return distorted, 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * (9 * k4))))


def fisheye(x, y, r, distorted, slope):
    """Kannala-Brandt as in OpenCV's fisheye module, with its derivative: what `brown` returns, from r = |(x, y)| > 0 and `fisheye_angle`
    of atan(r)."""
    tangential = distorted / r
    excess = slope / (1 + r * r) - tangential
    cx = x / r
    cy = y / r
    return x * tangential, y * tangential, tangential + cx * cx * excess, cx * cy * excess, tangential + cy * cy * excess


def point_jacobian(x, y, iz, fx, fy, a, b, c):
    """d pixel / d point, rows u and v: x, y normalised, iz = 1 / Z, and a, b, c the derivative of the distortion."""
    ax = fx * iz * a
    bx = fx * iz * b
    ay = fy * iz * b
    by = fy * iz * c
    return ax, bx, -(ax * x + bx * y), ay, by, -(ay * x + by * y)


def pose_row(a, b, c, X, Y, Z, d):
    """A row of d pixel / d [tau, phi] of the camera that sees (X, Y, Z), a point times its inverse depth d in its own keyframe.

    (a, b, c): that row of `point_jacobian`.
    """
    return a * d, b * d, c * d, Y * c - Z * b, Z * a - X * c, X * b - Y * a
