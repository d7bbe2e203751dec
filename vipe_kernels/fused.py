"""Inner loops of bundle adjustment and resection compiled for the CPU (numba), float64, one pass over the measurements.

The tensor code of `bundle` and `resection` is the definition; these loops give the same sums without writing Jacobians to memory, which
is where that code spends its time on a CPU: they are formed for a block of measurements at a time (`blocks`). The unit of work is a source
keyframe (bundle) or a frame (resection), so threads share nothing, and the order of every sum, hence every bit of the result, is the same
for any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from vipe_kernels import blocks, cameras, formulas
from vipe_kernels.blocks import BLOCK, BY_DEPTH, ERROR, INTRINSIC, MOTION, PAIR, ROW, SEEN, SQUARED
from vipe_kernels.compiled import compiled, compiled_for_pixels, inside_for_pixels

Float = NDArray[np.float64]

_STEPS, _LIMIT, _LEAST, _TINY = cameras.NEWTON_ITERATIONS, cameras.NORMALISED_LIMIT, cameras.MIN_DETERMINANT, cameras.TINY

_SETTLED = 1e-9
"""Length of a step of Newton's after which the next would be less than rounding: errors are squared."""
_FLATTEST = 0.02
"""Cosine from the axis of a frame's camera beyond which a point is taken to be behind it."""
LEAST_CURVATURE = 1e-12
"""Of an inverse depth: below, it is taken to be held."""
FARTHEST, NEAREST = 1e-4, 1e4
"""Least and greatest inverse depth."""

MODEL_CODES = {"pinhole": 0, "brown": 1, "fisheye": 2}
INTRINSIC_CODES = {"focal": 0, "k1": 1, "k2": 2, "k3": 3, "cx": 4, "cy": 5}


def view_limit(params: Float, model: str) -> float:
    """Squared normalised radius up to which a model projects one to one."""
    if model == "pinhole":
        return math.inf
    radius = float(cameras.fold_radius(torch.from_numpy(params), model).clamp_max(cameras.NORMALISED_LIMIT))
    return radius * radius


_brown, _fisheye, _fisheye_angle = compiled(formulas.brown), compiled(formulas.fisheye), compiled(formulas.fisheye_angle)


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
def _intrinsic_slope(code, x, y, xd, yd, fx, fy, model):
    """How a free intrinsic moves the pixel of the normalised point (x, y), distorted (xd, yd)."""
    if code == 0:
        return fx * xd, fy * yd
    if code >= 4:
        return (1.0, 0.0) if code == 4 else (0.0, 1.0)
    r2 = x * x + y * y
    if model == 2:
        radius = math.sqrt(r2 + _TINY)
        power = math.atan(radius) ** (2 * code + 1) / radius
    else:
        power = r2**code
    return fx * x * power, fy * y * power


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
            dx, dy = (c * ex - b * ey) / determinant, (a * ey - b * ex) / determinant
            x, y = min(max(x + dx, -_LIMIT), _LIMIT), min(max(y + dy, -_LIMIT), _LIMIT)
            if dx * dx + dy * dy < _SETTLED * _SETTLED:
                break
        return x, y
    widest, distorted = math.atan(_LIMIT), math.sqrt(xd * xd + yd * yd + _TINY)
    theta = min(distorted, widest)
    for _ in range(_STEPS):
        value, slope = _fisheye_angle(theta, params[4], params[5], params[6], params[7])
        step = (distorted - value) / max(slope, _LEAST)
        theta = min(max(theta + step, 0.0), widest)
        if abs(step) < _SETTLED:
            break
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
def _four_by_four(a, b, i, j, count, out):
    """out[i:i+4, j:j+4] = inner products of four rows a with four rows b: enough for each number read to be used four times."""
    a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]
    c00, c01, c02, c03, c10, c11, c12, c13 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    c20, c21, c22, c23, c30, c31, c32, c33 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(np.uint64(count)):
        w, x, y, z = a0[k], a1[k], a2[k], a3[k]
        u = b0[k]
        c00, c10, c20, c30 = c00 + w * u, c10 + x * u, c20 + y * u, c30 + z * u
        u = b1[k]
        c01, c11, c21, c31 = c01 + w * u, c11 + x * u, c21 + y * u, c31 + z * u
        u = b2[k]
        c02, c12, c22, c32 = c02 + w * u, c12 + x * u, c22 + y * u, c32 + z * u
        u = b3[k]
        c03, c13, c23, c33 = c03 + w * u, c13 + x * u, c23 + y * u, c33 + z * u
    out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = c00, c01, c02, c03
    out[i + 1, j], out[i + 1, j + 1], out[i + 1, j + 2], out[i + 1, j + 3] = c10, c11, c12, c13
    out[i + 2, j], out[i + 2, j + 1], out[i + 2, j + 2], out[i + 2, j + 3] = c20, c21, c22, c23
    out[i + 3, j], out[i + 3, j + 1], out[i + 3, j + 2], out[i + 3, j + 3] = c30, c31, c32, c33


@inside_for_pixels
def _schur(E, used, rows, C, w, products, matrix, vector):
    """matrix = E C^-1 E^T and vector = E C^-1 w of one source, for those `rows` of E (W, P) that `used` names, and up to three more that
    it names to fill the last four. E becomes E C^-1/2, w C^-1/2 w; products (rows + 3, rows + 3): to work in."""
    points = len(C)
    for p in range(np.uint64(points)):
        w[p] *= C[p]
    for i in range(rows):
        row, total = E[used[i]], 0.0
        for p in range(np.uint64(points)):
            row[p] *= C[p]
            total += row[p] * w[p]
        vector[used[i]] = total
    for i in range(0, rows, 4):
        a = (E[used[i]], E[used[i + 1]], E[used[i + 2]], E[used[i + 3]])
        for j in range(0, i + 1, 4):
            _four_by_four(a, (E[used[j]], E[used[j + 1]], E[used[j + 2]], E[used[j + 3]]), i, j, points, products)
    for i in range(rows):
        for j in range(i + 1):
            matrix[used[i], used[j]] = matrix[used[j], used[i]] = products[i, j]


@inside_for_pixels
def _gram(work, count, n, gram):
    """Adds to gram (8 + n, 8 + n), below the diagonal, the weighted inner products of motions, error and n intrinsics of a block."""
    for i in range(0, 7 + n, 2):
        for j in range(0, i + 1, 2):
            aa, ab, ba, bb = blocks.products(work, count, MOTION + np.uint64(i) * PAIR, MOTION + np.uint64(j) * PAIR)
            gram[i, j] += aa
            gram[i, j + 1] += ab
            gram[i + 1, j] += ba
            gram[i + 1, j + 1] += bb


@inside_for_pixels
def _of_source(F, count, r, t, out):
    """Rows of a source camera (6, BLOCK) from those of the destination: E_j Ad, Ad = [[r, [t] r], [0, r]]."""
    for i in range(3):
        a0, a1, a2 = r[0, i], r[1, i], r[2, i]
        b0, b1, b2 = t[1] * a2 - t[2] * a1, t[2] * a0 - t[0] * a2, t[0] * a1 - t[1] * a0
        for k in range(np.uint64(count)):
            out[i, k] = F[0, k] * a0 + F[1, k] * a1 + F[2, k] * a2
        for k in range(np.uint64(count)):
            out[3 + i, k] = F[3, k] * a0 + F[4, k] * a1 + F[5, k] * a2 + F[0, k] * b0 + F[1, k] * b1 + F[2, k] * b2


@inside_for_pixels
def _add(values, index, count, out):
    for k in range(np.uint64(count)):
        out[index[k]] += values[k]


def _condense(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    rotation_only, prior, wanted, kept, Hjj, gj, Hjk, Hkk, gk, matrix, vector, C, w, totals,
):  # fmt: skip
    """Sums over the measurements of source keyframes [first, last) of a chunk, their depths eliminated.

    starts (S + 1,): edges of each source. R (E, 3, 3), t (E, 3) relative cameras. rays (S, P, 3), depth (S, P), depth_free (S,). codes
    (n,), ray_slope (S, P, 2, n): free intrinsics and how they move the rays. prior: precision of relative changes of depth. wanted: are
    matrix and vector. Fills, all zero before: Hjj (E, 6, 6), gj (E, 6), Hjk (E, 6, n), Hkk (S, n, n), gk (S, n), matrix (S, W, W), vector
    (S, W), C, w (S, P), totals (S, 2) = cost, mass; and kept (S, W, P) = E C^-1/2 if it is wanted, else that has no elements.
    """
    n, points, rows = len(codes), depth.shape[1], vector.shape[1]
    work, index, gram = np.zeros(blocks.rows(n)), np.zeros(BLOCK, np.int64), np.zeros((8 + n, 8 + n))
    F, own = np.zeros((8 + n, BLOCK)), np.zeros((6, BLOCK))
    scratch, root, rest = np.zeros((rows, points)), np.zeros(points), np.zeros(points)
    used, squares = np.zeros(rows + 3, np.int64), np.zeros((rows + 3, rows + 3))
    for s in range(first, last):
        moves = 1.0 if depth_free[s] else 0.0
        mine = 6 * (1 + starts[s + 1] - starts[s])
        E = kept[s] if len(kept) else scratch
        E[:mine] = 0.0
        E[rows - n :] = 0.0
        for e in range(starts[s], starts[s + 1]):
            row, at = 6 * (1 + e - starts[s]), 0
            gram[:] = 0.0
            while at < points:
                at, count, full, cost, mass = blocks.observe(
                    work, index, at, rays[s], depth[s], target[e], weight[e], R[e], t[e], params, model, limit, near, scale2
                )
                totals[s, 0] += cost
                totals[s, 1] += mass
                blocks.slopes(work, count, full, index, R[e], t[e], moves, rotation_only, codes, ray_slope[s], params, model)
                _gram(work, full, n, gram)
                for i in range(7 + n):
                    blocks.weighted(work, full, MOTION + np.uint64(i) * PAIR, BY_DEPTH, F[i])
                blocks.weighted(work, full, BY_DEPTH, BY_DEPTH, F[7 + n])
                _of_source(F, full, R[e], t[e], own)
                for i in range(6):
                    for k in range(np.uint64(count)):
                        E[row + i, index[k]] = F[i, k]
                        E[i, index[k]] -= own[i, k]
                _add(F[6], index, count, w[s])
                for m in range(n):
                    _add(F[7 + m], index, count, E[rows - n + m])
                _add(F[7 + n], index, count, C[s])
            for i in range(6):
                for j in range(i + 1):
                    Hjj[e, i, j] = Hjj[e, j, i] = gram[i, j]
                gj[e, i] = gram[6, i]
                for m in range(n):
                    Hjk[e, i, m] = gram[7 + m, i]
            for m in range(n):
                gk[s, m] += gram[7 + m, 6]
                for o in range(m + 1):
                    Hkk[s, m, o] += gram[7 + m, 7 + o]
        for m in range(n):
            for o in range(m):
                Hkk[s, o, m] = Hkk[s, m, o]
        for p in range(points):
            C[s, p] += prior / (depth[s, p] * depth[s, p])
        if wanted:
            for p in range(points):
                root[p], rest[p] = 1.0 / math.sqrt(max(C[s, p], LEAST_CURVATURE)), w[s, p]
            for i in range(mine + n):
                used[i] = i if i < mine else rows - n + i - mine
            _schur(E, used, mine + n, root, rest, squares, matrix[s], vector[s])


condense, condensed = compiled_for_pixels(_condense), inside_for_pixels(_condense)
"""By itself, and as part of a caller."""


def _cost(first, last, starts, R, t, rays, depth, target, weight, params, model, limit, scale2, near, totals):
    """Robust cost and mass alone: fills totals (S, 2). Arguments as of `condense`."""
    points = depth.shape[1]
    work, index = np.zeros(blocks.rows(0)), np.zeros(BLOCK, np.int64)
    for s in range(first, last):
        for e in range(starts[s], starts[s + 1]):
            at = 0
            while at < points:
                at, _, _, cost, mass = blocks.observe(
                    work, index, at, rays[s], depth[s], target[e], weight[e], R[e], t[e], params, model, limit, near, scale2
                )
                totals[s, 0] += cost
                totals[s, 1] += mass


cost, costs = compiled_for_pixels(_cost), inside_for_pixels(_cost)


@compiled_for_pixels
def residuals(first, last, starts, R, t, rays, depth, target, weight, params, model, near, out):
    """Distance in pixels between measured and predicted position: fills out (E, P), nan where a point was not measured or is not in front
    of the camera. Arguments as of `condense`."""
    points = depth.shape[1]
    work, index = np.zeros(blocks.rows(0)), np.zeros(BLOCK, np.int64)
    for s in range(first, last):
        for e in range(starts[s], starts[s + 1]):
            out[e] = np.nan
            at = 0
            while at < points:
                at, count, _, _, _ = blocks.observe(
                    work, index, at, rays[s], depth[s], target[e], weight[e], R[e], t[e], params, model, np.inf, near, 1.0
                )
                for k in range(np.uint64(count)):
                    if work[SEEN + k] > 0.0:
                        out[e, index[k]] = math.sqrt(work[SQUARED + k])


@compiled_for_pixels
def back_substitute(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    move, shared, out,
):  # fmt: skip
    """E^T dx of source keyframes [first, last) of a chunk: out (S, P), zero before. Arguments as of `condense`; move (E, 6): of each
    destination camera relative to its source, in its tangent; shared (n,): of the free intrinsics.
    """
    n, points = len(codes), depth.shape[1]
    work, index = np.zeros(blocks.rows(n)), np.zeros(BLOCK, np.int64)
    total, part = np.zeros(BLOCK), np.zeros(BLOCK)
    for s in range(first, last):
        if not depth_free[s]:
            continue
        for e in range(starts[s], starts[s + 1]):
            at = 0
            while at < points:
                at, count, full, _, _ = blocks.observe(
                    work, index, at, rays[s], depth[s], target[e], weight[e], R[e], t[e], params, model, limit, near, scale2
                )
                blocks.slopes(work, count, full, index, R[e], t[e], 1.0, False, codes, ray_slope[s], params, model)
                total[:] = 0.0
                for i in range(6 + n):
                    along = move[e, i] if i < 6 else shared[i - 6]
                    blocks.weighted(work, full, MOTION + np.uint64(i if i < 6 else i + 1) * PAIR, BY_DEPTH, part)
                    for k in range(np.uint64(full)):
                        total[k] += along * part[k]
                _add(total, index, count, out[s])


def _substitute(first, last, start, starts, destination, kept, C, moves, shared, out):
    """E^T dx of source keyframes [first, last) of a chunk that begins with keyframe `start`, from what `condense` kept: out (S, P), zero
    before. destination (E,); moves (K, 6): of all cameras; shared (n,): of the free intrinsics."""
    points, n, rows = out.shape[1], len(shared), kept.shape[1]
    for s in range(first, last):
        mine = 6 * (1 + starts[s + 1] - starts[s])
        for i in range(mine + n):
            if i < mine:
                along, row = moves[start + s if i < 6 else destination[starts[s] + i // 6 - 1], i % 6], i
            else:
                along, row = shared[i - mine], rows - n + i - mine
            for p in range(np.uint64(points)):
                out[s, p] += along * kept[s, row, p]
        for p in range(np.uint64(points)):
            out[s, p] *= math.sqrt(max(C[s, p], LEAST_CURVATURE))


substitute, substituted = compiled_for_pixels(_substitute), inside_for_pixels(_substitute)


@compiled_for_pixels
def scores(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    prior, moves, hessian, gradient,
):  # fmt: skip
    """What the measurements of source keyframes [first, last) say of the intrinsics: hessian (S, n, n) and gradient (S, P, n) of
    `bundle.scores`, zero before. Arguments as of `condense`; moves (E, n, 6): how each destination camera moves relative to its source,
    in its tangent, with each intrinsic.
    """
    n, points = len(codes), depth.shape[1]
    work, index, part = np.zeros(blocks.rows(n)), np.zeros(BLOCK, np.int64), np.zeros(BLOCK)
    C, w, by_depth, of_error = np.zeros(points), np.zeros(points), np.zeros((n, points)), np.zeros((n, points))
    for s in range(first, last):
        free = 1.0 if depth_free[s] else 0.0
        C[:], w[:], by_depth[:], of_error[:] = prior / (depth[s] * depth[s]), 0.0, 0.0, 0.0
        for e in range(starts[s], starts[s + 1]):
            at = 0
            while at < points:
                at, count, full, _, _ = blocks.observe(
                    work, index, at, rays[s], depth[s], target[e], weight[e], R[e], t[e], params, model, limit, near, scale2
                )
                blocks.slopes(work, count, full, index, R[e], t[e], free, False, codes, ray_slope[s], params, model)
                for m in range(n):
                    slope = INTRINSIC + np.uint64(m) * PAIR
                    for i in range(6):
                        along, motion = moves[e, m, i], MOTION + np.uint64(i) * PAIR
                        for k in range(np.uint64(full)):
                            work[slope + k] += along * work[motion + k]
                            work[slope + ROW + k] += along * work[motion + ROW + k]
                    blocks.weighted(work, full, slope, BY_DEPTH, part)
                    _add(part, index, count, by_depth[m])
                    blocks.weighted(work, full, slope, ERROR, part)
                    _add(part, index, count, of_error[m])
                    for o in range(m + 1):
                        hessian[s, m, o] += blocks.products(work, full, slope, INTRINSIC + np.uint64(o) * PAIR)[0]
                blocks.weighted(work, full, BY_DEPTH, BY_DEPTH, part)
                _add(part, index, count, C)
                blocks.weighted(work, full, BY_DEPTH, ERROR, part)
                _add(part, index, count, w)
        for p in range(points):
            held = (1.0 + prior / (depth[s, p] * depth[s, p] * C[p])) / C[p]  # the prior of the depth is no measurement
            for m in range(n):
                gradient[s, p, m] = of_error[m, p] - by_depth[m, p] * w[p] / C[p]
                for o in range(m + 1):
                    hessian[s, m, o] -= by_depth[m, p] * by_depth[o, p] * held
        for m in range(n):
            for o in range(m):
                hessian[s, o, m] = hessian[s, m, o]


@compiled
def move_depths(depth, left, C, free, out):
    """Fills out (K, P) with inverse depths after a step left / C of those that are free (K,): see `bundle.move_depths`."""
    for k in range(depth.shape[0]):
        for p in range(depth.shape[1]):
            d = depth[k, p]
            change = left[k, p] / C[k, p] if free[k] else 0.0
            out[k, p] = min(max(d + min(max(change, -0.5 * d), 2.0 * d), FARTHEST), NEAREST)


@compiled
def mark(source, starts, index, seen):
    """Sets seen (K, P) where a keyframe has a point in an edge: source (E,) of each, whose points are index[starts[e] : starts[e + 1]]."""
    for e in range(len(source)):
        for i in range(starts[e], starts[e + 1]):
            seen[source[e], index[i]] = True


@compiled
def place(source, starts, index, column, target, weight, targets, weights):
    """Measurements of edges, one after the other, in a table: fills targets (E, width, 2) and weights (E, width) at the column (K, P) of
    each point, unless that is negative. target (M, 2), weight (M,); source, starts and index as of `mark`."""
    for e in range(len(source)):
        for i in range(starts[e], starts[e + 1]):
            at = column[source[e], index[i]]
            if at >= 0:
                targets[e, at, 0], targets[e, at, 1], weights[e, at] = target[i, 0], target[i, 1], weight[i]


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
        places = 1 + starts[s + 1] - starts[s]
        for i in range(places):
            camera = slots[s, i]
            for j in range(places):
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


@inside_for_pixels
def _motion_terms(points, target, weight, params, model, limit, r, t, scale2, work, index, gram, H, g, distance):
    """Normal equations of one camera against fixed points; returns the robust cost. Fills H (6, 6), g (6,), distance (N,); work, index,
    gram: to work in."""
    widest = min(limit, 1.0 / (_FLATTEST * _FLATTEST) - 1.0)
    gram[:] = 0.0
    distance[:] = 1e6
    total, at = 0.0, 0
    while at < len(weight):
        at, count, full, cost, _ = blocks.observe(
            work, index, at, points, points[:, 3], target, weight, r, t, params, model, widest, 0.0, scale2
        )
        total += cost
        blocks.by_camera(work, full, params[0], params[1], False)
        _gram(work, full, 0, gram)
        for k in range(np.uint64(count)):
            if work[SEEN + k] > 0.0:
                distance[index[k]] = math.sqrt(work[SQUARED + k])
    for i in range(6):
        for j in range(i + 1):
            H[i, j] = H[j, i] = gram[i, j]
        g[i] = gram[6, i]
    return total


@compiled_for_pixels
def resect(first, last, points, target, weight, params, model, limit, scales2, steps, rotation, translation, Hs, distances):
    """Gauss-Newton over the cameras of frames [first, last), in place: rotation (F, 3, 3), translation (F, 3).

    points (F, N, 4), target (F, N, 2), weight (F, N). A step that raises the cost is shortened once, then the scale is left. Fills
    Hs (F, 6, 6) and distances (F, N) at the result.
    """
    delta, g, g_new = np.zeros(6), np.zeros(6), np.zeros(6)
    H_new, r_new, t_new = np.zeros((6, 6)), np.zeros((3, 3)), np.zeros(3)
    d_new = np.zeros(points.shape[1])
    work, index, gram = np.zeros(blocks.rows(0)), np.zeros(BLOCK, np.int64), np.zeros((8, 8))
    for f in range(first, last):
        r, t, H, d = rotation[f], translation[f], Hs[f], distances[f]
        for scale2 in scales2:
            cost = _motion_terms(points[f], target[f], weight[f], params, model, limit, r, t, scale2, work, index, gram, H, g, d)
            for _ in range(steps):
                if not _solve6(H, g, delta):
                    break
                better = False
                for fraction in (1.0, 0.3):
                    _perturb(delta * fraction, r, t, r_new, t_new)
                    tried = _motion_terms(
                        points[f], target[f], weight[f], params, model, limit, r_new, t_new, scale2, work, index, gram, H_new, g_new, d_new
                    )
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


@compiled
def sum_up(Hs, distances, weights, near, seen, out):
    """What resections say: out (F, 4), the columns of `resection.Resections` after the camera. Hs (F, 6, 6), distances and weights (F, N)
    in pixels; near: what agrees; seen: weight that is more than a trace."""
    for f in range(len(Hs)):
        order, total, agreeing, inliers = np.argsort(distances[f]), 0.0, 0, 0.0
        for p in range(len(order)):
            total += weights[f, p]
            if distances[f, p] < near:
                inliers += weights[f, p]
                agreeing += 1 if weights[f, p] > seen else 0
        total, middle, passed = max(total, 1e-12), 0, 0.0
        for p in order:
            middle, passed = p, passed + weights[f, p]
            if passed >= 0.5 * total:
                break
        H = Hs[f].copy()
        for i in range(6):
            H[i, i] += 1e-9 * H[i, i] + 1e-9
        spread = np.linalg.inv(H)
        out[f, 0], out[f, 1], out[f, 2] = distances[f, middle] if len(order) else math.nan, inliers / total, agreeing
        out[f, 3] = math.sqrt(max(spread[0, 0], 0.0) + max(spread[1, 1], 0.0) + max(spread[2, 2], 0.0))
