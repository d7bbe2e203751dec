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
from vipe_kernels.compiled import compiled

Float = NDArray[np.float64]

_STEPS, _LIMIT, _LEAST, _TINY = cameras.NEWTON_ITERATIONS, cameras.NORMALISED_LIMIT, cameras.MIN_DETERMINANT, cameras.TINY

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


@compiled
def linearise(
    first, last, starts, R, t, rays, depth, depth_free, target, weight, params, model, limit, codes, ray_slope, scale2, near,
    rotation_only, Hjj, gj, Hjk, Hkk, gk, E, C, w, totals,
):  # fmt: skip
    """Sums over the measurements of source keyframes [first, last) of a chunk.

    starts (S + 1,): edges of each source. R (E, 3, 3), t (E, 3) relative cameras. rays (S, P, 3), depth (S, P), depth_free (S,). codes
    (n,), ray_slope (S, P, 2, n): free intrinsics and how they move the rays. Fills, all zero before: Hjj (E, 6, 6), gj (E, 6), Hjk
    (E, 6, n), Hkk (S, n, n), gk (S, n), E (S, width, P), C, w (S, P), totals (S, 2) = cost, mass.
    """
    n = len(codes)
    fx, fy = params[0], params[1]
    J = np.zeros((2, 6))
    K = np.zeros((2, max(n, 1)))
    H = np.zeros((6, 6))
    points = depth.shape[1]
    for s in range(first, last):
        moves = 1.0 if depth_free[s] else 0.0
        for e in range(starts[s], starts[s + 1]):
            row = 6 * (1 + e - starts[s])
            r = R[e]
            t0, t1, t2 = t[e, 0], t[e, 1], t[e, 2]
            H[:] = 0.0
            for p in range(points):
                trust = weight[e, p]
                if trust <= 0.0:
                    continue
                d = depth[s, p]
                seen, X, Y, Z, iz, x, y, xd, yd, a, b, c, ex, ey = _observed(
                    r, t[e], rays[s, p], d, target[e, p], params, model, limit, near
                )
                if not seen:
                    totals[s, 0] += trust * scale2
                    continue
                squared = ex * ex + ey * ey
                shape = scale2 / (scale2 + squared)
                totals[s, 0] += trust * squared * shape
                totals[s, 1] += trust * shape
                q = trust * shape * shape
                ax, bx, zx, ay, by, zy = _point_jacobian(x, y, iz, fx, fy, a, b, c)
                J[0, 0], J[0, 1], J[0, 2], J[0, 3], J[0, 4], J[0, 5] = _pose_row(ax, bx, zx, X, Y, Z, d)
                J[1, 0], J[1, 1], J[1, 2], J[1, 3], J[1, 4], J[1, 5] = _pose_row(ay, by, zy, X, Y, Z, d)
                if rotation_only:
                    J[:, :3] = 0.0
                jdx = (ax * t0 + bx * t1 + zx * t2) * moves
                jdy = (ay * t0 + by * t1 + zy * t2) * moves
                C[s, p] += q * (jdx * jdx + jdy * jdy)
                w[s, p] += q * (jdx * ex + jdy * ey)
                for i in range(6):
                    u0, u1 = q * J[0, i], q * J[1, i]
                    for j in range(i, 6):
                        H[i, j] += u0 * J[0, j] + u1 * J[1, j]
                    gj[e, i] += u0 * ex + u1 * ey
                    E[s, row + i, p] = u0 * jdx + u1 * jdy
                # row of the source camera: -(E_j Ad), Ad = [[r, [t] r], [0, r]]
                f0, f1, f2 = E[s, row, p], E[s, row + 1, p], E[s, row + 2, p]
                h0 = E[s, row + 3, p] + f1 * t2 - f2 * t1
                h1 = E[s, row + 4, p] + f2 * t0 - f0 * t2
                h2 = E[s, row + 5, p] + f0 * t1 - f1 * t0
                for i in range(3):
                    E[s, i, p] -= f0 * r[0, i] + f1 * r[1, i] + f2 * r[2, i]
                    E[s, 3 + i, p] -= h0 * r[0, i] + h1 * r[1, i] + h2 * r[2, i]
                if n:
                    b00 = ax * r[0, 0] + bx * r[1, 0] + zx * r[2, 0]
                    b01 = ax * r[0, 1] + bx * r[1, 1] + zx * r[2, 1]
                    b10 = ay * r[0, 0] + by * r[1, 0] + zy * r[2, 0]
                    b11 = ay * r[0, 1] + by * r[1, 1] + zy * r[2, 1]
                    for m in range(n):
                        gx, gy = ray_slope[s, p, 0, m], ray_slope[s, p, 1, m]
                        mx, my = _intrinsic_slope(codes[m], x, y, xd, yd, fx, fy, model)
                        K[0, m] = mx + b00 * gx + b01 * gy
                        K[1, m] = my + b10 * gx + b11 * gy
                    for m in range(n):
                        v0, v1 = q * K[0, m], q * K[1, m]
                        gk[s, m] += v0 * ex + v1 * ey
                        E[s, E.shape[1] - n + m, p] += v0 * jdx + v1 * jdy
                        for o in range(n):
                            Hkk[s, m, o] += v0 * K[0, o] + v1 * K[1, o]
                        for i in range(6):
                            Hjk[e, i, m] += v0 * J[0, i] + v1 * J[1, i]
            for i in range(6):
                for j in range(i, 6):
                    Hjj[e, i, j] = H[i, j]
                    Hjj[e, j, i] = H[i, j]


@compiled
def cost(first, last, starts, R, t, rays, depth, target, weight, params, model, limit, scale2, near, totals):
    """Robust cost and mass alone, summed in the order of `linearise`: fills totals (S, 2). Arguments as there."""
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
    """E^T dx of source keyframes [first, last) of a chunk: out (S, P), zero before. Arguments as of `linearise`; move (E, 6): of each
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
                ax, bx, zx, ay, by, zy = _point_jacobian(x, y, iz, fx, fy, a, b, c)
                # motion of the point in the destination camera, then of its pixel
                px = d * m[0] + m[4] * Z - m[5] * Y
                py = d * m[1] + m[5] * X - m[3] * Z
                pz = d * m[2] + m[3] * Y - m[4] * X
                ux, uy = ax * px + bx * py + zx * pz, ay * px + by * py + zy * pz
                for i in range(n):
                    gx, gy = ray_slope[s, p, 0, i], ray_slope[s, p, 1, i]
                    qx, qy, qz = r[0, 0] * gx + r[0, 1] * gy, r[1, 0] * gx + r[1, 1] * gy, r[2, 0] * gx + r[2, 1] * gy
                    mx, my = _intrinsic_slope(codes[i], x, y, xd, yd, fx, fy, model)
                    ux += shared[i] * (mx + ax * qx + bx * qy + zx * qz)
                    uy += shared[i] * (my + ay * qx + by * qy + zy * qz)
                jdx, jdy = ax * t0 + bx * t1 + zx * t2, ay * t0 + by * t1 + zy * t2
                out[s, p] += trust * shape * shape * (jdx * ux + jdy * uy)


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
