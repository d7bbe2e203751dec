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
from vipe_kernels.bundle import Chunk, Sums
from vipe_kernels.gpu.measurement import measure, number, source_points

BLOCK = 64
"""Points of a program, two per lane of its one warp: within a warp, sums over points are shuffles without a barrier, and the Jacobians of
two points take 96 to 168 of a lane's 255 registers (sm_80, sm_90)."""
WARPS = 1


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """That many blocks of zeros."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((BLOCK,), tl.float32),)  # type: ignore[assignment]
    return found


@triton.jit
def _minus_adjoint(rows, f, r, t):
    """rows - f Ad, Ad = [[R, [t] R], [0, R]]: what f, rows of a destination camera, says about the source camera."""
    t0, t1, t2 = number(t, 0), number(t, 1), number(t, 2)
    g = (f[0], f[1], f[2], f[3] + f[1] * t2 - f[2] * t1, f[4] + f[2] * t0 - f[0] * t2, f[5] + f[0] * t1 - f[1] * t0)
    found = ()
    for i in tl.static_range(6):
        turned = g[i // 3 * 3] * number(r, i % 3) + g[i // 3 * 3 + 1] * number(r, 3 + i % 3) + g[i // 3 * 3 + 2] * number(r, 6 + i % 3)
        found = found + (rows[i] - turned,)  # type: ignore[assignment]
    return found


@triton.jit(do_not_specialize=["width"])
def _linearise(
    starts, rotation, translation, rays, depth, depth_free, target, weight, params, limit, ray_slope, parts, E, C, w,
    points, width, scale2, near,
    MODEL: tl.constexpr, CODES: tl.constexpr, N: tl.constexpr, ROTATION_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    lane = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < points
    ray_x, ray_y, ray_z, d, moves, slope = source_points(s, lane, inside, rays, depth, depth_free, ray_slope, points, N)
    rows: tl.constexpr = 7 + N
    size: tl.constexpr = rows * (rows + 1) // 2 + 2
    first, last = tl.load(starts + s), tl.load(starts + s + 1)
    corner = E + s * width * points + lane
    c_sum, w_sum = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    own, shared = zeros(6, BLOCK), zeros(N, BLOCK)
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
        row = corner + 6 * (1 + e - first) * points
        f = ()
        for i in tl.static_range(6):
            f = f + (u[i] * qx + v[i] * qy,)  # type: ignore[assignment]
            tl.store(row + i * points, f[i], mask=inside)
        own = _minus_adjoint(own, f, rotation + 9 * e, translation + 3 * e)
        sums = ()
        for i in tl.static_range(N):
            sums = sums + (shared[i] + u[6 + i] * qx + v[6 + i] * qy,)  # type: ignore[assignment]
        shared = sums
    tl.store(C + s * points + lane, c_sum, mask=inside)
    tl.store(w + s * points + lane, w_sum, mask=inside)
    for i in tl.static_range(6):
        tl.store(corner + i * points, own[i], mask=inside)
    for i in tl.static_range(N):
        tl.store(corner + (width - N + i) * points, shared[i], mask=inside)


@triton.jit
def _back_substitute(
    starts, rotation, translation, rays, depth, depth_free, target, weight, params, limit, ray_slope, move, shared, out,
    points, scale2, near,
    MODEL: tl.constexpr, CODES: tl.constexpr, N: tl.constexpr, ROTATION_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < points
    ray_x, ray_y, ray_z, d, moves, slope = source_points(s, lane, inside, rays, depth, depth_free, ray_slope, points, N)
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


def linearise(chunk: Chunk, scale: float) -> Sums:
    """`bundle.linearise`; E in float32, the rest in float64, cost and mass on the device."""
    n, points, span, edges, width = len(chunk.problem.intrinsics), chunk.points, chunk.sources, len(chunk.stretch.destination), chunk.width
    rows = 7 + n
    grid = (span, triton.cdiv(points, BLOCK))  # its second axis ends at 65,535: 4 million points of a keyframe
    empty, device = torch.empty, chunk.state.params.device
    parts = empty(edges, grid[1], rows * (rows + 1) // 2 + 2, dtype=torch.float32, device=device)
    E = torch.zeros(span, width, points, dtype=torch.float32, device=device)  # a source with fewer edges leaves rows untouched
    C, w = (empty(span, points, dtype=torch.float32, device=device) for _ in range(2))
    arguments, options = _common(chunk)
    with torch.cuda.device_of(parts):
        _linearise[grid](*arguments, parts, E, C, w, points, width, scale * scale, chunk.problem.near, **options)
    sums = parts.sum(1, dtype=torch.float64)
    full = sums[:, _symmetric(rows, device)]
    over_edges = full.sum(0)
    return Sums(
        full[:, :6, :6], full[:, :6, -1], full[:, :6, 6:-1], over_edges[6:-1, 6:-1], over_edges[6:-1, -1],
        E, C.to(torch.float64), w.to(torch.float64), sums[:, -2].sum(), sums[:, -1].sum(),
    )  # fmt: skip


def back_substitute(chunk: Chunk, scale: float, move: Tensor, shared: Tensor) -> Tensor:
    """`bundle.back_substitute`, float64."""
    sources, points = chunk.sources, chunk.points
    out = torch.empty(sources, points, dtype=torch.float32, device=chunk.state.params.device)
    arguments, options = _common(chunk)
    moves = move.contiguous(), shared.contiguous()
    with torch.cuda.device_of(out):
        _back_substitute[(sources, triton.cdiv(points, BLOCK))](
            *arguments, *moves, out, points, scale * scale, chunk.problem.near, **options
        )
    return out.to(torch.float64)


def _common(chunk: Chunk) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors that both kernels begin with, and what they are compiled for."""
    problem, params = chunk.problem, chunk.state.params
    device, (rays, slope) = params.device, chunk.rays
    codes = tuple(fused.INTRINSIC_CODES[free.name] for free in problem.intrinsics)
    limit = cameras.fold_radius(params, problem.model)
    if problem.model != "pinhole":  # found on the host: the only look at the device, and only of a lens with distortion
        limit = limit.clamp_max(cameras.NORMALISED_LIMIT)
    tensors = [
        torch.from_numpy(chunk.stretch.starts).to(device, non_blocking=True), *chunk.relative, rays, chunk.inverse_depth, chunk.free_depth,
        chunk.stretch.target, chunk.stretch.weight, params, limit, slope,
    ]  # fmt: skip
    options = {
        "MODEL": fused.MODEL_CODES[problem.model],
        "CODES": codes,
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
