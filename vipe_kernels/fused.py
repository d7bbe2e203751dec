"""Inner loops of bundle adjustment and resection compiled for the CPU (numba), float64, one pass over the measurements.

The tensor code of `bundle` and `resection` is the definition; these loops give the same sums without writing Jacobians to memory, which
is where that code spends its time on a CPU. The unit of work is a source keyframe (bundle) or a frame (resection), so threads share
nothing, and the order of every sum, hence every bit of the result, is the same for any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from vipe_kernels import cameras, formulas
from vipe_kernels.compiled import compiled, compiled_for_pixels, inside_for_pixels

Float = NDArray[np.float64]

_STEPS, _LIMIT, _LEAST, _TINY = cameras.NEWTON_ITERATIONS, cameras.NORMALISED_LIMIT, cameras.MIN_DETERMINANT, cameras.TINY

_BLOCK = 128
"""Measurements whose Jacobians are held together: they fit a first-level cache."""
LEAST_CURVATURE = 1e-12
"""Of an inverse depth: below, it is taken to be held."""

MODEL_CODES = {"pinhole": 0, "brown": 1, "fisheye": 2}
INTRINSIC_CODES = {"focal": 0, "k1": 1, "k2": 2, "cx": 3, "cy": 4}


def view_limit(params: Float, model: str) -> float:
    """Squared normalised radius up to which a model projects one to one."""
    if model == "pinhole":
        return math.inf
    radius = float(cameras.fold_radius(torch.from_numpy(params), model).clamp_max(cameras.NORMALISED_LIMIT))
    return radius * radius


_brown, _fisheye, _fisheye_angle = compiled(formulas.brown), compiled(formulas.fisheye), compiled(formulas.fisheye_angle)
_point_jacobian, _pose_row = compiled(formulas.point_jacobian), compiled(formulas.pose_row)


@compiled
def _distort(x, y, params, model):
    """Distorted point and its derivative (symmetric 2x2: a b d) for a point inside the view."""
    if model == 0:
        return x, y, 1.0, 0.0, 1.0
    if model == 1:
        return _brown(x, y, params[4], params[5], params[6], params[7], params[8])
    r = math.sqrt(x * x + y * y + _TINY)
    distorted, slope = _fisheye_angle(math.atan(r), params[4], params[5], params[6], params[7])
    return _fisheye(x, y, r, distorted, slope)


@compiled
def _carried(r, t, ray, d):
    """The homogeneous point (ray, inverse depth d) in the camera at (r, t), times d."""
    X = r[0, 0] * ray[0] + r[0, 1] * ray[1] + r[0, 2] * ray[2] + t[0] * d
    Y = r[1, 0] * ray[0] + r[1, 1] * ray[1] + r[1, 2] * ray[2] + t[1] * d
    Z = r[2, 0] * ray[0] + r[2, 1] * ray[1] + r[2, 2] * ray[2] + t[2] * d
    return X, Y, Z


@compiled
def _observed(r, t, ray, d, target, params, model, limit, near):
    """A point carried into the camera that measured it: whether it is seen there, its position X Y Z, 1 / Z and normalised x y, the
    distorted xd yd with the derivative a b c, and the error ex ey in pixels."""
    X, Y, Z = _carried(r, t, ray, d)
    iz = 1.0 / Z if near < Z else 0.0
    x, y = X * iz, Y * iz
    if near >= Z or x * x + y * y > limit:
        return False, X, Y, Z, iz, x, y, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    xd, yd, a, b, c = _distort(x, y, params, model)
    ex = target[0] - (params[0] * xd + params[2])
    ey = target[1] - (params[1] * yd + params[3])
    return True, X, Y, Z, iz, x, y, xd, yd, a, b, c, ex, ey


@compiled
def _intrinsic_slope(code, x, y, xd, yd, fx, fy, model):
    """How a free intrinsic moves the pixel of the normalised point (x, y), distorted (xd, yd)."""
    if code == 0:
        return fx * xd, fy * yd
    if code >= 3:
        return (1.0, 0.0) if code == 3 else (0.0, 1.0)
    r2 = x * x + y * y
    if model == 2:
        radius = math.sqrt(r2 + _TINY)
        power = math.atan(radius) ** (2 * code + 1) / radius
    else:
        power = r2**code
    return fx * x * power, fy * y * power


@compiled
def _by_motion(m, X, Y, Z, d, jacobian):
    """How a motion m (6,) of its camera moves the pixel of the point X Y Z / d; jacobian: `_point_jacobian` there."""
    ax, bx, zx, ay, by, zy = jacobian
    px = d * m[0] + m[4] * Z - m[5] * Y
    py = d * m[1] + m[5] * X - m[3] * Z
    pz = d * m[2] + m[3] * Y - m[4] * X
    return ax * px + bx * py + zx * pz, ay * px + by * py + zy * pz


@compiled
def _by_intrinsic(code, r, gx, gy, x, y, xd, yd, fx, fy, model, jacobian):
    """How a free intrinsic moves a pixel: by the lens that sees the point, and by that which sent out the ray, moved by (gx, gy)."""
    ax, bx, zx, ay, by, zy = jacobian
    mx, my = _intrinsic_slope(code, x, y, xd, yd, fx, fy, model)
    ux, uy, uz = r[0, 0] * gx + r[0, 1] * gy, r[1, 0] * gx + r[1, 1] * gy, r[2, 0] * gx + r[2, 1] * gy
    return mx + ax * ux + bx * uy + zx * uz, my + ay * ux + by * uy + zy * uz


@compiled
def _undistort(xd, yd, params, model):
    """The normalised point that a model distorts to (xd, yd): `cameras.unproject`."""
    if model == 0:
        return xd, yd
    if model == 1:
        x, y = min(max(xd, -_LIMIT), _LIMIT), min(max(yd, -_LIMIT), _LIMIT)
        for _ in range(_STEPS):
            px, py, a, b, c = _distort(x, y, params, model)
            ex, ey, determinant = xd - px, yd - py, max(a * c - b * b, _LEAST)
            x, y = x + (c * ex - b * ey) / determinant, y + (a * ey - b * ex) / determinant
            x, y = min(max(x, -_LIMIT), _LIMIT), min(max(y, -_LIMIT), _LIMIT)
        return x, y
    widest, distorted = math.atan(_LIMIT), math.sqrt(xd * xd + yd * yd + _TINY)
    theta = min(distorted, widest)
    for _ in range(_STEPS):
        value, slope = _fisheye_angle(theta, params[4], params[5], params[6], params[7])
        theta = min(max(theta + (distorted - value) / max(slope, _LEAST), 0.0), widest)
    scale = math.tan(theta) / distorted
    return xd * scale, yd * scale


@compiled
def rays(first, last, uv, params, model, codes, out, slope):
    """Rays, z = 1, through the pixels of source keyframes [first, last), and how the free intrinsics move them.

    uv (S, P, 2); codes (n,). Fills out (S, P, 3) and slope (S, P, 2, n). The pixel held fixed, f distort(ray) + c stays: what an
    intrinsic moves the pixel by, the ray takes back.
    """
    fx, fy = params[0], params[1]
    for k in range(first, last):
        for p in range(uv.shape[1]):
            xd, yd = (uv[k, p, 0] - params[2]) / fx, (uv[k, p, 1] - params[3]) / fy
            x, y = _undistort(xd, yd, params, model)
            out[k, p, 0], out[k, p, 1], out[k, p, 2] = x, y, 1.0
            if len(codes) == 0:
                continue
            _, _, a, b, c = _distort(x, y, params, model)
            determinant = max(a * c - b * b, _LEAST)
            for m in range(len(codes)):
                sx, sy = _intrinsic_slope(codes[m], x, y, xd, yd, fx, fy, model)
                gx, gy = -sx / fx, -sy / fy
                slope[k, p, 0, m], slope[k, p, 1, m] = (c * gx - b * gy) / determinant, (a * gy - b * gx) / determinant


@inside_for_pixels
def _weighed(q, a, b, c, d, count):
    """Sum of q (a b + c d)."""
    total = 0.0
    for k in range(np.uint64(count)):
        total += q[k] * (a[k] * b[k] + c[k] * d[k])
    return total


@inside_for_pixels
def _products(a, b, c, d, count):
    """Inner products of a and b with c and d."""
    ac, ad, bc, bd = 0.0, 0.0, 0.0, 0.0
    for k in range(np.uint64(count)):
        ac += a[k] * c[k]
        ad += a[k] * d[k]
        bc += b[k] * c[k]
        bd += b[k] * d[k]
    return ac, ad, bc, bd


@inside_for_pixels
def _rows_of_depth(q, first, second, jdx, jdy, count, out):
    """out = q (first jdx + second jdy)."""
    for k in range(np.uint64(count)):
        out[k] = q[k] * (first[k] * jdx[k] + second[k] * jdy[k])


@inside_for_pixels
def _schur(E, used, rows, limit, C, w, matrix, vector):
    """matrix = E C^-1 E^T and vector = E C^-1 w of one source, for `rows` of E, an even number, that `used` names; from `limit` on they are
    padding. E (W + 1, P) becomes E C^-1/2, w C^-1/2 w."""
    points = len(C)
    for p in range(np.uint64(points)):
        w[p] *= C[p]
    for i in range(rows):
        row = E[used[i]]
        for p in range(np.uint64(points)):
            row[p] *= C[p]
    for i in range(0, rows, 2):
        a, b = used[i], used[i + 1]
        for j in range(0, i + 1, 2):
            c, d = used[j], used[j + 1]
            ac, ad, bc, bd = _products(E[a], E[b], E[c], E[d], points)
            matrix[a, c], matrix[c, a] = ac, ac
            if d < limit:
                matrix[a, d], matrix[d, a] = ad, ad
            if b < limit:
                matrix[b, c], matrix[c, b] = bc, bc
                if d < limit:
                    matrix[b, d], matrix[d, b] = bd, bd
        vector[a], _, along, _ = _products(E[a], E[b], w, w, points)
        if b < limit:
            vector[b] = along


@compiled_for_pixels
def condense(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    rotation_only, prior, wanted, Hjj, gj, Hjk, Hkk, gk, matrix, vector, C, w, totals,
):  # fmt: skip
    """Sums over the measurements of source keyframes [first, last) of a chunk, their depths eliminated.

    starts (S + 1,): edges of each source. R (E, 3, 3), t (E, 3) relative cameras. rays (S, P, 3), depth (S, P), depth_free (S,). codes
    (n,), ray_slope (S, P, 2, n): free intrinsics and how they move the rays. prior: precision of relative changes of depth. wanted: are
    matrix and vector. Fills, all zero before: Hjj (E, 6, 6), gj (E, 6), Hjk (E, 6, n), Hkk (S, n, n), gk (S, n), matrix (S, W, W), vector
    (S, W), C, w (S, P), totals (S, 2) = cost, mass. Jacobians and E of one source are kept in caches, a block of measurements at a time.
    """
    n, points, rows = len(codes), depth.shape[1], vector.shape[1]
    fx, fy = params[0], params[1]
    E = np.zeros((rows + 1, points))
    J, K, F = np.zeros((12, _BLOCK)), np.zeros((2 * max(n, 1), _BLOCK)), np.zeros((6, _BLOCK))
    q, ex, ey, jdx, jdy = np.zeros(_BLOCK), np.zeros(_BLOCK), np.zeros(_BLOCK), np.zeros(_BLOCK), np.zeros(_BLOCK)
    index, used, root, rest = np.zeros(_BLOCK, np.int64), np.zeros(rows + 1, np.int64), np.zeros(points), np.zeros(points)
    for s in range(first, last):
        moves = 1.0 if depth_free[s] else 0.0
        mine = 6 * (1 + starts[s + 1] - starts[s])
        E[:mine] = 0.0
        E[rows - n :] = 0.0
        for e in range(starts[s], starts[s + 1]):
            row, r = 6 * (1 + e - starts[s]), R[e]
            t0, t1, t2 = t[e, 0], t[e, 1], t[e, 2]
            at = 0
            while at < points:
                count = 0
                while at < points and count < _BLOCK:
                    p = at
                    at += 1
                    trust = weight[e, p]
                    if trust <= 0.0:
                        continue
                    d = depth[s, p]
                    seen, X, Y, Z, iz, x, y, xd, yd, a, b, c, dx, dy = _observed(
                        r, t[e], rays[s, p], d, target[e, p], params, model, limit, near
                    )
                    if not seen:
                        totals[s, 0] += trust * scale2
                        continue
                    squared = dx * dx + dy * dy
                    shape = scale2 / (scale2 + squared)
                    totals[s, 0] += trust * squared * shape
                    totals[s, 1] += trust * shape
                    k = count
                    count += 1
                    index[k], q[k], ex[k], ey[k] = p, trust * shape * shape, dx, dy
                    jacobian = _point_jacobian(x, y, iz, fx, fy, a, b, c)
                    ax, bx, zx, ay, by, zy = jacobian
                    J[0, k], J[1, k], J[2, k], J[3, k], J[4, k], J[5, k] = _pose_row(ax, bx, zx, X, Y, Z, d)
                    J[6, k], J[7, k], J[8, k], J[9, k], J[10, k], J[11, k] = _pose_row(ay, by, zy, X, Y, Z, d)
                    if rotation_only:
                        J[:3, k] = 0.0
                        J[6:9, k] = 0.0
                    jdx[k], jdy[k] = (ax * t0 + bx * t1 + zx * t2) * moves, (ay * t0 + by * t1 + zy * t2) * moves
                    for m in range(n):
                        gx, gy = ray_slope[s, p, 0, m], ray_slope[s, p, 1, m]
                        K[2 * m, k], K[2 * m + 1, k] = _by_intrinsic(codes[m], r, gx, gy, x, y, xd, yd, fx, fy, model, jacobian)
                for i in range(6):
                    for j in range(i, 6):
                        Hjj[e, i, j] += _weighed(q, J[i], J[j], J[6 + i], J[6 + j], count)
                    gj[e, i] += _weighed(q, J[i], ex, J[6 + i], ey, count)
                    for m in range(n):
                        Hjk[e, i, m] += _weighed(q, J[i], K[2 * m], J[6 + i], K[2 * m + 1], count)
                    _rows_of_depth(q, J[i], J[6 + i], jdx, jdy, count, F[i])
                for m in range(n):
                    gk[s, m] += _weighed(q, K[2 * m], ex, K[2 * m + 1], ey, count)
                    for o in range(n):
                        Hkk[s, m, o] += _weighed(q, K[2 * m], K[2 * o], K[2 * m + 1], K[2 * o + 1], count)
                for k in range(count):
                    p = index[k]
                    C[s, p] += q[k] * (jdx[k] * jdx[k] + jdy[k] * jdy[k])
                    w[s, p] += q[k] * (jdx[k] * ex[k] + jdy[k] * ey[k])
                    f0, f1, f2, f3, f4, f5 = F[0, k], F[1, k], F[2, k], F[3, k], F[4, k], F[5, k]
                    E[row, p], E[row + 1, p], E[row + 2, p], E[row + 3, p], E[row + 4, p], E[row + 5, p] = f0, f1, f2, f3, f4, f5
                    # row of the source camera: -(E_j Ad), Ad = [[r, [t] r], [0, r]]
                    h0, h1, h2 = f3 + f1 * t2 - f2 * t1, f4 + f2 * t0 - f0 * t2, f5 + f0 * t1 - f1 * t0
                    for i in range(3):
                        E[i, p] -= f0 * r[0, i] + f1 * r[1, i] + f2 * r[2, i]
                        E[3 + i, p] -= h0 * r[0, i] + h1 * r[1, i] + h2 * r[2, i]
                    for m in range(n):
                        E[rows - n + m, p] += q[k] * (K[2 * m, k] * jdx[k] + K[2 * m + 1, k] * jdy[k])
            for i in range(6):
                for j in range(i):
                    Hjj[e, i, j] = Hjj[e, j, i]
        for p in range(points):
            C[s, p] += prior / (depth[s, p] * depth[s, p])
        if wanted:
            for p in range(points):
                root[p], rest[p] = 1.0 / math.sqrt(max(C[s, p], LEAST_CURVATURE)), w[s, p]
            for i in range(mine):
                used[i] = i
            for m in range(n + 1):
                used[mine + m] = rows - n + m
            _schur(E, used, (mine + n + 1) // 2 * 2, rows, root, rest, matrix[s], vector[s])


@compiled
def cost(first, last, starts, R, t, rays, depth, target, weight, params, model, limit, scale2, near, totals):
    """Robust cost and mass alone: fills totals (S, 2). Arguments as of `condense`."""
    points = depth.shape[1]
    for s in range(first, last):
        for e in range(starts[s], starts[s + 1]):
            for p in range(points):
                trust = weight[e, p]
                if trust <= 0.0:
                    continue
                seen, _, _, _, _, _, _, _, _, _, _, _, ex, ey = _observed(
                    R[e], t[e], rays[s, p], depth[s, p], target[e, p], params, model, limit, near
                )
                if not seen:
                    totals[s, 0] += trust * scale2
                    continue
                squared = ex * ex + ey * ey
                shape = scale2 / (scale2 + squared)
                totals[s, 0] += trust * squared * shape
                totals[s, 1] += trust * shape


@compiled
def back_substitute(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    move, shared, out,
):  # fmt: skip
    """E^T dx of source keyframes [first, last) of a chunk: out (S, P), zero before. Arguments as of `condense`; move (E, 6): of each
    destination camera relative to its source, in its tangent; shared (n,): of the free intrinsics.
    """
    n = len(codes)
    fx, fy = params[0], params[1]
    points = depth.shape[1]
    for s in range(first, last):
        if not depth_free[s]:
            continue
        for e in range(starts[s], starts[s + 1]):
            r, m = R[e], move[e]
            t0, t1, t2 = t[e, 0], t[e, 1], t[e, 2]
            for p in range(points):
                trust = weight[e, p]
                if trust <= 0.0:
                    continue
                d = depth[s, p]
                seen, X, Y, Z, iz, x, y, xd, yd, a, b, c, ex, ey = _observed(
                    r, t[e], rays[s, p], d, target[e, p], params, model, limit, near
                )
                if not seen:
                    continue
                shape = scale2 / (scale2 + ex * ex + ey * ey)
                jacobian = _point_jacobian(x, y, iz, fx, fy, a, b, c)
                ax, bx, zx, ay, by, zy = jacobian
                ux, uy = _by_motion(m, X, Y, Z, d, jacobian)
                for i in range(n):
                    gx, gy = ray_slope[s, p, 0, i], ray_slope[s, p, 1, i]
                    sx, sy = _by_intrinsic(codes[i], r, gx, gy, x, y, xd, yd, fx, fy, model, jacobian)
                    ux += shared[i] * sx
                    uy += shared[i] * sy
                jdx, jdy = ax * t0 + bx * t1 + zx * t2, ay * t0 + by * t1 + zy * t2
                out[s, p] += trust * shape * shape * (jdx * ux + jdy * uy)


@compiled
def scores(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    prior, moves, hessian, gradient,
):  # fmt: skip
    """What the measurements of source keyframes [first, last) say of the intrinsics: hessian (S, n, n) and gradient (S, P, n) of
    `bundle.scores`, zero before. Arguments as of `condense`; moves (E, n, 6): how each destination camera moves relative to its source,
    in its tangent, with each intrinsic.
    """
    n = len(codes)
    fx, fy = params[0], params[1]
    widest = 0
    for s in range(first, last):
        widest = max(widest, starts[s + 1] - starts[s])
    slope, kept, by_depth = np.zeros((widest, 2 * n)), np.zeros((widest, 5)), np.zeros(n)
    for s in range(first, last):
        for p in range(depth.shape[1]):
            d, count = depth[s, p], 0
            curvature = prior / (d * d)
            by_depth[:] = 0.0
            for e in range(starts[s], starts[s + 1]):
                trust, r = weight[e, p], R[e]
                if trust <= 0.0:
                    continue
                seen, X, Y, Z, iz, x, y, xd, yd, a, b, c, ex, ey = _observed(
                    r, t[e], rays[s, p], d, target[e, p], params, model, limit, near
                )
                if not seen:
                    continue
                shape = scale2 / (scale2 + ex * ex + ey * ey)
                q = trust * shape * shape
                jacobian = _point_jacobian(x, y, iz, fx, fy, a, b, c)
                ax, bx, zx, ay, by, zy = jacobian
                jdx = (ax * t[e, 0] + bx * t[e, 1] + zx * t[e, 2]) if depth_free[s] else 0.0
                jdy = (ay * t[e, 0] + by * t[e, 1] + zy * t[e, 2]) if depth_free[s] else 0.0
                for i in range(n):
                    gx, gy = ray_slope[s, p, 0, i], ray_slope[s, p, 1, i]
                    ux, uy = _by_motion(moves[e, i], X, Y, Z, d, jacobian)
                    sx, sy = _by_intrinsic(codes[i], r, gx, gy, x, y, xd, yd, fx, fy, model, jacobian)
                    sx, sy = sx + ux, sy + uy
                    slope[count, 2 * i], slope[count, 2 * i + 1] = sx, sy
                    by_depth[i] += q * (jdx * sx + jdy * sy)
                kept[count, 0], kept[count, 1], kept[count, 2], kept[count, 3], kept[count, 4] = q, jdx, jdy, ex, ey
                curvature += q * (jdx * jdx + jdy * jdy)
                count += 1
            for k in range(count):
                q, jdx, jdy, ex, ey = kept[k, 0], kept[k, 1], kept[k, 2], kept[k, 3], kept[k, 4]
                for i in range(n):
                    slope[k, 2 * i] -= jdx * by_depth[i] / curvature
                    slope[k, 2 * i + 1] -= jdy * by_depth[i] / curvature
                    gradient[s, p, i] += q * (slope[k, 2 * i] * ex + slope[k, 2 * i + 1] * ey)
                    for j in range(i + 1):
                        hessian[s, i, j] += q * (slope[k, 2 * i] * slope[k, 2 * j] + slope[k, 2 * i + 1] * slope[k, 2 * j + 1])
        for i in range(n):
            for j in range(i):
                hessian[s, j, i] = hessian[s, i, j]


@compiled
def relative(rotation, translation, source, destination, start, rotation_only, r, t, ad):
    """Of each edge the motion from the camera `start + source` to the destination, r (E, 3, 3), t (E, 3), and its adjoint ad (E, 6, 6)
    without the rows of translation where only rotations are free. rotation (K, 3, 3), translation (K, 3); source, destination (E,).
    """
    ad[:] = 0.0
    for e in range(len(source)):
        a, b = start + source[e], destination[e]
        for i in range(3):
            t[e, i] = translation[b, i]
            for j in range(3):
                r[e, i, j] = 0.0
                for k in range(3):
                    r[e, i, j] += rotation[b, i, k] * rotation[a, j, k]
                t[e, i] -= r[e, i, j] * translation[a, j]
        for j in range(3):
            x, y, z = r[e, 0, j], r[e, 1, j], r[e, 2, j]
            ad[e, 3, 3 + j], ad[e, 4, 3 + j], ad[e, 5, 3 + j] = x, y, z
            if not rotation_only:
                ad[e, 0, j], ad[e, 1, j], ad[e, 2, j] = x, y, z
                ad[e, 0, 3 + j] = t[e, 1] * z - t[e, 2] * y
                ad[e, 1, 3 + j] = t[e, 2] * x - t[e, 0] * z
                ad[e, 2, 3 + j] = t[e, 0] * y - t[e, 1] * x


@compiled
def couple(starts, ad, Hjj, gj, Hjk, Hkk, gk, matrix, vector, slots, table, blocks, border, corner, poses, shared):
    """Adds the sums of a chunk to the reduced system, less matrix (S, W, W) and vector (S, W).

    starts, Hjj .. gk: as of `condense`; ad (E, 6, 6): see `relative`, what moves with the source camera is -ad. slots (S, D), table
    (S, D, D): as of `reduced.Pattern`; blocks .. shared: as of `reduced.Reduced`.
    """
    n, wide = len(gk), 6 * slots.shape[1]
    back, across = np.zeros((6, 6)), np.zeros((6, 6))
    for s in range(len(starts) - 1):
        for i in range(slots.shape[1]):
            camera = slots[s, i]
            for j in range(slots.shape[1]):
                block = blocks[table[s, i, j]]
                for k in range(6):
                    for m in range(6):
                        block[k, m] -= matrix[s, 6 * i + k, 6 * j + m]
            for k in range(6):
                poses[camera, k] -= vector[s, 6 * i + k]
                for m in range(n):
                    border[camera, k, m] -= matrix[s, 6 * i + k, wide + m]
        for m in range(n):
            shared[m] -= vector[s, wide + m]
            for o in range(n):
                corner[m, o] -= matrix[s, wide + m, wide + o]
        own = slots[s, 0]
        for e in range(starts[s], starts[s + 1]):
            i = 1 + e - starts[s]
            there = slots[s, i]
            for k in range(6):
                for m in range(6):
                    back[k, m] = -ad[e, m, k]
            for k in range(6):
                for m in range(6):
                    across[k, m] = 0.0
                    for o in range(6):
                        across[k, m] += back[k, o] * Hjj[e, o, m]
            for k in range(6):
                poses[there, k] += gj[e, k]
                for m in range(n):
                    border[there, k, m] += Hjk[e, k, m]
                for o in range(6):
                    poses[own, k] += back[k, o] * gj[e, o]
                    for m in range(n):
                        border[own, k, m] += back[k, o] * Hjk[e, o, m]
                for m in range(6):
                    blocks[table[s, i, i], k, m] += Hjj[e, k, m]
                    blocks[table[s, 0, i], k, m] += across[k, m]
                    blocks[table[s, i, 0], m, k] += across[k, m]
                    total = 0.0
                    for o in range(6):
                        total += across[k, o] * back[m, o]
                    blocks[table[s, 0, 0], k, m] += total
    for m in range(n):
        shared[m] += gk[m]
        for o in range(n):
            corner[m, o] += Hkk[m, o]


@compiled
def _solve6(H, g, out):
    """out (6,) = H^-1 g by Cholesky, H damped on its diagonal. False where H is not positive."""
    L = np.zeros((6, 6))
    for i in range(6):
        for j in range(i + 1):
            total = H[i, j]
            if i == j:
                total += 1e-4 * H[i, i] + 2e-9
            for k in range(j):
                total -= L[i, k] * L[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                L[i, i] = math.sqrt(total)
            else:
                L[i, j] = total / L[j, j]
    for i in range(6):
        total = g[i]
        for k in range(i):
            total -= L[i, k] * out[k]
        out[i] = total / L[i, i]
    for i in range(5, -1, -1):
        total = out[i]
        for k in range(i + 1, 6):
            total -= L[k, i] * out[k]
        out[i] = total / L[i, i]
    return True


@compiled
def _perturb(delta, r, t, r_new, t_new):
    """(r_new, t_new) = Exp([tau, phi] = delta) (r, t)."""
    p0, p1, p2 = delta[3], delta[4], delta[5]
    theta2 = p0 * p0 + p1 * p1 + p2 * p2
    theta = math.sqrt(theta2)
    if theta < 1e-4:
        a, b, c = 1 - theta2 / 6, 0.5 - theta2 / 24, 1 / 6 - theta2 / 120
    else:
        a, b, c = math.sin(theta) / theta, (1 - math.cos(theta)) / theta2, (theta - math.sin(theta)) / (theta2 * theta)
    W = np.array([[0.0, -p2, p1], [p2, 0.0, -p0], [-p1, p0, 0.0]])
    R, V = np.zeros((3, 3)), np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            square = W[i, 0] * W[0, j] + W[i, 1] * W[1, j] + W[i, 2] * W[2, j]
            one = 1.0 if i == j else 0.0
            R[i, j] = one + a * W[i, j] + b * square
            V[i, j] = one + b * W[i, j] + c * square
    for i in range(3):
        for j in range(3):
            r_new[i, j] = R[i, 0] * r[0, j] + R[i, 1] * r[1, j] + R[i, 2] * r[2, j]
        t_new[i] = R[i, 0] * t[0] + R[i, 1] * t[1] + R[i, 2] * t[2] + V[i, 0] * delta[0] + V[i, 1] * delta[1] + V[i, 2] * delta[2]


@compiled
def perturb(delta, r, t, r_new, t_new):
    """Exp of delta (N, 6) times cameras r (N, 3, 3), t (N, 3): fills r_new, t_new."""
    for k in range(len(delta)):
        _perturb(delta[k], r[k], t[k], r_new[k], t_new[k])


@compiled
def _motion_terms(points, target, weight, params, model, limit, r, t, scale2, H, g, distance):
    """Normal equations of one camera against fixed points; returns the robust cost. Fills H (6, 6), g (6,), distance (N,)."""
    fx, fy, cx, cy = params[0], params[1], params[2], params[3]
    H[:] = 0.0
    g[:] = 0.0
    cost = 0.0
    J = np.zeros((2, 6))
    for p in range(len(points)):
        trust = weight[p]
        distance[p] = 1e6
        if trust <= 0.0:
            continue
        d = points[p, 3]
        X, Y, Z = _carried(r, t, points[p], d)
        if not 0.02 * math.sqrt(X * X + Y * Y + Z * Z) < Z:
            cost += trust * scale2
            continue
        iz = 1.0 / Z
        x, y = X * iz, Y * iz
        if x * x + y * y > limit:
            cost += trust * scale2
            continue
        xd, yd, a, b, c = _distort(x, y, params, model)
        ex = target[p, 0] - (fx * xd + cx)
        ey = target[p, 1] - (fy * yd + cy)
        squared = ex * ex + ey * ey
        distance[p] = math.sqrt(squared)
        shape = scale2 / (scale2 + squared)
        cost += trust * squared * shape
        q = trust * shape * shape
        ax, bx, zx, ay, by, zy = _point_jacobian(x, y, iz, fx, fy, a, b, c)
        J[0, 0], J[0, 1], J[0, 2], J[0, 3], J[0, 4], J[0, 5] = _pose_row(ax, bx, zx, X, Y, Z, d)
        J[1, 0], J[1, 1], J[1, 2], J[1, 3], J[1, 4], J[1, 5] = _pose_row(ay, by, zy, X, Y, Z, d)
        for i in range(6):
            u0, u1 = q * J[0, i], q * J[1, i]
            for j in range(i, 6):
                H[i, j] += u0 * J[0, j] + u1 * J[1, j]
            g[i] += u0 * ex + u1 * ey
    for i in range(6):
        for j in range(i):
            H[i, j] = H[j, i]
    return cost


@compiled
def resect(first, last, points, target, weight, params, model, limit, scales2, steps, rotation, translation, Hs, distances):
    """Gauss-Newton over the cameras of frames [first, last), in place: rotation (F, 3, 3), translation (F, 3).

    points (F, N, 4), target (F, N, 2), weight (F, N). A step that raises the cost is shortened once, then the scale is left. Fills
    Hs (F, 6, 6) and distances (F, N) at the result.
    """
    delta, g, g_new = np.zeros(6), np.zeros(6), np.zeros(6)
    H_new, r_new, t_new = np.zeros((6, 6)), np.zeros((3, 3)), np.zeros(3)
    d_new = np.zeros(points.shape[1])
    for f in range(first, last):
        r, t, H, d = rotation[f], translation[f], Hs[f], distances[f]
        for scale2 in scales2:
            cost = _motion_terms(points[f], target[f], weight[f], params, model, limit, r, t, scale2, H, g, d)
            for _ in range(steps):
                if not _solve6(H, g, delta):
                    break
                better = False
                for fraction in (1.0, 0.3):
                    _perturb(delta * fraction, r, t, r_new, t_new)
                    tried = _motion_terms(points[f], target[f], weight[f], params, model, limit, r_new, t_new, scale2, H_new, g_new, d_new)
                    if tried <= cost:
                        better = True
                        break
                if not better:
                    break
                settled = cost - tried < 1e-6 * cost
                cost = tried
                r[:], t[:], H[:], g[:], d[:] = r_new, t_new, H_new, g_new, d_new
                if settled:
                    break
