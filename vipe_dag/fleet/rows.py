"""What is known about one video: a row of the catalogue, and its poses for the pooled arrays, from one look at its current results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.checks import Check, failed_blocking
from vipe_dag.errors import StoreError
from vipe_dag.fleet.journal import Failure
from vipe_dag.graph import STAGES
from vipe_dag.pipeline import REPORT

if TYPE_CHECKING:
    import zarr

    from vipe_dag.store import Pointer, VideoStore
    from vipe_dag.video import SourceRecord

Row = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

PER_FRAME: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "frame": ("int64", ()),
    "time": ("float64", ()),
    "cam2world": ("float64", ("world", "camera")),
    "tracked": ("bool", ()),
    "segment": ("int32", ()),
    "position_std": ("float64", ()),
    "frame_residual_px": ("float32", ()),
    "inlier_share": ("float32", ()),
}
"""Pooled arrays with one row per frame: dtype and dimensions after the first. Names as in ba_poses; time and frame as in frames."""
PER_VIDEO: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "params": ("float64", ("param",)),
    "params_std": ("float64", ("param",)),
}
"""Pooled arrays with one row per video, of ba_poses."""


@dataclass(frozen=True)
class Known:
    """A row without what only the shard knows (shard, pool, pool_start), and the arrays to pool: none without ba_poses."""

    row: Row
    arrays: Arrays | None


def read_records(store: VideoStore, video_ids: Sequence[str]) -> tuple[dict[str, SourceRecord], dict[str, str]]:
    """Records of those videos that have one, and what is wrong with those that cannot be read."""
    try:
        return store.sources(video_ids), {}
    except StoreError:
        pass
    records: dict[str, SourceRecord] = {}
    unreadable = {}
    for video_id in video_ids:
        try:
            records |= store.sources([video_id])
        except StoreError as error:
            unreadable[video_id] = str(error)
    return records, unreadable


def read_row(store: VideoStore, record: SourceRecord, wanted: Mapping[str, str], failure: Failure | None) -> Known:
    """Looks at the current results of a video. One that cannot be read makes the row a failed one, with the reason."""
    row = _of_source(record)
    try:
        pointers = {stage.name: pointer for stage in STAGES if (pointer := store.current(record.video_id, stage.name))}
    except StoreError as error:
        return Known({**row, **_unknown(str(error), failure)}, None)
    row |= _of_pointers(pointers, wanted, failure)
    try:
        groups = {name: store.group(record.video_id, name, pointer.fingerprint) for name, pointer in pointers.items()}
        row |= _of_reports(groups)
        arrays = _poses(groups)
        return Known(row | _of_groups(groups, arrays), arrays)
    except StoreError as error:
        return Known({**row, "status": "failed", "reason": str(error)}, None)


def unreadable_row(video_id: str, reason: str, failure: Failure | None) -> Known:
    """Of a video whose source record is damaged."""
    return Known({"video_id": video_id, **_unknown(reason, failure)}, None)


def _unknown(reason: str, failure: Failure | None) -> Row:
    tries = failure.tries if failure is not None else None
    return {"status": "failed", "reason": reason, "tries": tries, "behind": [stage.name for stage in STAGES]}


def _of_source(record: SourceRecord) -> Row:
    return {
        "video_id": record.video_id,
        "source": record.uri,
        "digest": record.digest,
        "start_s": record.start,
        "end_s": record.end,
        "stride": record.stride,
        "calibration_digest": record.given_intrinsics_digest,
    }


def _of_pointers(pointers: Mapping[str, Pointer], wanted: Mapping[str, str], failure: Failure | None) -> Row:
    checks = [(name, Check.from_json(check)) for name, pointer in pointers.items() for check in pointer.checks]
    behind = [name for name in wanted if name not in pointers or pointers[name].fingerprint != wanted[name]]
    stopped = failed_blocking(check for _, check in checks)
    whole = len(pointers) == len(STAGES) and not stopped
    if not behind and not stopped:
        failure = None
    row: Row = {
        "status": "failed" if failure else "done" if whole else "partial",
        "behind": behind,
        "warnings": [f"{name}.{check.name}" for name, check in checks if not check.passed],
        "bytes": sum(pointer.bytes for pointer in pointers.values()),
    }
    if failure is not None:
        row |= {"failed_stage": failure.stage, "reason": failure.reason, "tries": failure.tries}
    for name, pointer in pointers.items():
        row |= {f"{name}_fingerprint": pointer.fingerprint, f"{name}_written_at": pointer.written_at}
    return row


def _of_reports(groups: Mapping[str, zarr.Group]) -> Row:
    """What was measured while computing; results of other programs have none of it."""
    attributes: dict[str, dict[str, Any]] = {name: dict(group.attrs.asdict()) for name, group in groups.items()}
    reports = {name: found.get(REPORT, {}) for name, found in attributes.items()}
    flags = sorted({flag for found in attributes.values() for flag in found.get("flags", ())})
    counts = {name: report.get("counts", {}) for name, report in reports.items()}
    numbers = {name: report.get("numbers", {}) for name, report in reports.items()}
    depth = numbers.get("aligned_depth", {})
    peaks = [float(report["peak_rss_mb"]) for report in reports.values() if "peak_rss_mb" in report]
    return {
        "flags": flags,
        "keyframes": counts.get("ba_poses", {}).get("keyframes"),
        "segments": counts.get("ba_poses", {}).get("segments"),
        "path_length": _number(numbers.get("ba_poses", {}).get("path_length")),
        "depth_share": _number(depth.get("depth_share")),
        "measured_share": _number(depth.get("measured_share")),
        "alignment_residual": _number(depth.get("alignment_residual")),
        "peak_rss_mb": max(peaks, default=None),
        **{f"{name}_s": _number(report.get("seconds")) for name, report in reports.items()},
    }


def _of_groups(groups: Mapping[str, zarr.Group], arrays: Arrays | None) -> Row:
    row: Row = {}
    if "frames" in groups:
        attributes, time = groups["frames"].attrs, _array(groups["frames"], "time")
        row |= {name: attributes[name] for name in ("width", "height", "source_width", "source_height", "codec")}
        seconds = float(time[-1] - time[0])
        row |= {"frames": len(time), "duration_s": seconds, "fps": (len(time) - 1) / seconds if seconds > 0 else None}
    if "intrinsics" in groups:
        attributes = groups["intrinsics"].attrs
        row |= {"intrinsics_source": attributes["source"], "focal_observable": attributes["focal_observable"]}
    estimates = [groups[name] for name in ("ba_poses", "intrinsics") if name in groups]
    for camera in estimates[:1]:
        params, std = (_array(camera, name) for name in ("params", "params_std"))
        row |= {"camera_model": camera.attrs["camera_model"], "focal_px": _number(params[0]), "focal_std_px": _number(std[0])}
        row["focal_of_width"] = row["focal_px"] / row["width"] if "width" in row and row["focal_px"] else None
    if arrays is not None:
        tracked = arrays["tracked"]
        row["residual_px"] = _number(groups["ba_poses"].attrs["residual_px"])
        row["scale_source"] = groups["ba_poses"].attrs["scale_source"]
        row["tracked_share"] = float(tracked.mean())
        row["inlier_share"] = _number(np.nanmean(arrays["inlier_share"][tracked])) if tracked.any() else None
        row["pool_rows"] = len(tracked)
    if "aligned_depth" in groups:
        scale = _array(groups["aligned_depth"], "scale")
        row["depth_scale"] = _number(np.median(scale))
    return row


def _poses(groups: Mapping[str, zarr.Group]) -> Arrays | None:
    if "ba_poses" not in groups:
        return None
    poses = groups["ba_poses"]
    labels = groups.get("frames", poses)
    found = {name: _array(labels if name in ("frame", "time") else poses, name) for name in (*PER_FRAME, *PER_VIDEO)}
    lengths = {name: len(found[name]) for name in PER_FRAME}
    if len(set(lengths.values())) != 1:
        raise StoreError(f"{poses.attrs['video_id']}: frames and ba_poses have other numbers of rows; run the video again")
    return found


def _array(group: zarr.Group, name: str) -> NDArray[Any]:
    array: Any = group.get(name)
    if array is None:
        raise StoreError(f"{group.attrs['video_id']}: {group.attrs['asset']} has no array {name}; run the video again")
    return np.asarray(array[...])


def _number(value: Any) -> float | None:
    """A finite float, else None: attributes hold what is not finite as text."""
    number = float("nan") if value is None else float(value)
    return number if math.isfinite(number) else None
