"""Trajectory errors through `evo`: association by time, alignment after Umeyama, ATE, RPE and rotation error.

Where Umeyama's alignment does not exist (positions on one point or one line) the rotation comes from the orientations instead, and the
result says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vipe_dag.errors import EstimationError

Array = NDArray[np.float64]
Alignment = Literal["sim3", "se3"]
_STILL = 1e-6
"""A reference whose spread of positions is below this (in its own unit) has no length to compare with."""


@dataclass(frozen=True)
class TrajectoryErrors:
    """Errors of an estimated against a reference trajectory, over the associated frames.

    alignment: `sim3` or `se3`; rotation_from: `positions` (Umeyama) or `orientations` (where positions do not determine it). Each segment
    of the estimate is aligned on its own, because it has its own origin and scale; scale: of the longest one. frames: associated;
    frames_estimate, frames_reference: available. Lengths are in the unit of the reference, angles in degrees.
    ate_*: position error after alignment; ate_percent: ATE RMSE relative to the reference path (None when that is zero).
    rotation_*: angle between aligned and reference orientation. rpe_*: RMSE of the motion between consecutive associated frames.
    position_spread: RMS distance of the unaligned estimated positions from their mean, in the estimate's unit.
    """

    alignment: Alignment
    rotation_from: Literal["positions", "orientations"]
    frames: int
    frames_estimate: int
    frames_reference: int
    segments: int
    scale: float
    path_length: float
    position_spread: float
    ate_rmse: float
    ate_mean: float
    ate_median: float
    ate_max: float
    ate_percent: float | None
    rotation_mean_deg: float
    rotation_max_deg: float
    rpe_translation: float
    rpe_rotation_deg: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Aligned:
    """Associated and aligned poses of one segment, row by row: estimate, reference (n, 4, 4) float64; rows (n,): which of those that were
    compared."""

    estimate: Array
    reference: Array
    scale: float
    by_positions: bool
    rows: NDArray[np.int64]


def default_tolerance(time: Array) -> float:
    """Half the median gap between frames, seconds: beyond it a reference pose is nearer to another frame."""
    gaps = np.diff(np.unique(time))
    return float(np.median(gaps) / 2) if len(gaps) else 0.01


def associate(time: Array, reference_time: Array, tolerance: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (estimate, reference) of poses at the same time, ascending; evo's nearest neighbour within `tolerance` seconds."""
    from evo.core.sync import matching_time_indices

    if len(time) <= len(reference_time):
        rows, reference_rows = matching_time_indices(time, reference_time, tolerance)
    else:
        reference_rows, rows = matching_time_indices(reference_time, time, tolerance)
    pairs = np.array([rows, reference_rows], np.int64)
    pairs = pairs[:, np.argsort(pairs[0], kind="stable")]
    return pairs[0], pairs[1]


def align(estimate: Array, reference: Array, alignment: Alignment = "sim3") -> Aligned:
    """Move estimated cam2world (n, 4, 4) onto the reference (n, 4, 4) by the best similarity (`sim3`) or rigid motion (`se3`)."""
    from evo.core.geometry import GeometryException
    from evo.core.trajectory import PosePath3D

    path = PosePath3D(poses_se3=list(np.array(estimate, np.float64)))
    target = PosePath3D(poses_se3=list(np.asarray(reference, np.float64)))
    try:
        _, _, scale = path.align(target, correct_scale=alignment == "sim3")
    except GeometryException:
        return _align_by_orientation(estimate, reference, alignment)
    if not np.isfinite(scale) or scale <= 0:
        return _align_by_orientation(estimate, reference, alignment)
    return Aligned(np.stack(path.poses_se3), reference, float(scale), True, np.arange(len(estimate)))


def _align_by_orientation(estimate: Array, reference: Array, alignment: Alignment) -> Aligned:
    """Rotation: chordal mean of reference x inverse estimate (Hartley et al., Rotation Averaging, 2013). Scale, shift: least squares."""
    turn = Rotation.from_matrix(reference[:, :3, :3] @ estimate[:, :3, :3].transpose(0, 2, 1)).mean().as_matrix()
    positions, target = estimate[:, :3, 3] @ turn.T, reference[:, :3, 3]
    centred, centred_target = positions - positions.mean(axis=0), target - target.mean(axis=0)
    energy, moved = float((centred**2).sum()), float((centred_target**2).sum())
    scale = 1.0
    if alignment == "sim3" and energy > 0 and np.sqrt(moved / len(target)) > _STILL:
        fitted = float((centred * centred_target).sum()) / energy
        scale = fitted if fitted > 0 else 1.0
    aligned = np.tile(np.eye(4), (len(estimate), 1, 1))
    aligned[:, :3, :3] = turn @ estimate[:, :3, :3]
    aligned[:, :3, 3] = scale * centred + target.mean(axis=0)
    return Aligned(aligned, reference, scale, False, np.arange(len(estimate)))


def compare(
    time: Array,
    cam2world: Array,
    reference_time: Array,
    reference_cam2world: Array,
    alignment: Alignment = "sim3",
    segment: NDArray[np.int32] | None = None,
    tolerance: float | None = None,
) -> tuple[TrajectoryErrors, list[Aligned]]:
    """Errors and the aligned poses of each segment.

    time (T,), reference_time (N,) float64 seconds ascending; cam2world (T, 4, 4), reference_cam2world (N, 4, 4) float64; segment (T,)
    numbers parts with separate scales, all one when None; tolerance in seconds, default_tolerance(time) when None.
    Raises EstimationError when nothing associates, or no segment has two associated frames.
    """
    time, reference_time = np.asarray(time, np.float64), np.asarray(reference_time, np.float64)
    if len(time) == 0 or len(reference_time) == 0:
        raise EstimationError(f"nothing to compare: the estimate has {len(time)} poses, the reference {len(reference_time)}")
    allowed = default_tolerance(time) if tolerance is None else tolerance
    rows, reference_rows = associate(time, reference_time, allowed)
    if len(rows) == 0:
        raise EstimationError(
            f"no pose of the reference ({reference_time[0]:g} to {reference_time[-1]:g} s) lies within {allowed:.3g} s of a frame "
            f"({time[0]:g} to {time[-1]:g} s); give a reference with the timestamps of this source, or a wider tolerance"
        )
    parts = np.zeros(len(rows), np.int64) if segment is None else np.asarray(segment)[rows]
    groups = [np.flatnonzero(parts == number) for number in np.unique(parts)]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise EstimationError(f"only {len(rows)} frame(s) of a segment have a reference pose; at least two of one segment are needed")
    estimate, reference = np.asarray(cam2world), np.asarray(reference_cam2world)
    aligned = [replace(align(estimate[rows[g]], reference[reference_rows[g]], alignment), rows=rows[g]) for g in groups]
    return _errors(aligned, alignment, estimate[rows], len(time), len(reference_time)), aligned


def _errors(
    aligned: list[Aligned], alignment: Alignment, unaligned: Array, frames_estimate: int, frames_reference: int
) -> TrajectoryErrors:
    from evo.core.metrics import APE, RPE, PoseRelation, Unit
    from evo.core.trajectory import PosePath3D

    pairs = [(PosePath3D(poses_se3=list(a.reference)), PosePath3D(poses_se3=list(a.estimate))) for a in aligned]

    def pooled(make: Any, relation: Any, **options: Any) -> Array:
        found = []
        for pair in pairs:
            metric = make(relation, **options)
            metric.process_data(pair)
            found.append(np.asarray(metric.error, np.float64))
        return np.concatenate(found)

    position, rotation = pooled(APE, PoseRelation.translation_part), pooled(APE, PoseRelation.rotation_angle_deg)
    step = {"delta": 1, "delta_unit": Unit.frames}
    moved, turned = pooled(RPE, PoseRelation.translation_part, **step), pooled(RPE, PoseRelation.rotation_angle_deg, **step)
    length = float(sum(pair[0].path_length for pair in pairs))
    spread = max(float(np.sqrt(a.reference[:, :3, 3].var(axis=0).sum())) for a in aligned)
    rmse = _rms(position)
    positions = unaligned[:, :3, 3]
    return TrajectoryErrors(
        alignment=alignment,
        rotation_from="positions" if all(a.by_positions for a in aligned) else "orientations",
        frames=len(position),
        frames_estimate=frames_estimate,
        frames_reference=frames_reference,
        segments=len(aligned),
        scale=max(aligned, key=lambda a: len(a.estimate)).scale,
        path_length=length,
        position_spread=float(np.sqrt(positions.var(axis=0).sum())),
        ate_rmse=rmse,
        ate_mean=float(position.mean()),
        ate_median=float(np.median(position)),
        ate_max=float(position.max()),
        ate_percent=100 * rmse / length if spread > _STILL else None,
        rotation_mean_deg=float(rotation.mean()),
        rotation_max_deg=float(rotation.max()),
        rpe_translation=_rms(moved),
        rpe_rotation_deg=_rms(turned),
    )


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
