"""Robust fits of a few parameters to many points, and robust averaging of such fits. float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_KERNEL_FLOOR = 0.01  # relative residual: agreement is never asked to be tighter than this


@dataclass(frozen=True)
class AffineFit:
    """target ~ scale * source + shift. information (2, 2) of (scale, shift) in the units of the data; residual: median relative |error|."""

    scale: float
    shift: float
    information: F64
    residual: float


def fit_affine(source: F64, target: F64, with_shift: bool, iterations: int = 12) -> AffineFit | None:
    """Robust fit of target (P,) > 0 by scale * source (P,) (+ shift), minimising the relative error; None for too few points.

    Starts from the median ratio (with a shift: from the Theil-Sen line of a fixed set of pairs), then reweights by Geman-McClure, whose
    width follows the median absolute residual; half of the points may be wrong. Needs 8 points, and source > 0 when there is no shift.
    """
    usable = np.isfinite(source) & np.isfinite(target) & (target > 0) & (with_shift | (source > 0))
    x, y = source[usable].astype(np.float64), target[usable].astype(np.float64)
    if len(x) < 8:
        return None
    design = np.stack((x, np.ones_like(x)), -1)[:, : 1 + with_shift] / y[:, None]  # relative error: design @ theta - 1
    theta = _theil_sen(x, y) if with_shift else np.array([np.median(y / x)])
    for _ in range(iterations):
        error = design @ theta - 1
        width = max(3 * 1.4826 * float(np.median(np.abs(error))), _KERNEL_FLOOR)
        weight = (width**2 / (width**2 + error**2)) ** 2
        normal = design.T @ (weight[:, None] * design)
        if np.linalg.cond(normal) > 1e12:
            return None
        theta = np.linalg.solve(normal, design.T @ weight)
    error = design @ theta - 1
    variance = max(float((weight * error**2).sum() / weight.sum()), (0.1 * _KERNEL_FLOOR) ** 2)
    information = np.zeros((2, 2))
    information[: len(theta), : len(theta)] = normal / variance
    return AffineFit(float(theta[0]), float(theta[1]) if with_shift else 0.0, information, float(np.median(np.abs(error))))


def agreeing_mean(fits: list[AffineFit], own: int, with_shift: bool, widening: float = 2.0, iterations: int = 5) -> tuple[float, float]:
    """(scale, shift) of fits[own], averaged with those of the others that agree with it within the uncertainty of both.

    Each fit counts by its information, and by a Geman-McClure weight of its Mahalanobis distance from the current mean, `widening` times
    the joint standard deviation wide: a jump that the data are sure of survives, a wobble inside the noise is averaged away.
    """
    size = 1 + with_shift
    theta = np.array([(fit.scale, fit.shift)[:size] for fit in fits])
    information = np.stack([fit.information[:size, :size] for fit in fits])
    covariance = np.linalg.inv(information)
    mean = theta[own]
    for _ in range(iterations):
        off = theta - mean
        joint = np.linalg.inv(covariance + covariance[own])
        distance2 = np.einsum("ki,kij,kj->k", off, joint, off)
        weight = (widening**2 / (widening**2 + distance2)) ** 2
        total = (weight[:, None, None] * information).sum(0)
        mean = np.linalg.solve(total, np.einsum("k,kij,kj->i", weight, information, theta))
    return float(mean[0]), float(mean[1]) if with_shift else 0.0


def _theil_sen(x: F64, y: F64) -> F64:
    """Median slope over pairs half the sorted range apart, and the median intercept."""
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    low, high = order[:half], order[-half:]
    run = x[high] - x[low]
    slope = float(np.median((y[high] - y[low])[run > 0] / run[run > 0])) if (run > 0).any() else 0.0
    return np.array([slope, float(np.median(y - slope * x))])
