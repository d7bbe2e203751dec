"""Small pictures as PNG bytes, for asset metadata and HTML pages: trajectories, curves, and strips of frames and depth.

Figures use matplotlib's Agg canvas directly: no pyplot, no display, no global state, safe in threads.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vipe_dag.store import VideoStore

ESTIMATE, TRUTH, MUTED = "#1f6feb", "#d1662b", "#8b949e"
UNKNOWN = 70
"""Grey of pixels without depth."""
_DPI = 100
_MARGINS = (64, 12, 42, 10)
"""Of one plot with both axes named and ticks of up to six digits."""
_TURBO = np.frombuffer(
    bytes.fromhex(
        "30123b 3f3e9c 4666dd 458cfd 2fb2f4 1ad4d0 22ebaa 52fa7a 8bff4b b7f735 dbe236 f5c53a fea130 f9751d e84b0c ce2d04 a91601 7a0403"
    ),
    np.uint8,
).reshape(-1, 3)
"""Every fifteenth colour of turbo (Mikhailov, Google, 2019): what lies between is within 6 of 255."""


def figure(width: int, height: int, margins: tuple[int, int, int, int] | None = None) -> Figure:
    """An empty figure of that many pixels.

    margins: left, right, bottom, top of what is plotted, in pixels. Without them they are found by laying out every text, which takes as
    long as drawing it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained" if margins is None else None)
    if margins is not None:
        left, right, bottom, top = margins
        made.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    FigureCanvasAgg(made)
    return made


def png_of(drawn: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    drawn.canvas.print_png(buffer)  # type: ignore[attr-defined]  # savefig draws twice where there is a layout
    return buffer.getvalue()


def trajectory(
    cam2world: NDArray[np.float64],
    tracked: NDArray[np.bool_] | None = None,
    segment: NDArray[np.int32] | None = None,
    reference: NDArray[np.float64] | None = None,
    unit: str = "scale of the estimate",
    width: int = 720,
    height: int = 300,
) -> bytes:
    """PNG of camera positions from above (x, z) and from the side (z, -y), with viewing directions.

    cam2world (T, 4, 4) float64; tracked (T,) bool: others are left out; segment (T,) numbers parts that are not joined by lines;
    reference (N, 4, 4), in the same world, is drawn beneath.
    """
    keep = np.ones(len(cam2world), bool) if tracked is None else tracked
    parts = np.zeros(len(cam2world), np.int32) if segment is None else segment
    drawn = figure(width, height, (*_MARGINS[:3], 24))
    drawn.subplots_adjust(wspace=0.3)
    for axes, (a, b, sign) in zip(drawn.subplots(1, 2), ((0, 2, 1.0), (2, 1, -1.0)), strict=True):
        if reference is not None:
            axes.plot(reference[:, a, 3], sign * reference[:, b, 3], color=TRUTH, lw=3, alpha=0.55, label="truth")
        for number in np.unique(parts[keep]):
            chosen = cam2world[keep & (parts == number)]
            label = "estimate" if number == parts[keep][0] else None
            axes.plot(chosen[:, a, 3], sign * chosen[:, b, 3], color=ESTIMATE, lw=1.2, marker=".", ms=2.5, label=label)
            shown = chosen[:: max(1, len(chosen) // 10)]
            axes.quiver(
                shown[:, a, 3], sign * shown[:, b, 3], shown[:, a, 2], sign * shown[:, b, 2], color=MUTED, width=0.004, scale=14, zorder=0
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title("from above" if a == 0 else "from the side", fontsize=9)
        axes.set_xlabel(f"{'xyz'[a]} [{unit}]", fontsize=8)
        axes.set_ylabel(f"{'' if sign > 0 else '-'}{'xyz'[b]}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    if reference is not None:
        drawn.axes[0].legend(fontsize=7, loc="best")
    return png_of(drawn)


def curve(x: NDArray[Any], y: NDArray[Any], x_label: str, y_label: str, marks: NDArray[Any] | None = None, width: int = 720) -> bytes:
    """PNG of one curve; `marks` are x values to point out with ticks along the bottom."""
    drawn = figure(width, 200, _MARGINS)
    axes = drawn.subplots()
    axes.plot(x, y, color=ESTIMATE, lw=1.3)
    if marks is not None and len(marks):
        axes.plot(marks, np.zeros(len(marks)), "|", color=TRUTH, ms=9, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    return png_of(drawn)


def intervals(names: Sequence[str], values: Sequence[float], std: Sequence[float], x_label: str, width: int = 720) -> bytes:
    """PNG of named values with bars of two standard deviations to either side, one below the other."""
    drawn = figure(width, 70 + 30 * len(names))
    axes = drawn.subplots()
    rows = np.arange(len(names))[::-1]
    axes.errorbar(values, rows, xerr=2 * np.asarray(std), fmt="o", ms=5, capsize=4, color=ESTIMATE)
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(x_label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    return png_of(drawn)


def histogram(values: NDArray[Any], x_label: str, width: int = 720) -> bytes:
    """PNG of how finite values are spread between their 0.5th and 99.5th percentile, as percent of them."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    drawn = figure(width, 200, _MARGINS)
    axes = drawn.subplots()
    if len(known):
        low, high = np.quantile(known, [0.005, 0.995])
        axes.hist(
            known, bins=60, range=(low, max(high, low + 1e-9)), weights=np.full(len(known), 100 / len(known)), color=ESTIMATE, alpha=0.85
        )
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel("% of pixels", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    return png_of(drawn)


def spreads(measures: Sequence[tuple[str, Sequence[float]]], columns: int = 3) -> bytes:
    """PNG with one small plot per (title, values): the values in ascending order over the share of items, the median as a line."""
    rows = max(1, -(-len(measures) // columns))
    drawn = figure(240 * columns, 190 * rows)
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for place, (title, values) in zip(axes, measures, strict=False):
        ordered = np.sort(np.asarray(values, np.float64))
        share = 100 * (np.arange(len(ordered)) + 0.5) / len(ordered)
        place.plot(ordered, share, color=ESTIMATE, lw=1.2, marker=".", ms=4)
        place.axvline(float(np.median(ordered)), color=TRUTH, lw=1, ls="--")
        place.set_xlabel(title, fontsize=8)
        place.set_ylabel("% of videos", fontsize=8)
        place.set_ylim(0, 100)
        place.tick_params(labelsize=7)
        place.grid(alpha=0.25)
    for place in axes[len(measures) :]:
        place.set_axis_off()
    return png_of(drawn)


def depth_range(maps: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Near and far, the 2nd and 98th percentile of all known depths; (1, 2) when none is known."""
    known = np.concatenate([z[np.isfinite(z) & (z > 0)].astype(np.float64).ravel() for z in maps] or [np.empty(0)])
    if len(known) == 0:
        return 1.0, 2.0
    near, far = np.quantile(known, [0.02, 0.98])
    return float(near), float(max(far, near * 1.001))


def depth_colours(z_depth: NDArray[Any], near: float, far: float, palette: str = "turbo") -> NDArray[np.uint8]:
    """(H, W, 3) uint8: inverse depth from far (dark) to near along a palette of matplotlib; grey where unknown.

    turbo (far dark blue, near dark red) shows the most detail, viridis reads in print and with any colour vision.
    """
    z = np.asarray(z_depth, np.float32)
    known = np.isfinite(z) & (z > 0)
    inverse = 1 / np.where(known, z, 1.0)
    share = np.clip((inverse - 1 / far) / (1 / near - 1 / far), 0, 1)
    colours = _palette(palette)[(share * 255).astype(np.uint8)]
    colours[~known] = UNKNOWN
    return colours


def _palette(name: str) -> NDArray[np.uint8]:
    """(256, 3) colours. turbo comes without matplotlib, which takes longer to import than a viewer should take to start."""
    if name == "turbo":
        place = np.linspace(0, len(_TURBO) - 1, 256)
        return np.stack([np.interp(place, np.arange(len(_TURBO)), channel) for channel in _TURBO.T], axis=-1).round().astype(np.uint8)
    from matplotlib import colormaps

    return np.asarray(colormaps[name](np.arange(256), bytes=True))[:, :3]


def error_colours(estimate: NDArray[Any], reference: NDArray[Any], limit: float = 0.2) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: relative depth error from 0 (black) to `limit` (bright), matplotlib's inferno; grey where unknown."""
    from matplotlib import colormaps

    d, r = np.asarray(estimate, np.float32), np.asarray(reference, np.float32)
    known = np.isfinite(d) & np.isfinite(r) & (r > 0)
    error = np.abs(np.where(known, d, 1) - np.where(known, r, 1)) / np.where(known, r, 1)
    colours = (colormaps["inferno"](np.clip(error / limit, 0, 1))[..., :3] * 255).astype(np.uint8)
    colours[~known] = UNKNOWN
    return colours


def strip(rows: Sequence[Sequence[NDArray[np.uint8]]], tile_width: int = 200, palette: int | None = None) -> bytes:
    """PNG of a grid of (H, W, 3) uint8 pictures, each resized to `tile_width`; `palette` colours only make it several times smaller."""
    from PIL import Image

    gap = 3
    first = rows[0][0]
    tile_height = max(1, round(tile_width * first.shape[0] / first.shape[1]))
    size = (len(rows[0]) * (tile_width + gap) - gap, len(rows) * (tile_height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            small = Image.fromarray(np.ascontiguousarray(tile)).resize((tile_width, tile_height), Image.Resampling.BILINEAR)
            sheet.paste(small, (j * (tile_width + gap), i * (tile_height + gap)))
    buffer = io.BytesIO()
    if palette is not None:  # chosen from every third pixel in both directions: from all of them takes twenty times as long
        sample = sheet.resize((max(1, size[0] // 3), max(1, size[1] // 3)), Image.Resampling.NEAREST)
        sheet = sheet.quantize(palette=sample.quantize(palette), dither=Image.Dither.NONE)
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def spread_rows(count: int, number: int) -> list[int]:
    """Up to `number` rows spread evenly over 0..count-1, without the very ends."""
    return sorted({int((i + 0.5) * count / number) for i in range(number)})


def stage_pictures(store: VideoStore, video_id: str, stage: str) -> Mapping[str, bytes]:
    """Named PNGs that show the current result of one stage, each below 48 kB, read from a handful of its rows. Raises StoreError."""
    if stage == "frames":
        frames = store.frames(video_id)
        return {"frames_strip": _small_strip([[frames.rgb(row) for row in spread_rows(len(frames), 4)]])}
    group = store.group(video_id, stage)

    def array(name: str) -> NDArray[Any]:
        return np.asarray(group[name][...])  # type: ignore[index]

    if stage == "keyframes":
        motion = array("motion")
        return {"motion": curve(np.arange(len(motion)), motion, "row", "flow since keyframe [px]", array("keyframe"), width=560)}
    if stage == "intrinsics":
        focal, cost = array("candidate_focal"), array("candidate_cost")
        order = np.argsort(focal)
        chosen = array("params")[:1]
        return (
            {"focal_candidates": curve(focal[order], cost[order], "focal length [px]", "robust cost", chosen, width=560)}
            if len(focal)
            else {}
        )
    if stage == "ba_poses":
        return {"trajectory": trajectory(array("cam2world"), array("tracked"), array("segment"), width=600, height=260)}
    frames, depth = store.frames(video_id), store.depth(video_id, stage)
    rows = spread_rows(len(depth), 4)
    maps = [depth.depth(row)[0] for row in rows]
    near, far = depth_range(maps)
    return {"depth_strip": _small_strip([[frames.rgb(row) for row in rows], [depth_colours(z, near, far) for z in maps]])}


def _small_strip(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> bytes:
    """A strip that fits into an event: narrower tiles until it does."""
    for tile_width in (160, 120, 80):
        made = strip(rows, tile_width, palette=64)
        if len(made) < 48_000:
            return made
    return made
