"""One edge's measurements of a block of points: residual, robust weight and Jacobians, in registers."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from vipe_kernels import formulas


def _formula(function: Callable[..., Any]) -> Any:
    """A formula for use within kernels, as if it stood in this module: Triton wants to see its language among a function's globals."""
    return triton.jit(FunctionType(function.__code__, globals(), function.__name__))


brown = _formula(formulas.brown)
fisheye = _formula(formulas.fisheye)
fisheye_angle = _formula(formulas.fisheye_angle)
point_jacobian = _formula(formulas.point_jacobian)
pose_row = _formula(formulas.pose_row)


@triton.jit
def number(pointer, place):
    """The scalar at a place, float32."""
    return tl.load(pointer + place).to(tl.float32)


@triton.jit
def arctan(r):
    """atan of r >= 0 to 2e-7 (Cephes, atanf): Triton has none of its own that every backend knows."""
    far = r > 2.414213562373095  # tan(3 pi / 8)
    middle = (r > 0.4142135623730950) & (r <= 2.414213562373095)  # tan(pi / 8)
    x = tl.where(far, -1.0 / tl.where(far, r, 1.0), tl.where(middle, (r - 1.0) / (r + 1.0), r))
    base = tl.where(far, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    z = x * x
    series = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    return base + (series * z * x + x)


@triton.jit
def distort(x, y, r, theta, params, MODEL: tl.constexpr):
    """Distorted point and its derivative, as `fused` has it; r, theta: radius and angle, which only the fisheye model (2) reads."""
    if MODEL == 0:
        one = x * 0.0 + 1.0
        return x, y, one, x * 0.0, one
    elif MODEL == 1:
        return brown(x, y, number(params, 4), number(params, 5), number(params, 6), number(params, 7), number(params, 8))
    else:
        distorted, slope = fisheye_angle(theta, number(params, 4), number(params, 5), number(params, 6), number(params, 7))
        return fisheye(x, y, r, distorted, slope)


@triton.jit
def intrinsic_slope(x, y, xd, yd, r, theta, fx, fy, CODE: tl.constexpr, MODEL: tl.constexpr):
    """How a free intrinsic (`fused.INTRINSIC_CODES`) moves the pixel of the normalised point."""
    if CODE == 0:
        return fx * xd, fy * yd
    elif CODE == 4:
        return x * 0.0 + 1.0, x * 0.0
    elif CODE == 5:
        return x * 0.0, x * 0.0 + 1.0
    else:
        if MODEL == 2:
            t2 = theta * theta
            power = theta * t2 / r
            if CODE == 2:
                power = power * t2
        else:
            r2 = r * r
            power = r2
            if CODE >= 2:
                power = power * r2
            if CODE == 3:
                power = power * r2
        return fx * x * power, fy * y * power


@triton.jit
def measure(
    e, lane, inside, ray_x, ray_y, ray_z, depth, moves, slope, rotation, translation, target, weight, params, limit, points, scale2, near,
    MODEL: tl.constexpr, CODES: tl.constexpr, N: tl.constexpr, ROTATION_ONLY: tl.constexpr,
):  # fmt: skip
    """Edge e at the points `lane` of its source, where `inside`.

    Returns u, v: rows of [d pixel / d destination camera (6), d pixel / d intrinsics (N), error]; jdx, jdy by inverse depth; q: robust
    weight of the squares; cost and mass as of `bundle.Sums`. q is 0, and all is finite, where a point is not measured or not seen.
    """
    r00, r01, r02 = number(rotation, 9 * e), number(rotation, 9 * e + 1), number(rotation, 9 * e + 2)
    r10, r11, r12 = number(rotation, 9 * e + 3), number(rotation, 9 * e + 4), number(rotation, 9 * e + 5)
    r20, r21, r22 = number(rotation, 9 * e + 6), number(rotation, 9 * e + 7), number(rotation, 9 * e + 8)
    t0, t1, t2 = number(translation, 3 * e), number(translation, 3 * e + 1), number(translation, 3 * e + 2)
    fx, fy, cx, cy = number(params, 0), number(params, 1), number(params, 2), number(params, 3)
    at = e * points + lane
    trust = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    target_x = tl.load(target + 2 * at, mask=inside, other=0.0).to(tl.float32)
    target_y = tl.load(target + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    X = r00 * ray_x + r01 * ray_y + r02 * ray_z + t0 * depth
    Y = r10 * ray_x + r11 * ray_y + r12 * ray_z + t1 * depth
    Z = r20 * ray_x + r21 * ray_y + r22 * ray_z + t2 * depth
    front = near < Z
    iz = tl.where(front, 1.0 / tl.where(front, Z, 1.0), 0.0)
    x, y = X * iz, Y * iz
    radius = number(limit, 0)
    r2 = x * x + y * y
    trusted = trust > 0.0
    seen = trusted & front & (r2 <= radius * radius)
    x, y, r2 = tl.where(seen, x, 0.0), tl.where(seen, y, 0.0), tl.where(seen, r2, 0.0)
    r = tl.sqrt(r2 + 1e-18)
    theta = arctan(r)
    xd, yd, a, b, c = distort(x, y, r, theta, params, MODEL)
    ex = tl.where(seen, target_x - (fx * xd + cx), 0.0)
    ey = tl.where(seen, target_y - (fy * yd + cy), 0.0)
    squared = ex * ex + ey * ey
    shape = scale2 / (scale2 + squared)
    # a point that the camera cannot see is an outlier at its worst, so that no step is rewarded for hiding points
    cost = tl.where(trusted, trust * tl.where(seen, squared * shape, scale2), 0.0)
    mass = tl.where(seen, trust * shape, 0.0)
    q = mass * shape
    ax, bx, zx, ay, by, zy = point_jacobian(x, y, iz, fx, fy, a, b, c)
    u = pose_row(ax, bx, zx, X, Y, Z, depth)
    v = pose_row(ay, by, zy, X, Y, Z, depth)
    if ROTATION_ONLY:
        zero = x * 0.0
        u = (zero, zero, zero, u[3], u[4], u[5])
        v = (zero, zero, zero, v[3], v[4], v[5])
    for m in tl.static_range(N):
        ray_dx = tl.load(slope + m, mask=inside, other=0.0).to(tl.float32)
        ray_dy = tl.load(slope + N + m, mask=inside, other=0.0).to(tl.float32)
        mx, my = intrinsic_slope(x, y, xd, yd, r, theta, fx, fy, CODES[m], MODEL)
        u = u + (mx + (ax * r00 + bx * r10 + zx * r20) * ray_dx + (ax * r01 + bx * r11 + zx * r21) * ray_dy,)
        v = v + (my + (ay * r00 + by * r10 + zy * r20) * ray_dx + (ay * r01 + by * r11 + zy * r21) * ray_dy,)
    jdx = (ax * t0 + bx * t1 + zx * t2) * moves
    jdy = (ay * t0 + by * t1 + zy * t2) * moves
    return u + (ex,), v + (ey,), jdx, jdy, q, cost, mass


@triton.jit
def source_points(k, lane, inside, rays, depth, depth_free, ray_slope, points, N: tl.constexpr):
    """Of points `lane` of keyframe k: ray (3), inverse depth, 1.0 where depths are free, and pointers to how intrinsics move the ray."""
    at = k * points + lane
    ray_x = tl.load(rays + 3 * at, mask=inside, other=0.0).to(tl.float32)
    ray_y = tl.load(rays + 3 * at + 1, mask=inside, other=0.0).to(tl.float32)
    ray_z = tl.load(rays + 3 * at + 2, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(depth + at, mask=inside, other=0.0).to(tl.float32)
    return ray_x, ray_y, ray_z, d, number(depth_free, k), ray_slope + 2 * N * at
