"""From a file that somebody has to a source that the store remembers: headers, calibration beside it, content digest, frames."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipe_dag.video import Clip, SourceRecord


def read_source(uri: str, clip: Clip | None = None, intrinsics: str | None = None, video_id: str | None = None) -> SourceRecord:
    """Reads headers, sidecar and content digest of a source. intrinsics: a file, None looks beside the video. Raises VipeDagError."""
    from vipe_dag.calibration import find_sidecar, load_calibration
    from vipe_dag.video import WHOLE, SourceRecord, open_source

    source = open_source(uri)
    info = source.probe()
    sidecar = intrinsics or find_sidecar(uri)
    given = load_calibration(sidecar, info) if sidecar is not None else None
    return SourceRecord.of(source, clip or WHOLE, given, video_id)


def require_frames(record: SourceRecord) -> None:
    """Decodes the first two frames of the clip, so that a source without them leaves nothing in the store. Raises SourceError."""
    from vipe_dag.video import open_source

    for _ in islice(open_source(record.uri).iterate(record.clip, pixels=False), 2):
        pass
