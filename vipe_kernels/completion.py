"""Edge-aware completion: spread what is known over what is not, along surfaces and not across image edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_kernels.parallel import single_threaded_opencv

F32 = NDArray[np.float32]

_FLOOR = 1e-4  # weight of the base where none is given, as a share of the largest weight


def spread(
    value: F32,
    weight: F32,
    guide: NDArray[np.uint8],
    reach: float,
    edge: float,
    base: F32 | float | None = None,
    base_weight: float = 0.0,
) -> tuple[F32, F32]:
    """Weighted edge-aware mean: (filled, support), both (H, W) float32, finite where any weight is positive or a base is given.

    value (H, W) float32 (anything where weight is 0); weight (H, W) float32 >= 0; guide (H, W, 3) uint8 image whose edges stop the
    spreading. reach: distance in pixels over which a datum fades to 1/e on a surface of one colour; edge: grey levels of an image edge
    that lengthen a step of one pixel by a factor of e (before the square root).

    filled = (FGS(weight * value) + base_weight * base) / (FGS(weight) + base_weight), with FGS the fast global smoother of Min et al.
    (TIP 2014), which solves (1 + reach^2 * Laplacian(guide)) u = f by alternating rows and columns. Without `base`, a mean over ever
    larger squares takes over, with next to no weight, beyond the reach of all data. support is FGS(weight): how much weight arrived.
    """
    known = weight > 0
    weighted = np.where(known, weight, 0).astype(np.float32)
    values = np.where(known, value, 0).astype(np.float32)
    with single_threaded_opencv():
        smoother = cv2.ximgproc.createFastGlobalSmootherFilter(guide, reach * reach, edge)
        top = smoother.filter(values * weighted)
        bottom = np.maximum(smoother.filter(weighted), 0)
        if base is None:
            base_weight = _FLOOR * max(float(weighted.max(initial=0.0)), 1e-12)
            top += np.float32(base_weight) * _pyramid_mean(values, weighted)
        else:
            top += np.float32(base_weight) * np.float32(base)
    return top / np.maximum(bottom + np.float32(base_weight), np.float32(1e-30)), bottom


def redraw_edges(
    value: F32, weight: F32, guide: NDArray[np.uint8], step: float, radius: int = 3, reach: float = 8.0, edge: float = 8.0
) -> tuple[F32, NDArray[np.bool_]]:
    """Move the steps of value (H, W) float32 onto the edges of guide (H, W, 3) uint8: (redrawn (H, W), band (H, W) of changed pixels).

    Flow is smooth where depth is not, so surfaces in front come out too wide. Pixels within `radius` of a step larger than `step` are
    forgotten and filled from the two sides by `spread`; weight (H, W) says what each of the other pixels is worth there. A pixel that
    next to nothing reaches keeps its value.
    """
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    with single_threaded_opencv():
        band = cv2.dilate(value, window) - cv2.erode(value, window) > step
    filled, support = spread(value, np.where(band, 0, weight).astype(np.float32), guide, reach, edge, value, _FLOOR)
    band &= support > 1e-5
    return np.where(band, filled, value).astype(np.float32), band


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
