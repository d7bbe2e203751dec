"""Depth errors pooled over a clip, one frame at a time: AbsRel, RMSE and the share of pixels within 1.25^k of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import EstimationError

DepthAlignment = Literal["metric", "median", "scale", "scale_shift_disp"]
DepthPair = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
"""Estimated and reference z-depth of one frame, (H, W) each; NaN, infinite or not positive = unknown."""

_BIN = 1e-5
_RANGE = 14.0


@dataclass(frozen=True)
class DepthErrors:
    """Over all pixels of the clip where both depths are known.

    alignment: `metric` (none), `median` (the median over the clip of reference / estimate), `scale` (least squares of the relative error)
    or `scale_shift_disp` (least squares in inverse depth over the clip, as relative depth is evaluated since Ranftl et al., MiDaS, TPAMI
    2022; inverse depth below that of the farthest reference is held there). scale, shift: a = scale d, or a = 1 / (scale / d + shift) for
    scale_shift_disp; shift is 0 otherwise. frames, pixels: compared; coverage: share of reference pixels that have an estimate.
    abs_rel: mean |a - r| / r; rmse in the reference's unit; delta_k: share with max(a / r, r / a) < 1.25^k.
    """

    alignment: DepthAlignment
    scale: float
    shift: float
    frames: int
    pixels: int
    coverage: float
    abs_rel: float
    rmse: float
    delta1: float
    delta2: float
    delta3: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare_depth(pairs: Callable[[], Iterable[DepthPair]], alignment: DepthAlignment = "median") -> DepthErrors:
    """Pool the errors of all frames. `pairs` is called once, or twice where a scale is to be found first; one frame is held at a time.

    The clip's median is read from a histogram of log ratios with bins of 1e-5, so it is exact to 5e-6.
    Raises EstimationError when no pixel is known in both depths.
    """
    aligned = _Alignment() if alignment == "metric" else _find_alignment(pairs(), alignment)
    frames = pixels = reference_pixels = 0
    absolute = squared = 0.0
    within = np.zeros(3, np.int64)
    for estimate, reference in pairs():
        known, d, r = _both_known(estimate, reference)
        reference_pixels += known
        if len(d) == 0:
            continue
        d = aligned.apply(d)
        frames, pixels = frames + 1, pixels + len(d)
        absolute += float((np.abs(d - r) / r).sum())
        squared += float(((d - r) ** 2).sum())
        ratio = np.maximum(d / r, r / d)
        within += [int((ratio < 1.25**k).sum()) for k in (1, 2, 3)]
    if pixels == 0:
        raise _nothing_known()
    delta1, delta2, delta3 = (float(count) / pixels for count in within)
    return DepthErrors(
        alignment,
        aligned.scale,
        aligned.shift,
        frames,
        pixels,
        pixels / reference_pixels,
        absolute / pixels,
        (squared / pixels) ** 0.5,
        delta1,
        delta2,
        delta3,
    )


@dataclass(frozen=True)
class _Alignment:
    """least: smallest inverse depth that scale and shift may lead to; 0 where only a scale is applied."""

    scale: float = 1.0
    shift: float = 0.0
    least: float = 0.0

    def apply(self, d: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.least == 0.0:
            return d * self.scale
        return 1 / np.maximum(self.scale / d + self.shift, self.least)


def _both_known(estimate: NDArray[Any], reference: NDArray[Any]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Number of known reference pixels, and both depths where both are known."""
    if estimate.shape != reference.shape:
        raise EstimationError(f"depth maps of one frame differ in size: {estimate.shape} and {reference.shape}")
    with np.errstate(invalid="ignore"):
        wanted = np.isfinite(reference) & (reference > 0)
        both = wanted & np.isfinite(estimate) & (estimate > 0)
    return int(wanted.sum()), estimate[both].astype(np.float64), reference[both].astype(np.float64)


def _find_alignment(pairs: Iterable[DepthPair], alignment: DepthAlignment) -> _Alignment:
    counts = np.zeros(round(2 * _RANGE / _BIN), np.int64)
    linear = quadratic = 0.0
    moments, least = np.zeros(5), np.inf
    for estimate, reference in pairs:
        _, d, r = _both_known(estimate, reference)
        linear += float((d / r).sum())
        quadratic += float(((d / r) ** 2).sum())
        if alignment == "median":
            bins = ((np.log(r / d) + _RANGE) / _BIN).astype(np.int64)
            found, number = np.unique(np.clip(bins, 0, len(counts) - 1), return_counts=True)
            counts[found] += number
        elif alignment == "scale_shift_disp":
            x, y = 1 / d, 1 / r
            moments += [len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum()]
            least = min(least, y.min(initial=np.inf))
    if quadratic == 0:
        raise _nothing_known()
    if alignment == "scale":
        return _Alignment(linear / quadratic)
    if alignment == "scale_shift_disp":
        return _scale_and_shift(moments, float(least))
    middle = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
    return _Alignment(float(np.exp((middle + 0.5) * _BIN - _RANGE)))


def _scale_and_shift(moments: NDArray[np.float64], least: float) -> _Alignment:
    """Least squares of scale x + shift = y from n, sum x, sum y, sum xx, sum xy."""
    n, x, y, xx, xy = (float(moment) for moment in moments)
    spread = xx - x * x / n
    if spread <= 1e-12 * xx:
        return _Alignment(y / x, 0.0, least)  # estimates of one depth only: a shift cannot be told from a scale
    scale = (xy - x * y / n) / spread
    return _Alignment(scale, (y - scale * x) / n, least)


def _nothing_known() -> EstimationError:
    return EstimationError("no pixel has both an estimated and a reference depth; check that the depth maps belong to frames of this video")
