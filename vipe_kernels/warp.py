"""Moving pixels between views of known pose: reprojection, backward warp, forward splat with a z-buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vipe_kernels.cameras import project, unproject_valid
from vipe_kernels.compiled import compiled
from vipe_kernels.parallel import single_threaded_opencv

F32 = NDArray[np.float32]

FRONT_LAYER = 0.05
"""Splatted surfaces whose inverse depths differ by less than this share are one surface; farther ones are hidden behind it."""


_SOLID = 0.05
"""Least bilinear share with which a point hides what lies behind it in a pixel."""


@dataclass(frozen=True)
class PixelRays:
    """Rays of all pixels of a camera.

    xy (H, W, 2) float32 normalised (z = 1); focal_px (H, W) float32 pixels per unit of the normalised plane; valid (H, W) bool: the lens
    model has a ray there.
    """

    xy: F32
    focal_px: F32
    valid: NDArray[np.bool_]


def pixel_rays(height: int, width: int, params: NDArray[np.float64], model: str) -> PixelRays:
    """Rays through the pixel centres of a height x width image of the camera (params (9,), see vipe_kernels.cameras)."""
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij")
    ray, valid = unproject_valid(torch.stack((x, y), -1), torch.tensor(params), model)
    xy = ray[..., :2].numpy()
    along_x, along_y = np.gradient(xy, axis=1), np.gradient(xy, axis=0)
    area = np.abs(along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0])
    focal = 1.0 / np.sqrt(np.maximum(area, 1e-12))
    return PixelRays(xy.astype(np.float32), focal.astype(np.float32), valid.numpy())


def reproject(xy: F32, inverse_depth: F32, relative: NDArray[np.float64], params: NDArray[np.float64], model: str) -> tuple[F32, F32]:
    """Where another view sees points: pixel (..., 2) and inverse depth (...) there, float32.

    xy (..., 2) normalised and inverse_depth (...) of the points (0 = at infinity) in this view; relative (3 or 4, 4): [R | t] from this
    view into the other. Points behind the other camera get NaN. Exact for inverse depth 0, where only the rotation acts.
    """
    rays, rho = torch.from_numpy(np.ascontiguousarray(xy)), torch.from_numpy(np.ascontiguousarray(inverse_depth))
    pose = torch.as_tensor(np.asarray(relative, np.float32))
    x, y = rays[..., 0], rays[..., 1]
    px, py, pz = (pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] + rho * pose[i, 3] for i in range(3))
    # The projection does not care about scale; the unit of `points` is the depth in this view, so `near` planes mean the same everywhere.
    points = torch.stack((px, py, pz), -1)
    uv = project(points, torch.tensor(params, dtype=torch.float32), model)
    front = pz > 1e-3
    nan = torch.tensor(torch.nan)
    return torch.where(front[..., None], uv, nan).numpy(), torch.where(front, rho / pz, nan).numpy()


def backward_warp(image: NDArray[np.generic], uv: F32) -> NDArray[np.generic]:
    """image (H, W[, C]) sampled at uv (h, w, 2) pixels, bilinearly: (h, w[, C]) of the same dtype. Outside: 0 for integers, NaN for floats.

    A float sample that touches a NaN is NaN.
    """
    outside = np.nan if np.issubdtype(image.dtype, np.floating) else 0
    with single_threaded_opencv():
        return cv2.remap(image, uv, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 4)


def forward_splat(uv: F32, inverse_depth: F32, payload: F32, height: int, width: int) -> tuple[F32, F32, F32]:
    """Move points to a height x width image; the nearest surface wins: (inverse_depth (H, W), payload (H, W, C), coverage (H, W)), float32.

    uv (..., 2) target pixels, inverse_depth (...) at the target, payload (..., C): a point with a NaN in uv or inverse_depth is left out.
    Each point covers the four pixels around it with bilinear weights; per pixel, points within FRONT_LAYER of the nearest are averaged.
    NaN where nothing lands (coverage 0).
    """
    channels = payload.shape[-1]
    total, sums = np.zeros((height, width)), np.zeros((height, width, 1 + channels))
    flat = np.ascontiguousarray(payload, np.float32).reshape(inverse_depth.size, channels)
    _splat(
        np.ascontiguousarray(uv, np.float32).reshape(-1, 2),
        np.ascontiguousarray(inverse_depth, np.float32).ravel(),
        flat,
        np.float32(1 - FRONT_LAYER),
        np.zeros((height, width), np.float32),
        total,
        sums,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(total > 0, sums.transpose(2, 0, 1) / total, np.nan).astype(np.float32)
    return means[0], means[1:].transpose(1, 2, 0), total.astype(np.float32)


@compiled
def _splat(uv, rho, payload, front, nearest, total, sums):
    """Two passes over the points: the nearest surface of every pixel, then the sums over what belongs to it."""
    height, width = nearest.shape
    for summing in (False, True):
        for n in range(len(rho)):
            u, v, d = uv[n, 0], uv[n, 1], rho[n]
            if not (u > -1 and u < width and v > -1 and v < height and d > 0):
                continue
            left, top = math.floor(u), math.floor(v)
            x, y = int(left), int(top)
            fx, fy = u - np.float32(left), v - np.float32(top)
            for corner in range(4):
                column, line = x + corner % 2, y + corner // 2
                if column < 0 or column >= width or line < 0 or line >= height:
                    continue
                share = (fx if corner % 2 else 1 - fx) * (fy if corner // 2 else 1 - fy)
                if not summing:
                    if share > _SOLID and d > nearest[line, column]:
                        nearest[line, column] = d
                elif d >= front * nearest[line, column]:
                    total[line, column] += share
                    sums[line, column, 0] += share * d
                    for c in range(payload.shape[1]):
                        sums[line, column, 1 + c] += share * payload[n, c]
