"""One video on one page that needs no other file: path, motion, calibration, residuals, depth, checks, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag import plots
from vipe_dag.config import load_config, presets
from vipe_dag.errors import SourceError, StoreError
from vipe_dag.graph import STAGES
from vipe_dag.page_style import inline, page
from vipe_dag.pipeline import REPORT, wanted
from vipe_dag.placement import config_file
from vipe_dag.store import Pointer, VideoStore

_SHOWN = 4
"""Frames in the depth strip."""
_SAMPLED = 8
"""Frames behind the histograms."""
_WIDTH = 960

_BODY = Template("""<h1>$video_id</h1>
<p>$source</p>
<div class="cards">$cards</div>
$sections""")


@dataclass(frozen=True)
class Motion:
    """Between consecutive tracked frames of one segment: time (n,) seconds, the later frame's; speed (n,) in the scale of the poses per
    second; turn (n,) degrees per second."""

    time: NDArray[np.float64]
    speed: NDArray[np.float64]
    turn: NDArray[np.float64]


def motion(time: NDArray[np.float64], cam2world: NDArray[np.float64], tracked: NDArray[np.bool_], segment: NDArray[np.int32]) -> Motion:
    """How fast the camera moves and turns. time (T,) seconds; cam2world (T, 4, 4); tracked (T,); segment (T,)."""
    rows = np.flatnonzero(tracked)
    first, second = rows[:-1], rows[1:]
    joined = segment[first] == segment[second]
    first, second = first[joined], second[joined]
    gap = time[second] - time[first]
    step = np.linalg.norm(cam2world[second, :3, 3] - cam2world[first, :3, 3], axis=1)
    relative = cam2world[first, :3, :3].transpose(0, 2, 1) @ cam2world[second, :3, :3]
    # from the skew part as well as the trace: the arc cosine alone has no digits at small angles
    skew = np.stack([relative[:, 2, 1] - relative[:, 1, 2], relative[:, 0, 2] - relative[:, 2, 0], relative[:, 1, 0] - relative[:, 0, 1]])
    angle = np.arctan2(np.linalg.norm(skew, axis=0), np.trace(relative, axis1=1, axis2=2) - 1)
    return Motion(time[second], step / gap, np.degrees(angle) / gap)


def write_report(out_html: str | Path, root: str | Path | VideoStore, video_id: str, overwrite: bool = False) -> Path:
    """Write the page of a stored video's current results; returns the path. Depth, keyframes and intrinsics are shown where they exist.

    Raises StoreError when frames or ba_poses are missing, SourceError when `out_html` exists without `overwrite`, or cannot be written.
    """
    out = Path(out_html)
    if out.exists() and not overwrite:
        raise SourceError(f"{out}: exists already; choose another name or allow overwriting with --overwrite")
    if not out.parent.is_dir():
        raise SourceError(f"{out}: the folder {out.parent} does not exist; create it first")
    store = root if isinstance(root, VideoStore) else VideoStore(root)
    content = _content(store, video_id)
    try:
        out.write_text(content, encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror or error}); choose another place") from error
    return out


def _content(store: VideoStore, video_id: str) -> str:
    frames, poses = store.open(video_id, "frames"), store.open(video_id, "ba_poses")
    pointers = {stage.name: pointer for stage in STAGES if (pointer := store.current(video_id, stage.name)) is not None}
    time, arrays = np.asarray(frames["time"].values), {str(name): np.asarray(poses[name].values) for name in poses.variables}
    sections = [
        _path(arrays),
        _motion(time, arrays),
        _focal(store, pointers, poses, frames),
        _residuals(time, arrays),
        _depth(store, pointers),
        _checks(pointers),
        _configuration(store, pointers),
    ]
    body = _BODY.substitute(
        video_id=escape(video_id),
        source=_source(frames.attrs, time),
        cards=_cards(arrays, poses, pointers),
        sections="\n".join(sections),
    )
    return page(video_id, body)


def _source(attributes: Mapping[str, Any], time: NDArray[np.float64]) -> str:
    size, working = (f"{attributes[f'{kind}width']} x {attributes[f'{kind}height']}" for kind in ("source_", ""))
    seconds = float(time[-1] - time[0]) if len(time) else 0.0
    return (
        f"{len(time)} frames, {seconds:.2f} s at {attributes['fps_nominal']:g} per second, {size} pixels, worked on at {working}. "
        f"Source: <code>{escape(str(attributes['source_uri']))}</code>, {escape(str(attributes['codec']))}."
    )


def _cards(arrays: Mapping[str, NDArray[Any]], poses: Any, pointers: Mapping[str, Pointer]) -> str:
    tracked = arrays["tracked"]
    focal, std = float(arrays["source_params"][0]), float(arrays["source_params_std"][0])
    shown = [
        (f"{np.count_nonzero(tracked)} of {len(tracked)}", "frames with a camera"),
        (f"{float(poses.attrs['residual_px']):.2f} px", "median reprojection residual"),
        (f"{focal:.1f} ± {2 * std:.1f} px", "focal length at source resolution, ± two standard deviations"),
    ]
    checks = [check for pointer in pointers.values() for check in pointer.checks]
    shown.append((f"{sum(bool(check['passed']) for check in checks)} of {len(checks)}", "checks passed"))
    return "".join(f'<div class="card"><b>{value}</b><span>{what}</span></div>' for value, what in shown)


def _path(arrays: Mapping[str, NDArray[Any]]) -> str:
    picture = plots.trajectory(arrays["cam2world"], arrays["tracked"], arrays["segment"], width=_WIDTH, height=380)
    segments = len(np.unique(arrays["segment"]))
    note = "" if segments == 1 else f" {segments} segments, each with an origin and a scale of its own, are not joined."
    return _section(
        "Camera path",
        f"Arrows point where the camera looks. The scale is arbitrary.{note}",
        _image(picture, "Camera path from above and from the side"),
    )


def _motion(time: NDArray[np.float64], arrays: Mapping[str, NDArray[Any]]) -> str:
    found = motion(time, arrays["cam2world"], arrays["tracked"], arrays["segment"])
    marks = time[arrays["keyframe"]]
    return _section(
        "Speed and rotation",
        "Between consecutive frames. Ticks along the bottom are keyframes.",
        _image(plots.curve(found.time, found.speed, "time [s]", "speed [scale / s]", marks, _WIDTH), "Speed over time"),
        _image(plots.curve(found.time, found.turn, "time [s]", "rotation [deg / s]", marks, _WIDTH), "Rotation over time"),
    )


def _focal(store: VideoStore, pointers: Mapping[str, Pointer], poses: Any, frames: Any) -> str:
    names, values, std = ["bundle adjustment"], [float(poses["source_params"][0])], [float(poses["source_params_std"][0])]
    words = (
        f"Camera model {escape(str(poses.attrs['camera_model']))}, at source resolution; bars are two standard deviations to either side."
    )
    pictures = []
    if "intrinsics" in pointers:
        stored = store.open(pointers["intrinsics"].video_id, "intrinsics")
        names.insert(0, f"calibration ({stored.attrs['source']})")
        values.insert(0, float(stored["source_params"][0]))
        std.insert(0, float(stored["source_params_std"][0]))
        focal = np.asarray(stored["candidate_focal"].values) * frames.attrs["source_width"] / frames.attrs["width"]
        order = np.argsort(focal)
        if len(focal) > 1 and np.ptp(focal) > 0.02 * np.median(focal):
            cost = np.asarray(stored["candidate_cost"].values)[order]
            curve = plots.curve(focal[order], cost, "focal length [px]", "robust cost", np.array(values[:1]), _WIDTH)
            words += " The curve joins the candidates that were not the same in the end; the tick is the one taken."
            pictures.append(_image(curve, "Robust cost of each candidate focal length"))
        if not stored.attrs["focal_observable"]:
            words += " The motion does not determine the focal length: the prior decided."
    bars = plots.intervals(names, values, std, "focal length fx [px]", _WIDTH)
    return _section("Focal length", words, _image(bars, "Focal length with its uncertainty"), *pictures)


def _residuals(time: NDArray[np.float64], arrays: Mapping[str, NDArray[Any]]) -> str:
    keyframe = arrays["keyframe"]
    known = arrays["valid"] & np.isfinite(arrays["residual_px"])
    residual = np.array(
        [np.median(values[keep]) if keep.any() else np.nan for values, keep in zip(arrays["residual_px"], known, strict=True)]
    )
    share = 100 * arrays["inlier_share"][keyframe]
    return _section(
        "Residuals per keyframe",
        f"{len(keyframe)} keyframes, {np.count_nonzero(arrays['valid'])} points. Median distance of a point to where it was seen, and the "
        "share of observations that agree.",
        _image(plots.curve(time[keyframe], residual, "time [s]", "residual [px]", time[keyframe], _WIDTH), "Median residual per keyframe"),
        _image(plots.curve(time[keyframe], share, "time [s]", "inliers [%]", time[keyframe], _WIDTH), "Inlier share per keyframe"),
    )


def _depth(store: VideoStore, pointers: Mapping[str, Pointer]) -> str:
    asset = next((name for name in ("aligned_depth", "dense_depth") if name in pointers), None)
    if asset is None:
        return _section("Depth", "Not computed yet: run the video until aligned_depth.")
    video_id = pointers[asset].video_id
    frames, depth = store.frames(video_id), store.depth(video_id, asset)
    shown, sampled = plots.spread_rows(len(depth), _SHOWN), plots.spread_rows(len(depth), _SAMPLED)
    found = {row: depth.depth(row) for row in sorted({*shown, *sampled})}
    maps = [found[row][0] for row in shown]
    near, far = plots.depth_range(maps)
    rows = [
        [frames.rgb(row) for row in shown],
        [plots.depth_colours(z, near, far, "viridis") for z in maps],
        [np.repeat(np.where(found[row][2], found[row][1], 0).astype(np.uint8)[..., None], 3, axis=2) for row in shown],
    ]
    z, confidence, measured = (np.concatenate([found[row][part].ravel() for row in sampled]) for part in range(3))
    known = np.isfinite(z) & (z > 0)
    strip = _image(plots.strip(rows, tile_width=235), "Frames, depth, and confidence of measured depth")
    return _section(
        "Depth",
        f"<code>{asset}</code>, from {near:.3g} (bright) to {far:.3g} (dark) in the scale of the poses, grey where unknown. "
        f"In {len(sampled)} sampled frames {known.mean():.1%} of the pixels have a depth, {(measured & known).mean():.1%} are measured. "
        "The last row is the confidence of measured pixels, white is certain, black is completed or unknown.",
        f'<div class="strip"><ul><li>frame</li><li>depth</li><li>confidence</li></ul>{strip}</div>',
        _image(plots.histogram(z[known], "depth [scale of the poses]", _WIDTH), "Histogram of depth"),
        _image(plots.histogram(confidence[known], "confidence, 0 to 255", _WIDTH), "Histogram of confidence"),
    )


def _checks(pointers: Mapping[str, Pointer]) -> str:
    rows = []
    for name, pointer in pointers.items():
        for check in pointer.checks:
            mark, word = ("met", "passed") if check["passed"] else ("missed", "failed" if check["blocking"] else "warning")
            subject = escape(str(check["name"])).replace("_", " ")
            rows.append((name, subject, f'<span class="{mark}">{word}</span>', escape(str(check["message"]))))
    return _section(
        "Checks", "What was asserted of each result before anything was built on it.", _table(("asset", "check", "", "found"), rows)
    )


def _configuration(store: VideoStore, pointers: Mapping[str, Pointer]) -> str:
    rows, values = [], []
    known = _known_configurations(store, next(iter(pointers.values())).video_id)
    for name, pointer in pointers.items():
        made_by = next((label for label, (_, prints) in known.items() if prints[name] == pointer.fingerprint), None)
        report = store.group(pointer.video_id, name).attrs.get(REPORT)
        seconds = f"{float(report['seconds']):.1f} s" if isinstance(report, dict) else ""
        written = f"{pointer.written_at:%Y-%m-%d %H:%M} UTC"
        rows.append((name, f"<code>{pointer.fingerprint}</code>", made_by or "another configuration", written, seconds))
        if made_by is not None:
            section = getattr(known[made_by][0], name)
            values += [(f"{name}.{field}", f"<code>{escape(str(value))}</code>") for field, value in section.model_dump().items()]
    table = _table(("asset", "fingerprint", "made by", "written", "time"), rows)
    details = f"<details><summary>{len(values)} values</summary>{_table(('field', 'value'), values)}</details>" if values else ""
    return _section(
        "Configuration and fingerprints",
        "A fingerprint covers the source, the configuration of the asset and of all it was made from, and the versions of the algorithms.",
        table,
        details,
    )


def _known_configurations(store: VideoStore, video_id: str) -> dict[str, tuple[Any, dict[str, str]]]:
    """The store's own configuration and the presets, with the fingerprints they ask for; none for a video that is not registered."""
    file = config_file(store.root)
    named = {"this store's configuration": load_config(None, (), file)}
    named |= {f"preset {name}": load_config(name) for name in presets()}
    try:
        return {label: (config, wanted(store, video_id, config)) for label, config in named.items()}
    except StoreError:
        return {}


def _section(title: str, words: str, *parts: str) -> str:
    return f"<h2>{title}</h2>\n<p>{words}</p>\n" + "\n".join(part for part in parts if part)


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="{inline(png)}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
