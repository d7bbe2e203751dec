"""`triangulate.triangulate` on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vipe_kernels.gpu.measurement import number
from vipe_kernels.triangulate import KERNELS_PX, NEAR, NOISE_FLOOR_PX, TINY, Triangulation

BLOCK = 128
WARPS = 4
"""One pixel a lane: it reads its N sightings once per reweighting, of which all but the first come from the cache."""
CONSTANTS = {"KERNELS": (0.0, *KERNELS_PX), "STEPS": 1 + len(KERNELS_PX), "NEAR": NEAR, "TINY": TINY, "FLOOR": NOISE_FLOOR_PX}


@triton.jit
def _sighting(n, place, exists, x, y, focal, rho, seen, relative, weight, pixels, NEAR: tl.constexpr):
    """Of neighbour n: weight; the error's p and q; (focal / z)^2 at inverse depth rho, 0 behind the neighbour."""
    at = n * tl.cast(pixels, tl.int64) + place
    trust = tl.load(weight + at, mask=exists, other=0.0).to(tl.float32)
    seen_x = tl.load(seen + 2 * at, mask=exists, other=0.0).to(tl.float32)
    seen_y = tl.load(seen + 2 * at + 1, mask=exists, other=0.0).to(tl.float32)
    pose = relative + 12 * n
    t_z = number(pose, 11)
    a_z = number(pose, 8) * x + number(pose, 9) * y + number(pose, 10)
    p_x = number(pose, 0) * x + number(pose, 1) * y + number(pose, 2) - seen_x * a_z
    p_y = number(pose, 4) * x + number(pose, 5) * y + number(pose, 6) - seen_y * a_z
    q_x, q_y = number(pose, 3) - seen_x * t_z, number(pose, 7) - seen_y * t_z
    z = a_z + rho * t_z
    front = z > NEAR
    per_z = tl.where(front, focal / tl.where(front, z, 1.0), 0.0)
    return trust, p_x, p_y, q_x, q_y, per_z * per_z


@triton.jit
def _robust(trust, p_x, p_y, q_x, q_y, gain, rho, KERNEL: tl.constexpr):
    """Weight by Geman-McClure's kernel of that width, 0 for none, at inverse depth rho."""
    if KERNEL == 0.0:
        return trust
    else:
        e_x, e_y = p_x + rho * q_x, p_y + rho * q_y
        shape = KERNEL * KERNEL / ((e_x * e_x + e_y * e_y) * gain + KERNEL * KERNEL)
        return trust * shape * shape


@triton.jit(do_not_specialize=["count"])
def _triangulate(
    rays, seen, relative, weight, focal_px, inverse_depth, std, residual_px, support, count, pixels,
    KERNELS: tl.constexpr, STEPS: tl.constexpr, NEAR: tl.constexpr, TINY: tl.constexpr, FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < pixels
    x = tl.load(rays + 2 * place, mask=exists, other=0.0).to(tl.float32)
    y = tl.load(rays + 2 * place + 1, mask=exists, other=0.0).to(tl.float32)
    focal = tl.load(focal_px + place, mask=exists, other=1.0).to(tl.float32)
    rho = tl.zeros((BLOCK,), tl.float32)
    before = rho
    for step in tl.static_range(STEPS):
        top, bottom = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for n in range(count):
            trust, p_x, p_y, q_x, q_y, gain = _sighting(n, place, exists, x, y, focal, rho, seen, relative, weight, pixels, NEAR)
            scaled = gain * _robust(trust, p_x, p_y, q_x, q_y, gain, rho, KERNELS[step])
            top += scaled * (p_x * q_x + p_y * q_y)
            bottom += scaled * (q_x * q_x + q_y * q_y)
        before = rho
        rho = -top / tl.maximum(bottom, TINY)
    information, residual2, total = (tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32))
    for n in range(count):
        trust, p_x, p_y, q_x, q_y, gain = _sighting(n, place, exists, x, y, focal, before, seen, relative, weight, pixels, NEAR)
        robust = _robust(trust, p_x, p_y, q_x, q_y, gain, before, KERNELS[STEPS - 1])
        gain = _sighting(n, place, exists, x, y, focal, rho, seen, relative, weight, pixels, NEAR)[5]
        e_x, e_y = p_x + rho * q_x, p_y + rho * q_y
        information += robust * gain * (q_x * q_x + q_y * q_y)
        residual2 += robust * gain * (e_x * e_x + e_y * e_y)
        total += robust
    residual2 = residual2 / tl.maximum(total, 1e-6)
    good = (rho > 0) & (information > 0)
    unknown = float("nan")
    spread = tl.sqrt((residual2 + FLOOR * FLOOR) / tl.maximum(information, TINY))
    tl.store(inverse_depth + place, tl.where(good, rho, unknown), mask=exists)
    tl.store(std + place, tl.where(good, spread, unknown), mask=exists)
    tl.store(residual_px + place, tl.sqrt(residual2), mask=exists)
    tl.store(support + place, tl.where(good, total, 0.0), mask=exists)


def triangulate(rays: Tensor, seen: Tensor, relative: Tensor, weight: Tensor, focal_px: Tensor) -> Triangulation:
    """`triangulate.triangulate`."""
    height, width = rays.shape[:2]
    out = torch.empty(4, height, width, dtype=torch.float32, device=rays.device)
    inputs = [tensor.contiguous() for tensor in (rays, seen, relative, weight, focal_px)]
    grid = (triton.cdiv(height * width, BLOCK),)
    with torch.cuda.device_of(out):
        _triangulate[grid](*inputs, *out, len(seen), height * width, **CONSTANTS, BLOCK=BLOCK, num_warps=WARPS)
    return Triangulation(*out)
