"""`flow.forward_backward_error` on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
WARPS = 4
"""Two pixels a lane: little work each, limited by the reads of both flows, of which many must be under way at a time."""


@triton.jit
def _forward_backward_error(forward, backward, error, pixels, height, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < pixels
    column, line = at % width, (at // width) % height
    flow_x = tl.load(forward + 2 * at, mask=exists, other=0.0).to(tl.float32)
    flow_y = tl.load(forward + 2 * at + 1, mask=exists, other=0.0).to(tl.float32)
    x = column.to(tl.float32) + flow_x
    y = line.to(tl.float32) + flow_y
    inside = exists & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = tl.where(inside, x, 0.0), tl.where(inside, y, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    share_x, share_y = x - left, y - top
    x0, y0 = left.to(tl.int64), top.to(tl.int64)
    # on the last row and column the neighbour beyond has no share
    x1, y1 = tl.minimum(x0 + 1, width - 1), tl.minimum(y0 + 1, height - 1)
    image = backward + 2 * (at - line * width - column)
    miss_x, miss_y = flow_x, flow_y
    for corner in tl.static_range(4):
        share = (share_x if corner % 2 else 1 - share_x) * (share_y if corner // 2 else 1 - share_y)
        there = 2 * ((y1 if corner // 2 else y0) * width + (x1 if corner % 2 else x0))
        miss_x += share * tl.load(image + there, mask=inside, other=0.0).to(tl.float32)
        miss_y += share * tl.load(image + there + 1, mask=inside, other=0.0).to(tl.float32)
    missed = tl.sqrt(miss_x * miss_x + miss_y * miss_y)
    tl.store(error + at, tl.where(inside, missed, float("inf")), mask=exists)


def forward_backward_error(forward: Tensor, backward: Tensor) -> Tensor:
    """`flow.forward_backward_error` of tensors (..., H, W, 2): (..., H, W) float32."""
    *pairs, height, width, _ = forward.shape
    error = torch.empty(*pairs, height, width, dtype=torch.float32, device=forward.device)
    if error.numel():
        inputs = forward.contiguous(), backward.contiguous(), error, error.numel(), height, width
        with torch.cuda.device_of(error):
            _forward_backward_error[(triton.cdiv(error.numel(), BLOCK),)](*inputs, BLOCK, num_warps=WARPS)
    return error
