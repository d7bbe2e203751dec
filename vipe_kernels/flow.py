"""Dense optical flow (OpenCV DIS), its consistency and its composition. Flow is (H, W, 2) float32 pixels: u + flow(u) in the other image.

OpenCV splits DIS into as many stripes as it has threads, and patches do not talk across stripes: the result depends on the number of
threads. Everything here therefore runs OpenCV with one thread; parallelism belongs to the caller, over pairs (OpenCV releases the GIL).
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels.backend import backend_for
from vipe_kernels.parallel import single_threaded_opencv

F32 = NDArray[np.float32]

PRESETS = {
    "ultrafast": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 2, 0),
    "fast": (cv2.DISOPTICAL_FLOW_PRESET_FAST, 2, 5),
    "medium": (cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, 1, 5),
    "fine": (cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, 0, 0),
}
"""Preset of OpenCV, the finest level of the pyramid (the flow is found at 1/2^level of the image and enlarged bilinearly), and the steps of
variational refinement per level. Down to single pixels that refinement costs half of the time and smooths more than it corrects."""

_local = threading.local()


@lru_cache(maxsize=8)
def pixel_grid(height: int, width: int) -> F32:
    """(H, W, 2) float32 pixel coordinates (x, y), read-only."""
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
    grid.setflags(write=False)
    return grid


def dense_flow(gray0: NDArray[np.uint8], gray1: NDArray[np.uint8], init: F32 | None = None, preset: str = "medium") -> F32:
    """Flow (H, W, 2) float32 in pixels from gray0 to gray1, both (H, W) uint8.

    init (H, W, 2): a predicted flow. gray1 is then pulled into gray0's frame by it, DIS measures what is left, and the two are composed,
    so that rotation, zoom and large displacements that the prediction explains cost no accuracy.
    preset: `ultrafast`, `fast`, `medium` (those of OpenCV) or `fine` (medium down to single pixels, unrefined). Raises ValueError
    for an unknown preset or images that differ in shape.
    """
    if gray0.shape != gray1.shape:
        raise ValueError(f"dense_flow needs two images of one shape, got {gray0.shape} and {gray1.shape}")
    solver = _solver(preset)
    with single_threaded_opencv():
        if init is None:
            return solver.calc(gray0, gray1, None)
        grid = pixel_grid(*gray0.shape)
        pulled = cv2.remap(gray1, grid + init, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return compose(solver.calc(gray0, pulled, None), init)


def compose(first: F32, second: F32) -> F32:
    """(H, W, 2) flow of walking `first`, then `second` from where that leads: first(u) + second(u + first(u)), edges replicated."""
    target = pixel_grid(*first.shape[:2]) + first
    return first + cv2.remap(second, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@overload
def forward_backward_error(forward: F32, backward: F32) -> F32: ...


@overload
def forward_backward_error(forward: Tensor, backward: Tensor) -> Tensor: ...


def forward_backward_error(forward: F32 | Tensor, backward: F32 | Tensor) -> F32 | Tensor:
    """(H, W) float32 pixels: how far forward then backward miss the start; infinite where forward leaves the image.

    Tensors (..., H, W, 2) may hold many pairs, and stay on their device. Arrays are looked up by OpenCV, which rounds positions to
    1/32 pixel; tensors are looked up exactly.
    """
    if isinstance(forward, Tensor) and isinstance(backward, Tensor):
        if backend_for(forward) == "triton":
            from vipe_kernels.gpu import consistency

            return consistency.forward_backward_error(forward, backward)
        return forward_backward_error_tensors(forward, backward)
    height, width = forward.shape[:2]
    target = pixel_grid(height, width) + forward
    back = cv2.remap(backward, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.hypot(forward[..., 0] + back[..., 0], forward[..., 1] + back[..., 1])
    error[~inside(target)] = np.inf
    return error


def forward_backward_error_tensors(forward: Tensor, backward: Tensor) -> Tensor:
    """`forward_backward_error` by tensor operations, on any device and in any floating type."""
    height, width = forward.shape[-3:-1]
    x = torch.arange(width, device=forward.device) + forward[..., 0]
    y = torch.arange(height, device=forward.device)[:, None] + forward[..., 1]
    within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = torch.where(within, x, 0.0), torch.where(within, y, 0.0)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp_max(width - 1), (y0 + 1).clamp_max(height - 1)
    along_x, along_y = (x - x0).unsqueeze(-1), (y - y0).unsqueeze(-1)
    flat = backward.flatten(-3, -2)

    def at(line: Tensor, column: Tensor) -> Tensor:
        place = (line * width + column).flatten(-2).unsqueeze(-1)
        return flat.gather(-2, place.expand(*place.shape[:-1], 2)).view_as(forward)

    above = at(y0, x0) * (1 - along_x) + at(y0, x1) * along_x
    below = at(y1, x0) * (1 - along_x) + at(y1, x1) * along_x
    miss = forward + above * (1 - along_y) + below * along_y
    return torch.where(within, torch.hypot(miss[..., 0], miss[..., 1]), torch.inf)


def inside(target: F32) -> NDArray[np.bool_]:
    """(H, W) bool: does the pixel position target (H, W, 2) lie within an image of the same size."""
    height, width = target.shape[:2]
    x, y = target[..., 0], target[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def structure_tensor(gray: NDArray[np.uint8], block: int = 5) -> F32:
    """(H, W, 3) float32: means of gx gx, gx gy, gy gy over block x block pixels, in (grey levels per pixel)^2."""
    with single_threaded_opencv():
        gx = cv2.Sobel(gray, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
        gy = cv2.Sobel(gray, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
        return cv2.boxFilter(cv2.merge((gx * gx, gx * gy, gy * gy)), cv2.CV_32F, (block, block))


def texture_along(structure: F32, direction: F32) -> F32:
    """(H, W) float32: mean squared derivative in (grey levels per pixel)^2 along direction (H, W, 2), of any length; 0 where that is 0.

    structure (H, W, 3) from `structure_tensor`. It is the information that the image holds on a displacement in that direction.
    """
    dx, dy = direction[..., 0], direction[..., 1]
    squared = structure[..., 0] * dx * dx + 2 * structure[..., 1] * dx * dy + structure[..., 2] * dy * dy
    return squared / np.maximum(dx * dx + dy * dy, np.float32(1e-12))


def _solver(preset: str) -> cv2.DISOpticalFlow:
    if preset not in PRESETS:
        raise ValueError(f"unknown flow preset {preset!r}; choose one of {', '.join(PRESETS)}")
    solvers = _local.__dict__.setdefault("solvers", {})
    if preset not in solvers:
        base, finest, refinement = PRESETS[preset]
        solvers[preset] = cv2.DISOpticalFlow_create(base)
        solvers[preset].setFinestScale(finest)
        solvers[preset].setVariationalRefinementIterations(refinement)
    return solvers[preset]
