"""From a file that somebody has to a source that the store remembers: headers, calibration beside it, content digest, frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from vipe_dag.errors import StoreError, VipeDagError

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore
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


def register_source(
    store: VideoStore, uri: str, clip: Clip | None = None, intrinsics: str | None = None, video_id: str | None = None
) -> SourceRecord:
    """Makes a source a video of the store, once it was seen to have frames. See `read_source`. Raises VipeDagError."""
    record = read_source(uri, clip, intrinsics, video_id)
    if not _is_registered(store, record):
        require_frames(record)
        store.register(record)
    return record


def register_sources(store: VideoStore, sources: Sequence[str]) -> Iterator[str | VipeDagError]:
    """Registers each video of `sources` (files, folders, URLs): its id, or why it cannot be one; the others are not stopped."""
    from vipe_dag.video import expand_sources

    for text in sources:
        try:
            uris = expand_sources([text])
        except VipeDagError as error:
            yield error
            continue
        for uri in uris:
            try:
                yield register_source(store, uri).video_id
            except VipeDagError as error:
                yield error


def _is_registered(store: VideoStore, record: SourceRecord) -> bool:
    """A record that cannot be read counts as none: registering replaces it."""
    try:
        return store.sources([record.video_id]).get(record.video_id) == record
    except StoreError:
        return False
