"""What the UI shows beside a materialization: numbers, where the data is, and small pictures made from a few rows of the result."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from vipe_dag.pipeline import StageReport
    from vipe_dag.store import VideoStore

MAX_PICTURE_BYTES = 48_000
"""Of a picture as PNG; a third more as base64, which has to stay under the 64 KB that an event may carry."""


def materialization_metadata(store: VideoStore, report: StageReport) -> Mapping[str, dg.MetadataValue]:
    """Metadata of one materialization."""
    from vipe_dag.plots import stage_pictures

    found: dict[str, dg.MetadataValue] = {
        "status": dg.MetadataValue.text(report.status),
        "fingerprint": dg.MetadataValue.text(report.fingerprint),
        "store_path": dg.MetadataValue.path(store.path(report.video_id, report.stage)),
        "seconds": _number(report.seconds),
        "compute_seconds": _number(report.compute_seconds),
        "frames_per_second": _number(report.frames_per_second),
        "peak_rss_mb": _number(report.peak_rss_mb),
        "flags": dg.MetadataValue.text(", ".join(report.flags) or "none"),
    }
    found |= {name: dg.MetadataValue.int(count) for name, count in report.counts.items()}
    found |= {name: _number(number) for name, number in report.numbers.items()}
    pictures = stage_pictures(store, report.video_id, report.stage)
    return found | {name: picture(name, png) for name, png in pictures.items()}


def _number(value: float) -> dg.MetadataValue:
    """Four significant digits; a value that is not finite becomes the word for it, since JSON has none."""
    return dg.MetadataValue.float(float(f"{value:.4g}")) if math.isfinite(value) else dg.MetadataValue.text("unknown")


def picture(name: str, png: bytes) -> dg.MetadataValue:
    """A PNG inside the event itself, as Markdown; a sentence in its place when it is too large."""
    if len(png) > MAX_PICTURE_BYTES:
        return dg.MetadataValue.text(f"{len(png)} bytes are too many for an event")
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")
