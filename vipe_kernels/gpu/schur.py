"""Products over the eliminated depths: `bundle.eliminate` on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32
POINTS = 16
WARPS = 8
"""A program owns a 32 x 32 tile of one source's product, so that the 30 to 150 rows of a window's source give 1 to 15 programs. Triton
keeps 16 points of both factors in registers, 118 to 128 a lane at 8 warps (sm_80, sm_90); with 32 points, or fewer warps, they run out."""


@triton.jit(do_not_specialize=["width"])
def _eliminate(E, C, w, matrix, vector, width, points, TILE: tl.constexpr, POINTS: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    upper, left = tl.program_id(1), tl.program_id(2)
    if left < upper:  # the product is symmetric: this tile is written by the one across the diagonal
        return
    row = upper.to(tl.int64) * TILE + tl.arange(0, TILE)
    column = left.to(tl.int64) * TILE + tl.arange(0, TILE)
    source = E + s * width * points
    total = tl.zeros((TILE, TILE), tl.float64)
    sums = tl.zeros((TILE,), tl.float64)
    for start in range(0, points, POINTS):
        lane = start + tl.arange(0, POINTS).to(tl.int64)
        inside = lane < points
        # half of C^-1 on either side makes both factors, and so the sums of mirrored entries, the same
        half = 1.0 / tl.sqrt(tl.load(C + s * points + lane, mask=inside, other=1.0).to(tl.float32))
        mask_a = (row < width)[:, None] & inside[None, :]
        mask_b = (column < width)[:, None] & inside[None, :]
        a = tl.load(source + row[:, None] * points + lane[None, :], mask=mask_a, other=0.0).to(tl.float32) * half[None, :]
        b = tl.load(source + column[:, None] * points + lane[None, :], mask=mask_b, other=0.0).to(tl.float32) * half[None, :]
        total += tl.dot(a, tl.trans(b), input_precision="ieee").to(tl.float64)
        if upper == left:
            right = half * tl.load(w + s * points + lane, mask=inside, other=0.0).to(tl.float32)
            sums += tl.sum(a * right[None, :], axis=1).to(tl.float64)
    out = matrix + s * width * width
    mask = (row < width)[:, None] & (column < width)[None, :]
    tl.store(out + row[:, None] * width + column[None, :], total, mask=mask)
    if upper == left:
        tl.store(vector + s * width + row, sums, mask=row < width)
    else:
        tl.store(out + column[None, :] * width + row[:, None], total, mask=mask)


def eliminate(E: Tensor, C: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`bundle.eliminate`: 16 points at a time in float32 (not TF32), their sums in float64."""
    sources, width, points = E.shape
    matrix = torch.empty(sources, width, width, dtype=torch.float64, device=E.device)
    vector = torch.empty(sources, width, dtype=torch.float64, device=E.device)
    tiles = triton.cdiv(width, TILE)
    inputs = [tensor.contiguous() for tensor in (E, C, w)]
    with torch.cuda.device_of(E):
        _eliminate[(sources, tiles, tiles)](*inputs, matrix, vector, width, points, TILE, POINTS, num_warps=WARPS)
    return matrix, vector
