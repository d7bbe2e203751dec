"""Decides the checks of vipe_dag.checks on values that a stage already holds; nothing is read again to be checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.checks import (
    MAX_ALIGNMENT_RESIDUAL,
    MAX_ATE_PERCENT,
    MAX_RESIDUAL_PX,
    MAX_ROTATION_DEG,
    MIN_DEPTH_SHARE,
    Check,
    specs,
)
from vipe_dag.results import BaPoses, Intrinsics, Keyframes

if TYPE_CHECKING:
    from vipe_dag.evaluate import TrajectoryErrors

ORTHONORMAL_TOLERANCE = 1e-6


@dataclass
class DepthTally:
    """Counts over a stream of depth blocks, so that depth is never read again to be checked. Shares are of all pixels."""

    pixels: int = 0
    known: int = 0
    measured: int = 0
    not_positive: int = 0

    def add(self, z_depth: NDArray[np.floating[Any]], measured: NDArray[np.bool_]) -> None:
        """Counts one block: z_depth and measured (n, H, W); NaN is unknown, +inf is far and counts as known."""
        unknown = np.isnan(z_depth)
        self.pixels += z_depth.size
        self.known += z_depth.size - int(np.count_nonzero(unknown))
        self.measured += int(np.count_nonzero(measured & ~unknown))
        self.not_positive += int(np.count_nonzero(z_depth <= 0))

    def share(self) -> float:
        return self.known / self.pixels if self.pixels else 0.0

    def measured_share(self) -> float:
        return self.measured / self.pixels if self.pixels else 0.0


def of_frames(time: NDArray[np.float64], flags: Iterable[str]) -> tuple[Check, ...]:
    """time (T,) seconds."""
    steps = np.diff(time)
    bad = int(np.count_nonzero(~(steps > 0)))
    monotonic = bool(len(time)) and bool(np.isfinite(time).all()) and bad == 0
    truncated = "truncated" in flags
    return _checks(
        "frames",
        (monotonic, f"{bad} of {len(steps)} steps do not increase" if bad else f"{len(time)} timestamps increase", {"bad_steps": bad}),
        (not truncated, "the source ends before its index says" if truncated else "decoded to the end", {}),
    )


def of_keyframes(keyframes: Keyframes) -> tuple[Check, ...]:
    """One shot, and a camera that moves."""
    segments = len(np.unique(keyframes.segment))
    static = "static" in keyframes.flags
    return _checks(
        "keyframes",
        (segments == 1, f"{segments} shots" if segments != 1 else "one shot", {"segments": segments}),
        (not static, "the camera stands still" if static else f"{len(keyframes.keyframe)} keyframes", {}),
    )


def of_intrinsics(intrinsics: Intrinsics) -> tuple[Check, ...]:
    """Usable parameters, and a focal length that something determined."""
    params = intrinsics.params
    usable = bool(np.isfinite(params).all() and (params[:2] > 0).all())
    known = intrinsics.focal_observable or intrinsics.source == "given"
    focal = f"fx {params[0]:.1f} px, std {intrinsics.params_std[0]:.1f} px, {intrinsics.source}"
    return _checks(
        "intrinsics",
        (usable, focal if usable else f"unusable parameters {params.tolist()}", {}),
        (known, focal if known else f"the prior decided: {focal}", {"focal_std_px": float(intrinsics.params_std[0])}),
    )


def of_ba_poses(poses: BaPoses) -> tuple[Check, ...]:
    """Rotations, residual, parallax, segments, tracked frames."""
    defect = pose_defect(poses.cam2world[poses.tracked])
    parallax, segments = int(np.count_nonzero(poses.parallax)), len(poses.parallax)
    tracked, total = int(np.count_nonzero(poses.tracked)), len(poses.tracked)
    residual = float(poses.residual_px_median)
    explained = residual <= MAX_RESIDUAL_PX or (parallax == 0 and not np.isfinite(residual))
    return _checks(
        "ba_poses",
        (defect <= ORTHONORMAL_TOLERANCE, f"largest deviation from a rotation {defect:.1e}", {"defect": defect}),
        (explained, f"median residual {residual:.2f} px", {"residual_px": residual}),
        (parallax == segments and segments > 0, f"parallax in {parallax} of {segments} segments", {"with_parallax": parallax}),
        (segments == 1, f"{segments} segments" if segments != 1 else "one segment", {"segments": segments}),
        (tracked == total, f"{tracked} of {total} frames tracked", {"tracked": tracked, "frames": total}),
    )


def of_depth(stage: str, tally: DepthTally, parallax: bool, alignment_residual: NDArray[np.float32] | None = None) -> tuple[Check, ...]:
    """parallax: does any segment have it (without it, unknown depth is the right answer). alignment_residual (T,), aligned_depth only."""
    share = tally.share()
    wording = f"{share:.1%} of the pixels have depth, {tally.measured_share():.1%} measured"
    outcomes: list[tuple[bool, str, Mapping[str, float]]] = [
        (
            share >= MIN_DEPTH_SHARE or not parallax,
            wording if parallax else f"{wording}; no parallax, depth is unknown",
            {"share": share, "measured_share": tally.measured_share()},
        ),
        (tally.not_positive == 0, f"{tally.not_positive} pixels are not positive", {"not_positive": tally.not_positive}),
    ]
    if alignment_residual is not None:
        known = alignment_residual[np.isfinite(alignment_residual)]
        residual = float(np.median(known)) if len(known) else float("nan")
        aligned = residual <= MAX_ALIGNMENT_RESIDUAL if len(known) else not parallax
        outcomes.append((aligned, f"median alignment residual {residual:.3f}", {"alignment_residual": residual}))
    return _checks(stage, *outcomes)


def of_reference(errors: TrajectoryErrors) -> tuple[bool, str]:
    """Does a trajectory agree with its reference, and a sentence on how far: position where the reference moves, rotation always."""
    near = errors.ate_percent is None or errors.ate_percent <= MAX_ATE_PERCENT
    position = "the reference stands still" if errors.ate_percent is None else f"ATE {errors.ate_percent:.2f} % of the path"
    share = f"{errors.frames} of {errors.frames_reference} reference poses compared"
    return near and errors.rotation_mean_deg <= MAX_ROTATION_DEG, f"{position}, rotation {errors.rotation_mean_deg:.2f} deg, {share}"


def pose_defect(cam2world: NDArray[np.float64]) -> float:
    """Largest absolute entry of R R^T - 1 and of det R - 1 over all poses (T, 4, 4); 0 of none, inf when an entry is not finite."""
    if not np.isfinite(cam2world).all():
        return float("inf")
    rotation = cam2world[:, :3, :3]
    skew = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3))
    return float(max(skew.max(initial=0.0), np.abs(np.linalg.det(rotation) - 1).max(initial=0.0)))


def _checks(stage: str, *outcomes: tuple[bool, str, Mapping[str, float]]) -> tuple[Check, ...]:
    return tuple(
        Check(spec.name, bool(passed), spec.blocking, message, numbers)
        for spec, (passed, message, numbers) in zip(specs(stage), outcomes, strict=True)
    )
