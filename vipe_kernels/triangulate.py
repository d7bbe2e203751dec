"""Inverse depth of every pixel of one view from where its neighbours see it, by robust closed-form least squares.

With r the ray of a pixel (z = 1), rho its inverse depth and [R | t] the pose of a neighbour relative to the view, the point is seen by
the neighbour along a + rho t, a = R r. If it was seen at the normalised position x, the error on the neighbour's normalised plane is

    e(rho) = ((a_xy - x a_z) + rho (t_xy - x t_z)) / (a_z + rho t_z) = (p + rho q) / z

so with z held at its last value the squared error is a parabola in rho, and the minimum over all neighbours has a closed form
(Hartley & Zisserman, Multiple View Geometry, 12.2: the linear method, iteratively reweighted by 1/z so that it minimises the geometric
error). e has two components: the one along q decides rho, the other is the distance to the epipolar line, and both count as residual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vipe_kernels.backend import backend_for

KERNELS_PX = (6.0, 3.0, 1.5, 1.0)
"""Widths of the Geman-McClure kernel, in turn: wide enough to start from the plain mean, narrow enough to drop an outlier at the end."""

NOISE_FLOOR_PX = 0.15
"""No flow is believed to be better than this, however well the neighbours agree."""

_STRIP = 1 << 13  # pixels at a time, so that the intermediate arrays stay in the cache
NEAR = 1e-3  # z in a neighbour, in units of the depth in the view
TINY = 1e-20
_NAN = torch.tensor(torch.nan)


@dataclass(frozen=True)
class Triangulation:
    """Per pixel (H, W) float32: inverse_depth (NaN where nothing was seen in front of all cameras), std of it in the same unit,
    residual_px (weighted rms), and support (sum of robust weights over the neighbours)."""

    inverse_depth: Tensor
    std: Tensor
    residual_px: Tensor
    support: Tensor


def triangulate(rays: Tensor, seen: Tensor, relative: Tensor, weight: Tensor, focal_px: Tensor) -> Triangulation:
    """Robust inverse depth of each pixel from N neighbours.

    rays (H, W, 2) float32: normalised x, y (z = 1) of each pixel; seen (N, H, W, 2) float32: normalised position of it in each neighbour;
    relative (N, 3, 4): [R | t] taking points of the view into the neighbour; weight (N, H, W) float32 in 0..1, 0 = not seen;
    focal_px (H, W) float32: pixels per unit of the normalised plane near each pixel.
    """
    if backend_for(rays) == "triton":
        from vipe_kernels.gpu import triangulation

        return triangulation.triangulate(rays, seen, relative, weight, focal_px)
    return triangulate_tensors(rays, seen, relative, weight, focal_px)


def triangulate_tensors(rays: Tensor, seen: Tensor, relative: Tensor, weight: Tensor, focal_px: Tensor) -> Triangulation:
    """`triangulate` by tensor operations, on any device and in any floating type."""
    height, width = rays.shape[:2]
    count = len(seen)
    rays, focal = rays.reshape(-1, 2), focal_px.reshape(-1)
    seen, weight = seen.reshape(count, -1, 2), weight.reshape(count, -1)
    relative = relative.to(rays)
    strips = [
        _solve(rays[i : i + _STRIP], seen[:, i : i + _STRIP], relative, weight[:, i : i + _STRIP], focal[i : i + _STRIP])
        for i in range(0, len(rays), _STRIP)
    ]
    return Triangulation(*(torch.cat(parts).reshape(height, width) for parts in zip(*strips, strict=True)))


def _solve(rays: Tensor, seen: Tensor, relative: Tensor, weight: Tensor, focal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    turned = relative[:, :, :2] @ rays.T + relative[:, :, 2:3]  # R r, (N, 3, P)
    sx, sy = seen.permute(2, 0, 1).contiguous()
    az, tz = turned[:, 2], relative[:, 2, 3, None]
    px, py = turned[:, 0] - sx * az, turned[:, 1] - sy * az
    qx, qy = relative[:, 0, 3, None] - sx * tz, relative[:, 1, 3, None] - sy * tz
    pp, pq, qq = px * px + py * py, px * qx + py * qy, qx * qx + qy * qy

    def pixels2_per_z2(rho: Tensor) -> Tensor:
        """(focal / z)^2, and 0 behind the neighbour: squared pixels per squared unit of p + rho q."""
        z = (az + rho * tz).clamp_min(0)
        return (focal / z.clamp_min(NEAR)).square_() * (z > NEAR)

    def squared_error(rho: Tensor, gain: Tensor) -> Tensor:
        return (qq * rho).add_(pq, alpha=2).mul_(rho).add_(pp).clamp_min_(0).mul_(gain)

    rho = torch.zeros_like(focal)
    gain = pixels2_per_z2(rho)
    robust = weight
    for kernel in (math.inf, *KERNELS_PX):
        if kernel < math.inf:
            robust = squared_error(rho, gain).add_(kernel**2).reciprocal_().mul_(kernel**2).square_().mul_(weight)
        scaled = robust * gain
        rho = -(scaled * pq).sum(0) / (scaled * qq).sum(0).clamp_min_(TINY)
        gain = pixels2_per_z2(rho)
    information, support = (robust * gain).mul_(qq).sum(0), robust.sum(0)
    residual2 = (robust * squared_error(rho, gain)).sum(0) / support.clamp_min(1e-6)
    std = ((residual2 + NOISE_FLOOR_PX**2) / information.clamp_min(TINY)).sqrt_()
    good = (rho > 0) & (information > 0)
    return rho.where(good, _NAN), std.where(good, _NAN), residual2.sqrt(), support * good
