"""Measurements a block at a time, compiled for the CPU (numba), float64: what a camera sees of points, how wrong that is, and how the pixel
moves with the camera, the depth and the lens.

A block of BLOCK measurements lies in one array `work`, a row of it for each quantity, and every loop runs over the whole block without a
branch, so it fills vector registers; rows at known distances from each other in one array are what lets the compiler see that they do
not overlap. Measurements that a camera cannot see have no weight. `bundle` and `resection` say in tensors what these loops compute.
"""

from __future__ import annotations

import math

import numpy as np

from vipe_kernels import cameras, formulas
from vipe_kernels.compiled import compiled, inside_for_pixels

_TINY = cameras.TINY
_LANES = 16
"""A block is filled up to a multiple of so many."""

BLOCK = 64
"""Measurements of a block: with all their rows they fit a first-level cache."""
ROW = np.uint64(BLOCK)
PAIR = np.uint64(2 * BLOCK)
RAY_X, RAY_Y, RAY_Z, DEPTH, U, V, TRUST, Q = (np.uint64(BLOCK * i) for i in range(8))
"""Of a measurement: ray, inverse depth, pixel and weight, which the caller fills in; the weight that the robust kernel leaves."""
_X, _Y, _Z, _IZ, _PX, _PY, _XD, _YD, _A, _B, _C = (np.uint64(BLOCK * i) for i in range(8, 19))
_AX, _BX, _ZX, _AY, _BY, _ZY, SEEN, SQUARED = (np.uint64(BLOCK * i) for i in range(19, 27))
BY_DEPTH = np.uint64(BLOCK * 27)
"""From here on pairs of rows, the two coordinates of a pixel: by depth, by the six motions of the camera, the error, by intrinsics."""
MOTION, ERROR, INTRINSIC = BY_DEPTH + PAIR, BY_DEPTH + np.uint64(7) * PAIR, BY_DEPTH + np.uint64(8) * PAIR
_LENGTH = int(INTRINSIC)

_brown, _fisheye, _fisheye_angle = (inside_for_pixels(f) for f in (formulas.brown, formulas.fisheye, formulas.fisheye_angle))
_point_jacobian, _pose_row = inside_for_pixels(formulas.point_jacobian), inside_for_pixels(formulas.pose_row)


@compiled
def rows(intrinsics):
    """Length of `work` for so many free intrinsics; a pair more than are used, as products are taken two by two."""
    return _LENGTH + 2 * BLOCK * (intrinsics + 1)


@inside_for_pixels
def _gather(work, index, at, rays, depth, target, weight):
    """The next measurements from point `at` on that have a weight: index (BLOCK,) of their points. Returns where to go on, and how many."""
    count, points = 0, len(weight)
    while at < points and count < BLOCK:
        if weight[at] > 0.0:
            k = np.uint64(count)
            index[k] = at
            work[RAY_X + k], work[RAY_Y + k], work[RAY_Z + k], work[DEPTH + k] = rays[at, 0], rays[at, 1], rays[at, 2], depth[at]
            work[U + k], work[V + k], work[TRUST + k] = target[at, 0], target[at, 1], weight[at]
            count += 1
        at += 1
    return at, count


@inside_for_pixels
def _filled(work, count):
    """How many to work on for `count` of a block: what is beyond those has no weight."""
    full = (count + _LANES - 1) // _LANES * _LANES
    for k in range(np.uint64(count), np.uint64(full)):
        work[TRUST + k] = 0.0
    return full


@inside_for_pixels
def _observe(work, count, r, t, params, model, limit, near, scale2):
    """Carry a block into the camera at r (3, 3), t (3,) and compare: fills the error, its square and the robust weights.

    limit: of the squared normalised radius, see `fused.view_limit`; near: of depth. Returns robust cost and mass. A point that the camera
    cannot see is an outlier at its worst.
    """
    r00, r01, r02, r10, r11, r12 = r[0, 0], r[0, 1], r[0, 2], r[1, 0], r[1, 1], r[1, 2]
    r20, r21, r22, t0, t1, t2 = r[2, 0], r[2, 1], r[2, 2], t[0], t[1], t[2]
    for k in range(np.uint64(count)):
        x, y, z, d = work[RAY_X + k], work[RAY_Y + k], work[RAY_Z + k], work[DEPTH + k]
        X = r00 * x + r01 * y + r02 * z + t0 * d
        Y = r10 * x + r11 * y + r12 * z + t1 * d
        Z = r20 * x + r21 * y + r22 * z + t2 * d
        front = near < Z
        iz = 1.0 / (Z if front else 1.0)
        x, y = X * iz, Y * iz
        seen = front & (x * x + y * y <= limit)
        work[_X + k], work[_Y + k], work[_Z + k], work[_IZ + k] = X, Y, Z, iz
        work[_PX + k], work[_PY + k], work[SEEN + k] = x if seen else 0.0, y if seen else 0.0, 1.0 if seen else 0.0
    if model == 0:
        for k in range(np.uint64(count)):
            work[_XD + k], work[_YD + k], work[_A + k], work[_B + k], work[_C + k] = work[_PX + k], work[_PY + k], 1.0, 0.0, 1.0
    elif model == 1:
        k1, k2, p1, p2, k3 = params[4], params[5], params[6], params[7], params[8]
        for k in range(np.uint64(count)):
            xd, yd, a, b, c = _brown(work[_PX + k], work[_PY + k], k1, k2, p1, p2, k3)
            work[_XD + k], work[_YD + k], work[_A + k], work[_B + k], work[_C + k] = xd, yd, a, b, c
    else:
        for k in range(np.uint64(count)):
            x, y = work[_PX + k], work[_PY + k]
            radius = math.sqrt(x * x + y * y + _TINY)
            distorted, slope = _fisheye_angle(math.atan(radius), params[4], params[5], params[6], params[7])
            xd, yd, a, b, c = _fisheye(x, y, radius, distorted, slope)
            work[_XD + k], work[_YD + k], work[_A + k], work[_B + k], work[_C + k] = xd, yd, a, b, c
    fx, fy, cx, cy, cost, mass = params[0], params[1], params[2], params[3], 0.0, 0.0
    for k in range(np.uint64(count)):
        ex, ey = work[U + k] - (fx * work[_XD + k] + cx), work[V + k] - (fy * work[_YD + k] + cy)
        squared, trust, seen = ex * ex + ey * ey, work[TRUST + k], work[SEEN + k]
        shape = scale2 / (scale2 + squared)
        cost += trust * (squared * shape * seen + scale2 * (1.0 - seen))
        mass += trust * shape * seen
        work[ERROR + k], work[ERROR + ROW + k], work[SQUARED + k] = ex, ey, squared
        work[Q + k] = trust * shape * shape * seen
    return cost, mass


@inside_for_pixels
def observe(work, index, at, rays, depth, target, weight, r, t, params, model, limit, near, scale2):
    """Take up the next block of the measurements of an edge from point `at` on: rays (P, 3), depth (P,), target (P, 2), weight (P,), seen
    by the camera at r, t; index (BLOCK,): their points. Returns where to go on, how many there are and are worked on, cost and mass."""
    at, count = _gather(work, index, at, rays, depth, target, weight)
    full = _filled(work, count)
    cost, mass = _observe(work, full, r, t, params, model, limit, near, scale2)
    return at, count, full, cost, mass


@inside_for_pixels
def by_camera(work, count, fx, fy, rotation_only):
    """After `observe`: fill how the pixel moves with the point and with the six motions of the camera that sees it."""
    for k in range(np.uint64(count)):
        x, y, iz, a, b, c = work[_PX + k], work[_PY + k], work[_IZ + k], work[_A + k], work[_B + k], work[_C + k]
        ax, bx, zx, ay, by, zy = _point_jacobian(x, y, iz, fx, fy, a, b, c)
        work[_AX + k], work[_BX + k], work[_ZX + k], work[_AY + k], work[_BY + k], work[_ZY + k] = ax, bx, zx, ay, by, zy
    for k in range(np.uint64(count)):
        X, Y, Z, d = work[_X + k], work[_Y + k], work[_Z + k], work[DEPTH + k]
        at = MOTION + k
        work[at], work[at + PAIR], work[at + PAIR * np.uint64(2)], u, v, w = _pose_row(
            work[_AX + k], work[_BX + k], work[_ZX + k], X, Y, Z, d
        )
        work[at + PAIR * np.uint64(3)], work[at + PAIR * np.uint64(4)], work[at + PAIR * np.uint64(5)] = u, v, w
    for k in range(np.uint64(count)):
        X, Y, Z, d = work[_X + k], work[_Y + k], work[_Z + k], work[DEPTH + k]
        at = MOTION + ROW + k
        work[at], work[at + PAIR], work[at + PAIR * np.uint64(2)], u, v, w = _pose_row(
            work[_AY + k], work[_BY + k], work[_ZY + k], X, Y, Z, d
        )
        work[at + PAIR * np.uint64(3)], work[at + PAIR * np.uint64(4)], work[at + PAIR * np.uint64(5)] = u, v, w
    if rotation_only:
        for i in range(np.uint64(3)):
            for k in range(np.uint64(count)):
                work[MOTION + i * PAIR + k] = 0.0
                work[MOTION + i * PAIR + ROW + k] = 0.0


@inside_for_pixels
def _by_depth(work, count, t, moves):
    """After `by_camera`: fill how the pixel moves with the inverse depth; moves: 1.0, or 0.0 for a depth that is held."""
    t0, t1, t2 = t[0] * moves, t[1] * moves, t[2] * moves
    for k in range(np.uint64(count)):
        work[BY_DEPTH + k] = work[_AX + k] * t0 + work[_BX + k] * t1 + work[_ZX + k] * t2
        work[BY_DEPTH + ROW + k] = work[_AY + k] * t0 + work[_BY + k] * t1 + work[_ZY + k] * t2


@inside_for_pixels
def _by_intrinsic(work, count, index, codes, ray_slope, r, fx, fy, model):
    """After `by_camera`: fill how the pixel moves with the free intrinsics: by the lens that sees the point, and by that which sent out the
    ray. codes (n,) of `fused.INTRINSIC_CODES`; ray_slope (P, 2, n) of all points of the keyframe; r (3, 3) from there."""
    r00, r01, r10, r11, r20, r21 = r[0, 0], r[0, 1], r[1, 0], r[1, 1], r[2, 0], r[2, 1]
    for m in range(len(codes)):
        code, at = codes[m], INTRINSIC + np.uint64(m) * PAIR
        if code == 0:
            for k in range(np.uint64(count)):
                work[at + k], work[at + ROW + k] = fx * work[_XD + k], fy * work[_YD + k]
        elif code >= 4:
            for k in range(np.uint64(count)):
                work[at + k], work[at + ROW + k] = (1.0, 0.0) if code == 4 else (0.0, 1.0)
        else:
            for k in range(np.uint64(count)):
                x, y = work[_PX + k], work[_PY + k]
                r2 = x * x + y * y
                if model == 2:
                    radius = math.sqrt(r2 + _TINY)
                    power = math.atan(radius) ** (2 * code + 1) / radius
                else:
                    power = r2 if code == 1 else r2 * r2 if code == 2 else r2 * r2 * r2
                work[at + k], work[at + ROW + k] = fx * x * power, fy * y * power
        for k in range(np.uint64(count)):
            gx, gy = ray_slope[index[k], 0, m], ray_slope[index[k], 1, m]
            ux, uy, uz = r00 * gx + r01 * gy, r10 * gx + r11 * gy, r20 * gx + r21 * gy
            work[at + k] += work[_AX + k] * ux + work[_BX + k] * uy + work[_ZX + k] * uz
            work[at + ROW + k] += work[_AY + k] * ux + work[_BY + k] * uy + work[_ZY + k] * uz


@inside_for_pixels
def slopes(work, count, full, index, r, t, moves, rotation_only, codes, ray_slope, params, model):
    """After `observe`: fill how the pixel moves with the camera, with the inverse depth (`_by_depth`) and with the free intrinsics
    (`_by_intrinsic`)."""
    by_camera(work, full, params[0], params[1], rotation_only)
    _by_depth(work, full, t, moves)
    _by_intrinsic(work, count, index, codes, ray_slope, r, params[0], params[1], model)


@inside_for_pixels
def products(work, count, a, b):
    """Weighted inner products of the pairs of rows a and the next, with b and the next: aa', ab', ba', bb' where ' is of the second."""
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    for k in range(np.uint64(count)):
        q = work[Q + k]
        ax, ay = q * work[a + k], q * work[a + ROW + k]
        bx, by = q * work[a + PAIR + k], q * work[a + PAIR + ROW + k]
        cx, cy, dx, dy = work[b + k], work[b + ROW + k], work[b + PAIR + k], work[b + PAIR + ROW + k]
        first += ax * cx + ay * cy
        second += ax * dx + ay * dy
        third += bx * cx + by * cy
        fourth += bx * dx + by * dy
    return first, second, third, fourth


@inside_for_pixels
def weighted(work, count, a, b, out):
    """out (BLOCK,): the weighted product of the pairs of rows a and b of each measurement."""
    for k in range(np.uint64(count)):
        out[k] = work[Q + k] * (work[a + k] * work[b + k] + work[a + ROW + k] * work[b + ROW + k])
