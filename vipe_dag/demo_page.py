"""The demo's page: one HTML file without any other, pictures inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from vipe_dag.page_style import inline, page

if TYPE_CHECKING:
    from vipe_dag.demo import DemoSummary, Target
    from vipe_dag.store import VideoStore

_SHOWN = 4
"""Frames in the depth strip."""

_BODY = Template("""<h1>One video, six assets, and the truth</h1>
<p>$frames frames of <code>$video_id</code>, rendered from a world whose cameras and depth are known exactly. The pipeline saw the video
file and nothing else: no focal length, no pose, no depth, no trained weights.</p>
<div class="cards">$cards</div>

<h2>Camera path</h2>
<p>Positions after one similarity alignment to the truth (an estimated path has no scale of its own). Arrows point where the camera
looks.</p>
<img alt="Estimated and true camera path from above and from the side" src="$trajectory">
<img alt="Position error of every frame" src="$position_error">

<h2>Depth</h2>
<p>Aligned depth against the truth after one median scale for the whole clip. Red is near, blue is far, grey is unknown; the last row is
the relative error from 0 (black) to 20&nbsp;% (bright).</p>
<div class="strip"><ul><li>frame</li><li>truth</li><li>estimate</li><li>error</li></ul>
<img alt="Frames, true depth, estimated depth, and relative error" src="$depth"></div>

<h2>Errors against the truth</h2>
<table><thead><tr><th>quantity</th><th>value</th><th>how it is measured</th></tr></thead><tbody>$errors</tbody></table>

<h2>Time per stage</h2>
<table><tbody>$timing</tbody></table>""")


@dataclass(frozen=True)
class _Pictures:
    trajectory: bytes
    position_error: bytes
    depth: bytes


def write_page(
    out_html: str | Path,
    root: str | Path | VideoStore,
    video_id: str,
    truth_dir: str | Path,
    summary: DemoSummary,
    targets: Sequence[Target] = (),
) -> Path:
    """Write the page: camera path, depth strips, errors and timing of a stored video beside its truth. Returns the path.

    truth_dir: as vipe_dag.demo.prepare writes it. targets: shown on top with their limits. Raises StoreError, SourceError, EstimationError.
    """
    from vipe_dag.store import VideoStore

    store = root if isinstance(root, VideoStore) else VideoStore(root)
    pictures = _pictures(store, video_id, Path(truth_dir), summary.depth_scale)
    body = _BODY.substitute(
        video_id=escape(video_id),
        frames=summary.frames,
        cards=_cards(summary, targets),
        trajectory=inline(pictures.trajectory),
        position_error=inline(pictures.position_error),
        depth=inline(pictures.depth),
        errors=_errors(summary),
        timing=_timing(summary.seconds_per_stage),
    )
    out = Path(out_html)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(video_id, body), encoding="utf-8")
    return out


def _pictures(store: VideoStore, video_id: str, truth: Path, depth_scale: float) -> _Pictures:
    from vipe_dag import evaluate, plots

    poses = evaluate.stored_poses(store, video_id)
    reference = evaluate.read_reference(truth / "groundtruth.txt")
    _, aligned = evaluate.compare_with(poses, reference)
    estimate, matched = (np.concatenate([getattr(a, name) for a in aligned]) for name in ("estimate", "reference"))
    parts = np.concatenate([np.full(len(a.estimate), i, np.int32) for i, a in enumerate(aligned)])
    error = np.linalg.norm(estimate[:, :3, 3] - matched[:, :3, 3], axis=1)
    return _Pictures(
        trajectory=plots.trajectory(estimate, segment=parts, reference=reference.cam2world, unit="m", width=960, height=380),
        position_error=plots.curve(np.arange(len(error)), 1000 * error, "posed frame", "position error [mm]", width=960),
        depth=_depth_strip(store, video_id, truth, depth_scale),
    )


def _depth_strip(store: VideoStore, video_id: str, truth: Path, scale: float) -> bytes:
    from vipe_dag import evaluate, plots

    frames, depth, folder = store.frames(video_id), store.depth(video_id, "aligned_depth"), evaluate.DepthFolder(truth / "depth")
    known = [row for row in range(len(frames)) if int(frames.frame[row]) in folder]
    rows = [known[i] for i in plots.spread_rows(len(known), _SHOWN)]
    estimates = [depth.depth(row)[0] for row in rows]
    truths = [evaluate.resize_nearest(folder.read(int(frames.frame[row])), *z.shape) for row, z in zip(rows, estimates, strict=True)]
    near, far = plots.depth_range(truths)
    return plots.strip(
        [
            [frames.rgb(row) for row in rows],
            [plots.depth_colours(r, near, far) for r in truths],
            [plots.depth_colours(d * scale, near, far) for d in estimates],
            [plots.error_colours(d * scale, r) for d, r in zip(estimates, truths, strict=True)],
        ],
        tile_width=240,
    )


def _percent(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.2f} %"


def _cards(summary: DemoSummary, targets: Sequence[Target]) -> str:
    total = sum(summary.seconds_per_stage.values())
    shown = (
        ("ATE", _percent(summary.ate_percent), "trajectory error, of the path length"),
        ("focal length", _percent(summary.focal_error_percent), "focal length error"),
        ("AbsRel", f"{summary.abs_rel:.3f}", "relative depth error (AbsRel)"),
        ("", f"{total:.1f} s", "for the six assets"),
    )
    judged = {target.name: target for target in targets}
    return "".join(f'<div class="card"><b>{value}</b><span>{what}</span>{_verdict(judged.get(name))}</div>' for name, value, what in shown)


def _verdict(target: Target | None) -> str:
    if target is None or target.limit is None:
        return ""
    word = "met" if target.met else "missed"
    return f'<em class="{word}">{word}: must be below {target.limit:g}{escape(target.unit)}</em>'


def _errors(summary: DemoSummary) -> str:
    ate = f"{_percent(summary.ate_percent)} ({1000 * summary.ate_rmse:.1f} mm)"
    rows = (
        ("ATE", ate, f"RMSE of positions after Sim(3) alignment, path of {summary.path_length:.2f} m"),
        ("Rotation", f"{summary.rotation_mean_deg:.2f}°", "mean angle to the true orientation after the same alignment"),
        ("Frames posed", f"{summary.frames_posed} of {summary.frames}", "frames with an estimated camera"),
        ("Focal length", _percent(summary.focal_error_percent), f"{summary.focal_estimate:.1f} px, truth {summary.focal_truth:.1f} px"),
        ("AbsRel", f"{summary.abs_rel:.4f}", "mean relative error of aligned depth after one median scale for the clip"),
        ("δ &lt; 1.25", f"{100 * summary.delta1:.1f} %", "pixels within 25 % of the truth, same scale"),
        ("Coverage", f"{100 * summary.depth_coverage:.1f} %", "pixels with a depth"),
    )
    return "".join(f"<tr><td>{name}</td><td>{value}</td><td>{how}</td></tr>" for name, value, how in rows)


def _timing(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return "<tr><td>nothing had to be computed</td></tr>"
    longest = max(*seconds.values(), 1e-9)
    rows = [
        f'<tr><td>{escape(stage)}</td><td class="bar"><i style="width:{100 * spent / longest:.1f}%"></i></td>'
        f'<td class="number">{spent:.1f} s</td></tr>'
        for stage, spent in seconds.items()
    ]
    rows.append(f'<tr><th>total</th><td class="bar"></td><td class="number">{sum(seconds.values()):.1f} s</td></tr>')
    return "".join(rows)
