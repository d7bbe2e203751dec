"""Inverse depth of every pixel of one view from where its neighbours see it, by robust closed-form least squares.

With r the ray of a pixel (z = 1), rho its inverse depth and [R | t] the pose of a neighbour relative to the view, the point is seen by
the neighbour along a + rho t, a = R r. If it was seen at the normalised position x, the error on the neighbour's normalised plane is

    e(rho) = ((a_xy - x a_z) + rho (t_xy - x t_z)) / (a_z + rho t_z) = (p + rho q) / z

so with z held at its last value the squared error is a parabola in rho, and the minimum over all neighbours has a closed form
(Hartley & Zisserman, Multiple View Geometry, 12.2: the linear method, iteratively reweighted by 1/z so that it minimises the geometric
error). e has two components: the one along q decides rho, the other is the distance to the epipolar line, and both count as residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KERNELS_PX = (6.0, 3.0, 1.5, 1.0)
"""Widths of the Geman-McClure kernel, in turn: wide enough to start from the plain mean, narrow enough to drop an outlier at the end."""

NOISE_FLOOR_PX = 0.15
"""No flow is believed to be better than this, however well the neighbours agree."""

_STRIP = 1 << 15  # pixels at a time, so that the intermediate arrays stay in the cache


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
    x, y = rays[:, 0], rays[:, 1]
    r = relative[:, :, :3, None]
    ax, ay, az = (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2] for i in range(3))
    tx, ty, tz = (relative[:, i, 3, None] for i in range(3))
    sx, sy = seen[..., 0], seen[..., 1]
    px, py = ax - sx * az, ay - sy * az
    qx, qy = tx - sx * tz, ty - sy * tz
    pp, pq, qq = px * px + py * py, px * qx + py * qy, qx * qx + qy * qy

    gain = (focal / az.clamp_min(1e-3)) ** 2
    robust = weight
    rho = torch.zeros_like(x)
    for kernel in (None, *KERNELS_PX):
        if kernel is not None:
            error2 = (pp + rho * (2 * pq + rho * qq)) * gain
            robust = weight * (kernel**2 / (kernel**2 + error2)) ** 2
        scaled = robust * gain
        rho = -(scaled * pq).sum(0) / (scaled * qq).sum(0).clamp_min(1e-20)
        depth = az + rho * tz
        gain = torch.where(depth > 1e-3, focal / depth, 0) ** 2
    information = (robust * gain * qq).sum(0)
    support = robust.sum(0)
    error2 = (pp + rho * (2 * pq + rho * qq)).clamp_min(0) * gain
    residual2 = (robust * error2).sum(0) / support.clamp_min(1e-6)
    std = torch.sqrt((residual2 + NOISE_FLOOR_PX**2) / information.clamp_min(1e-20))
    good = (rho > 0) & (information > 0)
    nan = torch.full_like(rho, torch.nan)
    return torch.where(good, rho, nan), torch.where(good, std, nan), residual2.sqrt(), torch.where(good, support, 0)
