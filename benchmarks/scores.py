"""From an estimate and the truth to figures, and from figures, flags and a target to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from benchmarks import metrics
from benchmarks.estimates import Estimate
from benchmarks.metrics import Figures
from benchmarks.sequences import Target, Truth
from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError
from vipe_dag.evaluate import Aligned, compare, focal_error_percent
from vipe_dag.synthetic import lens

Verdict = Literal["right", "flagged", "wrong", ""]
STILL_FLAGS = frozenset({"no_parallax", "static"})
TRACK_FLAGS = frozenset({"no_parallax", "static", "low_texture", "lost_frames", "inconsistent", "short", "focal_unobservable"})
"""Words by which an answer owns up to a trajectory that cannot be trusted."""
FOCAL_FLAGS = frozenset({"focal_unobservable", "focal_uncertain"})


@dataclass(frozen=True)
class Outcome:
    """One engine on one sequence: figures by metric, flags, verdict ('' where nothing is asked), what was missed, why it failed; std,
    error: of each position that is known to move, in the unit of the reference: standard deviation told, and error after alignment."""

    sequence: str
    engine: str
    figures: Figures
    flags: tuple[str, ...] = ()
    verdict: Verdict = ""
    missed: tuple[str, ...] = ()
    problem: str = ""
    std: tuple[float, ...] = ()
    error: tuple[float, ...] = ()


STD_RANK_ASKED = 0.6
"""Rank correlation of what is told with what is wrong, over all frames of the rendered set."""


def uncertainty(estimate: Estimate, truth: Truth) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviations (n,) of the positions of the estimate, in the unit of the reference, and their errors (n,) after alignment; none
    where it tells none or does not move."""
    told = np.isfinite(estimate.position_std) & (estimate.position_std > 0)
    if truth.time is None or truth.cam2world is None or not told.any():
        return np.zeros(0), np.zeros(0)
    try:
        _, aligned = compare(estimate.time, estimate.cam2world, truth.time, truth.cam2world, segment=estimate.segment)
    except EstimationError:
        return np.zeros(0), np.zeros(0)
    std = np.concatenate([segment.scale * np.where(told, estimate.position_std, 0.0)[segment.rows] for segment in aligned])
    error = np.concatenate([np.linalg.norm((segment.estimate - segment.reference)[:, :3, 3], axis=1) for segment in aligned])
    return std[std > 0], error[std > 0]


def rank_correlation(std: ArrayLike, error: ArrayLike) -> float:
    """Spearman's, of what is told with what is wrong; NaN below three frames."""
    return float(spearmanr(std, error).statistic) if len(np.atleast_1d(std)) > 2 else float("nan")


def score(estimate: Estimate, truth: Truth, peak_mb: float, still: bool = False) -> dict[str, float]:
    """Every figure that can be had. still: positions have no scale to compare, so only rotations are."""
    found = {
        metrics.POSED: len(estimate.time) / estimate.frames,
        metrics.FPS: estimate.frames / estimate.seconds,
        metrics.PEAK: peak_mb,
    }
    if truth.time is not None and truth.cam2world is not None:
        try:
            errors, aligned = compare(estimate.time, estimate.cam2world, truth.time, truth.cam2world, segment=estimate.segment)
        except EstimationError:
            pass
        else:
            found |= {metrics.ROTATION: rotation_error(aligned), metrics.RPE_ROTATION: errors.rpe_rotation_deg}
            if not still and errors.ate_percent is not None:
                found |= {metrics.ATE: errors.ate_rmse, metrics.ATE_PERCENT: errors.ate_percent, metrics.RPE: errors.rpe_translation}
    if truth.camera is not None and estimate.camera is not None:
        found |= {
            metrics.FOCAL: focal_error_percent(estimate.camera, truth.camera),
            metrics.DISTORTION: distortion_error(estimate.camera, truth.camera),
        }
    return found


def rotation_error(aligned: Sequence[Aligned]) -> float:
    """Mean angle in degrees between orientations after one rotation per segment, their chordal mean: on a straight path positions leave
    the roll about it open, so that an alignment by positions would add an error of its own."""
    angles = []
    for segment in aligned:
        off = Rotation.from_matrix(segment.reference[:, :3, :3] @ segment.estimate[:, :3, :3].transpose(0, 2, 1))
        angles.append((off.mean().inv() * off).magnitude())
    return float(np.degrees(np.concatenate(angles).mean()))


def distortion_error(estimate: Calibration, truth: Calibration) -> float:
    """RMS over the picture, pixels, of how far the estimated lens moves what the true lens shows, both with the true focal length and
    principal point: what is wrong with the coefficients alone."""
    u, v = np.meshgrid(np.linspace(0, truth.width - 1, 33), np.linspace(0, truth.height - 1, 25))
    bare = Calibration(estimate.camera_model, np.concatenate([truth.params[:4], estimate.params[4:]]), truth.width, truth.height)
    there = lens.distort(bare, *lens.undistort(truth, u, v))
    return float(np.sqrt(np.mean((there[0] - u) ** 2 + (there[1] - v) ** 2)))


def judge(figures: Figures, flags: tuple[str, ...], target: Target | None) -> tuple[Verdict, tuple[str, ...]]:
    """right: everything asked is met; flagged: not, but each miss is owned up to; wrong: a miss that no flag announces."""
    if target is None:
        return "", ()
    said = frozenset(flags)
    misses: list[tuple[str, bool]] = []
    if target.still and not said & STILL_FLAGS:
        misses.append(("not flagged as without parallax", False))
    if figures.get(metrics.POSED, 0.0) < 1.0:
        misses.append(("frames without a pose", bool(said & TRACK_FLAGS)))
    limits = ((metrics.ATE_PERCENT, target.ate_percent), (metrics.ATE, target.ate), (metrics.ROTATION, target.rotation))
    for name, limit in limits:
        if limit is not None and not figures.get(name, np.inf) <= limit:
            misses.append((_beyond(name, figures, limit), bool(said & TRACK_FLAGS)))
    if target.focal is not None and not figures.get(metrics.FOCAL, np.inf) <= target.focal:
        misses.append((_beyond(metrics.FOCAL, figures, target.focal), bool(said & FOCAL_FLAGS)))
    texts = tuple(text for text, _ in misses)
    if not misses:
        return "right", ()
    return ("flagged" if all(owned for _, owned in misses) else "wrong"), texts


def _beyond(name: str, figures: Figures, limit: float) -> str:
    metric = metrics.BY_NAME[name]
    value = f"{figures[name]:.3g}" if name in figures else "unknown"
    return f"{metric.title} {value} {metric.unit} (asked {limit:g})"
