"""Linearisation of bundle adjustment and substitution of the depths: `bundle.linearise` and `bundle.back_substitute` on a GPU.

A program owns 64 points of one source keyframe and walks over the edges of that source: what is summed over edges for a point (C, w, the
rows of the source camera and of the intrinsics) stays in its registers, and what is summed over the points of an edge leaves it as one
partial sum, added to the others in float64 afterwards. A sum over 64 points in float32, as a tree, is right to some 4e-7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vipe_kernels import cameras, fused
from vipe_kernels.bundle import Problem, State, Sums
from vipe_kernels.gpu.measurement import measure, number, source_points

BLOCK = 64
"""Points of a program, two per lane of its one warp: within a warp, sums over points are shuffles without a barrier, and the Jacobians of
two points take 96 to 168 of a lane's 255 registers (sm_80, sm_90)."""
WARPS = 1


@triton.jit(do_not_specialize=["base", "width"])
def _linearise(
    starts, rotation, translation, rays, depth, depth_free, target, weight, params, limit, ray_slope, parts, E, C, w,
    base, points, width, scale2, near,
    MODEL: tl.constexpr, CODES: tl.constexpr, N: tl.constexpr, ROTATION_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    lane = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < points
    ray_x, ray_y, ray_z, d, moves, slope = source_points(base + s, lane, inside, rays, depth, depth_free, ray_slope, points, N)
    rows: tl.constexpr = 7 + N
    size: tl.constexpr = rows * (rows + 1) // 2 + 2
    first, last = tl.load(starts + s), tl.load(starts + s + 1)
    corner = E + s * width * points + lane
    zero = tl.zeros((BLOCK,), tl.float32)
    c_sum, w_sum = zero, zero
    s0, s1, s2, s3, s4, s5 = zero, zero, zero, zero, zero, zero
    n0, n1, n2 = zero, zero, zero
    for e in range(first, last):
        u, v, jdx, jdy, q, cost, mass = measure(
            e, lane, inside, ray_x, ray_y, ray_z, d, moves, slope, rotation, translation, target, weight, params, limit, points, scale2,
            near, MODEL, CODES, N, ROTATION_ONLY,
        )  # fmt: skip
        out = parts + (e * blocks + block) * size
        place = 0
        for i in tl.static_range(rows):
            for j in tl.static_range(i, rows):
                tl.store(out + place, tl.sum(q * (u[i] * u[j] + v[i] * v[j])))
                place += 1
        tl.store(out + place, tl.sum(cost))
        tl.store(out + place + 1, tl.sum(mass))
        qx, qy = q * jdx, q * jdy
        c_sum += qx * jdx + qy * jdy
        w_sum += qx * u[6 + N] + qy * v[6 + N]
        f0, f1, f2 = u[0] * qx + v[0] * qy, u[1] * qx + v[1] * qy, u[2] * qx + v[2] * qy
        f3, f4, f5 = u[3] * qx + v[3] * qy, u[4] * qx + v[4] * qy, u[5] * qx + v[5] * qy
        row = corner + 6 * (1 + e - first) * points
        tl.store(row, f0, mask=inside)
        tl.store(row + points, f1, mask=inside)
        tl.store(row + 2 * points, f2, mask=inside)
        tl.store(row + 3 * points, f3, mask=inside)
        tl.store(row + 4 * points, f4, mask=inside)
        tl.store(row + 5 * points, f5, mask=inside)
        # row of the source camera: -(E_j Ad), Ad = [[r, [t] r], [0, r]]
        t0, t1, t2 = number(translation, 3 * e), number(translation, 3 * e + 1), number(translation, 3 * e + 2)
        h0, h1, h2 = f3 + f1 * t2 - f2 * t1, f4 + f2 * t0 - f0 * t2, f5 + f0 * t1 - f1 * t0
        r00, r01, r02 = number(rotation, 9 * e), number(rotation, 9 * e + 1), number(rotation, 9 * e + 2)
        r10, r11, r12 = number(rotation, 9 * e + 3), number(rotation, 9 * e + 4), number(rotation, 9 * e + 5)
        r20, r21, r22 = number(rotation, 9 * e + 6), number(rotation, 9 * e + 7), number(rotation, 9 * e + 8)
        s0 -= f0 * r00 + f1 * r10 + f2 * r20
        s1 -= f0 * r01 + f1 * r11 + f2 * r21
        s2 -= f0 * r02 + f1 * r12 + f2 * r22
        s3 -= h0 * r00 + h1 * r10 + h2 * r20
        s4 -= h0 * r01 + h1 * r11 + h2 * r21
        s5 -= h0 * r02 + h1 * r12 + h2 * r22
        if N > 0:
            n0 += u[6] * qx + v[6] * qy
        if N > 1:
            n1 += u[7] * qx + v[7] * qy
        if N > 2:
            n2 += u[8] * qx + v[8] * qy
    tl.store(C + s * points + lane, c_sum, mask=inside)
    tl.store(w + s * points + lane, w_sum, mask=inside)
    own = (s0, s1, s2, s3, s4, s5)
    for i in tl.static_range(6):
        tl.store(corner + i * points, own[i], mask=inside)
    shared = (n0, n1, n2)
    for i in tl.static_range(N):
        tl.store(corner + (width - N + i) * points, shared[i], mask=inside)


@triton.jit(do_not_specialize=["base"])
def _back_substitute(
    starts, rotation, translation, rays, depth, depth_free, target, weight, params, limit, ray_slope, move, shared, out,
    base, points, scale2, near,
    MODEL: tl.constexpr, CODES: tl.constexpr, N: tl.constexpr, ROTATION_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < points
    ray_x, ray_y, ray_z, d, moves, slope = source_points(base + s, lane, inside, rays, depth, depth_free, ray_slope, points, N)
    total = tl.zeros((BLOCK,), tl.float32)
    for e in range(tl.load(starts + s), tl.load(starts + s + 1)):
        u, v, jdx, jdy, q, _, _ = measure(
            e, lane, inside, ray_x, ray_y, ray_z, d, moves, slope, rotation, translation, target, weight, params, limit, points, scale2,
            near, MODEL, CODES, N, ROTATION_ONLY,
        )  # fmt: skip
        shift_x, shift_y = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(6):
            shift_x += u[i] * number(move, 6 * e + i)
            shift_y += v[i] * number(move, 6 * e + i)
        for i in tl.static_range(N):
            shift_x += u[6 + i] * number(shared, i)
            shift_y += v[6 + i] * number(shared, i)
        total += q * (jdx * shift_x + jdy * shift_y)
    tl.store(out + s * points + lane, total, mask=inside)


def linearise(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float) -> Sums:
    """`bundle.linearise`; E in float32, the rest in float64, cost and mass on the device. Does not wait for the device."""
    (first, last), n, points = problem.edges.span(chunk), len(problem.intrinsics), problem.uv.shape[1]
    sources = problem.edges.host_source[chunk]
    edges, span = len(sources), last - first
    width = 6 * (int(np.bincount(sources - first).max()) + 1) + n
    rows = 7 + n
    grid = (span, triton.cdiv(points, BLOCK))
    empty, device = torch.empty, state.params.device
    parts = empty(edges, grid[1], rows * (rows + 1) // 2 + 2, dtype=torch.float32, device=device)
    E = torch.zeros(span, width, points, dtype=torch.float32, device=device)  # a source with fewer edges leaves rows untouched
    C, w = (empty(span, points, dtype=torch.float32, device=device) for _ in range(2))
    arguments, options = _common(problem, state, chunk, r, t, rays, d_ray)
    _linearise[grid](*arguments, parts, E, C, w, first, points, width, scale * scale, problem.near, **options)
    sums = parts.sum(1, dtype=torch.float64)
    full = sums[:, _symmetric(rows, device)]
    over_edges = full.sum(0)
    return Sums(
        full[:, :6, :6], full[:, :6, -1], full[:, :6, 6:-1], over_edges[6:-1, 6:-1], over_edges[6:-1, -1],
        E, C.to(torch.float64), w.to(torch.float64), sums[:, -2].sum(), sums[:, -1].sum(),
    )  # fmt: skip


def back_substitute(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float, move: Tensor,
    shared: Tensor,
) -> Tensor:  # fmt: skip
    """`bundle.back_substitute`, float64. Does not wait for the device."""
    (first, last), points = problem.edges.span(chunk), problem.uv.shape[1]
    out = torch.empty(last - first, points, dtype=torch.float32, device=state.params.device)
    arguments, options = _common(problem, state, chunk, r, t, rays, d_ray)
    _back_substitute[(last - first, triton.cdiv(points, BLOCK))](
        *arguments, move.contiguous(), shared.contiguous(), out, first, points, scale * scale, problem.near, **options
    )
    return out.to(torch.float64)


def _common(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor
) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors that both kernels begin with, and what they are compiled for."""
    edges, device = problem.edges, state.params.device
    first, last = edges.span(chunk)
    starts = np.searchsorted(edges.host_source[chunk], np.arange(first, last + 1)).astype(np.int64)
    codes = [fused.INTRINSIC_CODES[free.name] for free in problem.intrinsics]
    # the only look at the device of a lens with distortion: where its polynomial folds is found on the host
    limit = cameras.fold_radius(state.params, problem.model).clamp_max(cameras.NORMALISED_LIMIT)
    tensors = [
        torch.from_numpy(starts).to(device, non_blocking=True), r, t, rays, state.inverse_depth, problem.free_depth,
        edges.target[chunk], edges.weight[chunk], state.params, limit, d_ray,
    ]  # fmt: skip
    options = {
        "MODEL": fused.MODEL_CODES[problem.model],
        "CODES": tuple(codes) + (-1,) * (3 - len(codes)),
        "N": len(codes),
        "ROTATION_ONLY": problem.rotation_only,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }
    return [x.contiguous() for x in tensors], options


def _symmetric(rows: int, device: torch.device) -> Tensor:
    """(rows, rows) places of a symmetric matrix's entries in its packed upper triangle."""
    place = np.zeros((rows, rows), np.int64)
    upper = np.triu_indices(rows)
    place[upper] = place.T[upper] = np.arange(len(upper[0]))
    return torch.from_numpy(place).to(device, non_blocking=True)
