"""What the UI shows beside a materialization: numbers, where the data is, and small pictures made from a few rows of the result."""

from __future__ import annotations

import base64
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
    found: dict[str, dg.MetadataValue] = {
        "status": dg.MetadataValue.text(report.status),
        "fingerprint": dg.MetadataValue.text(report.fingerprint),
        "store_path": dg.MetadataValue.path(store.path(report.video_id, report.stage)),
        "seconds": dg.MetadataValue.float(report.seconds),
        "compute_seconds": dg.MetadataValue.float(report.compute_seconds),
        "peak_rss_mb": dg.MetadataValue.float(report.peak_rss_mb),
        "flags": dg.MetadataValue.text(", ".join(report.flags) or "none"),
    }
    found |= {name: dg.MetadataValue.int(count) for name, count in report.counts.items()}
    found |= {name: dg.MetadataValue.float(number) for name, number in report.numbers.items()}
    return found | {name: picture(name, png) for name, png in _pictures(store, report.video_id, report.stage).items()}


def picture(name: str, png: bytes) -> dg.MetadataValue:
    """A PNG inside the event itself, as Markdown; a sentence in its place when it is too large."""
    if len(png) > MAX_PICTURE_BYTES:
        return dg.MetadataValue.text(f"{len(png)} bytes are too many for an event")
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _pictures(store: VideoStore, video_id: str, stage: str) -> Mapping[str, bytes]:
    return {}
