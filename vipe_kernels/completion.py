"""Edge-aware completion: spread what is known over what is not, along surfaces and not across image edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_kernels.flow import single_threaded_opencv

F32 = NDArray[np.float32]

_FLOOR = np.float32(1e-4)  # weight of the smooth base everywhere: what remains beyond the reach of any datum


def spread(value: F32, weight: F32, guide: NDArray[np.uint8], reach: float = 4000.0, edge: float = 6.0) -> tuple[F32, F32]:
    """Weighted edge-aware smoothing: (filled, support), both (H, W) float32, finite where any weight is positive.

    value (H, W) float32 (NaN allowed where weight is 0); weight (H, W) float32 >= 0; guide (H, W, 3) uint8 image whose edges stop the
    spreading. reach: strength of the smoothing (lambda, pixels squared over weight); edge: grey levels that count as an edge (sigma).
    filled = FGS(weight * value) / FGS(weight), with FGS the fast global smoother of Min et al. (TIP 2014), solving
    (1 + reach * Laplacian(guide)) u = f by alternating rows and columns; beyond the reach of all data a pyramid mean takes over.
    support is FGS(weight): how much weight arrived.
    """
    known = weight > 0
    base = _pyramid_mean(np.where(known, value, 0).astype(np.float32), weight.astype(np.float32))
    weighted = np.where(known, weight, 0).astype(np.float32)
    floor = _FLOOR * max(float(weighted.max(initial=0.0)), 1e-12)
    with single_threaded_opencv():
        top = cv2.ximgproc.fastGlobalSmootherFilter(guide, np.where(known, value, 0).astype(np.float32) * weighted, reach, edge)
        bottom = cv2.ximgproc.fastGlobalSmootherFilter(guide, weighted, reach, edge)
    top, bottom = np.asarray(top), np.maximum(np.asarray(bottom), 0)
    return (top + floor * base) / (bottom + floor), bottom


def _pyramid_mean(value: F32, weight: F32) -> F32:
    """Weighted means over ever larger squares, the finest that holds any weight winning (push-pull, Gortler et al. 1996)."""
    levels = [(value * weight, weight)]
    while min(levels[-1][0].shape) > 1:
        top, bottom = levels[-1]
        size = ((top.shape[1] + 1) // 2, (top.shape[0] + 1) // 2)
        levels.append((cv2.resize(top, size, interpolation=cv2.INTER_AREA), cv2.resize(bottom, size, interpolation=cv2.INTER_AREA)))
    top, bottom = levels[-1]
    mean = np.full_like(top, float(value[weight > 0].mean()) if (weight > 0).any() else np.nan)
    for top, bottom in reversed(levels):
        coarse = cv2.resize(mean, (top.shape[1], top.shape[0]), interpolation=cv2.INTER_LINEAR)
        share = bottom / (bottom + 1e-3 * max(float(weight.max(initial=0)), 1e-12))
        mean = share * top / np.maximum(bottom, 1e-30) + (1 - share) * coarse
    return mean
