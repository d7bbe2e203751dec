"""Results of stages to and from their stored form: the one place where a record of vipe_dag.results becomes arrays and attributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.results import BaPoses, Intrinsics, Keyframes

Arrays = dict[str, NDArray[Any]]
Attributes = dict[str, Any]


_KEYFRAMES = ("keyframe", "motion", "segment", "sharpness", "flow_to_next", "flow_from_next")


def keyframes_arrays(keyframes: Keyframes) -> tuple[Arrays, Attributes]:
    """What the store keeps of Keyframes."""
    arrays: Arrays = {name: getattr(keyframes, name) for name in _KEYFRAMES}
    return arrays, {"flags": list(keyframes.flags)}


def keyframes_from(stored: xr.Dataset) -> Keyframes:
    """Inverse of `keyframes_arrays`."""
    return Keyframes(
        keyframe=_values(stored, "keyframe", np.int64),
        motion=_values(stored, "motion", np.float32),
        segment=_values(stored, "segment", np.int32),
        sharpness=_values(stored, "sharpness", np.float32),
        flow_to_next=_values(stored, "flow_to_next", np.float16),
        flow_from_next=_values(stored, "flow_from_next", np.float16),
        flags=_flags(stored),
    )


def intrinsics_arrays(intrinsics: Intrinsics, frames: xr.Dataset) -> tuple[Arrays, Attributes]:
    """What the store keeps of Intrinsics; `frames` gives working and source resolution."""
    arrays: Arrays = {
        "params": intrinsics.params,
        "params_std": intrinsics.params_std,
        **_at_source(intrinsics.camera_model, intrinsics.params, intrinsics.params_std, frames),
        "candidate_focal": intrinsics.candidate_focal,
        "candidate_cost": intrinsics.candidate_cost,
    }
    attributes: Attributes = {
        "camera_model": intrinsics.camera_model,
        "source": intrinsics.source,
        "focal_observable": intrinsics.focal_observable,
        "flags": list(intrinsics.flags),
        **{name: int(frames.attrs[name]) for name in ("width", "height", "source_width", "source_height")},
    }
    return arrays, attributes


def intrinsics_from(stored: xr.Dataset) -> Intrinsics:
    """Inverse of `intrinsics_arrays`."""
    return Intrinsics(
        camera_model=str(stored.attrs["camera_model"]),
        params=_values(stored, "params", np.float64),
        params_std=_values(stored, "params_std", np.float64),
        source=str(stored.attrs["source"]),
        candidate_focal=_values(stored, "candidate_focal", np.float64),
        candidate_cost=_values(stored, "candidate_cost", np.float64),
        focal_observable=bool(stored.attrs["focal_observable"]),
        flags=_flags(stored),
    )


_POSE_ARRAYS: dict[str, type[np.generic]] = {
    "cam2world": np.float64,
    "tracked": np.bool_,
    "segment": np.int32,
    "position_std": np.float64,
    "frame_residual_px": np.float32,
    "inlier_share": np.float32,
    "keyframe": np.int64,
    "point_uv": np.float32,
    "inverse_depth": np.float32,
    "valid": np.bool_,
    "residual_px": np.float32,
    "params": np.float64,
    "params_std": np.float64,
    "parallax": np.bool_,
}


def ba_poses_arrays(poses: BaPoses, frames: xr.Dataset) -> tuple[Arrays, Attributes]:
    """What the store keeps of BaPoses; `frames` gives working and source resolution."""
    arrays: Arrays = {name: getattr(poses, name) for name in _POSE_ARRAYS}
    arrays |= _at_source(poses.camera_model, poses.params, poses.params_std, frames)
    attributes: Attributes = {
        "camera_model": poses.camera_model,
        "scale_source": "arbitrary",
        "residual_px": float(poses.residual_px_median),
        "iterations": int(poses.iterations),
        "flags": list(poses.flags),
    }
    return arrays, attributes


def ba_poses_from(stored: xr.Dataset) -> BaPoses:
    """Inverse of `ba_poses_arrays`."""
    return BaPoses(
        **{name: _values(stored, name, kind) for name, kind in _POSE_ARRAYS.items()},
        camera_model=str(stored.attrs["camera_model"]),
        residual_px_median=_number(stored.attrs["residual_px"]),
        iterations=int(stored.attrs["iterations"]),
        flags=_flags(stored),
    )


def in_order(flags: Iterable[str]) -> list[str]:
    """Flags without repetition, in the order given."""
    return list(dict.fromkeys(flags))


def _at_source(camera_model: str, params: NDArray[np.float64], std: NDArray[np.float64], frames: xr.Dataset) -> Arrays:
    """The same camera at source resolution. A standard deviation scales like its parameter, without the half-pixel shift of the centre."""
    size = [int(frames.attrs[name]) for name in ("width", "height", "source_width", "source_height")]
    scaled = Calibration(camera_model, params, size[0], size[1]).scaled(size[2], size[3])
    factors = np.ones_like(std)
    factors[[0, 2]], factors[[1, 3]] = size[2] / size[0], size[3] / size[1]
    return {"source_params": scaled.params, "source_params_std": std * factors}


def _values(stored: xr.Dataset, name: str, kind: type[np.generic]) -> NDArray[Any]:
    return np.asarray(stored[name].values, dtype=kind)


def _number(value: float | None) -> float:
    """An attribute that was stored as null because it was not finite."""
    return float("nan") if value is None else float(value)


def _flags(stored: xr.Dataset) -> tuple[str, ...]:
    return tuple(stored.attrs.get("flags", ()))
