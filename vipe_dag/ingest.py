"""Videos that appear somewhere become videos of the store: what is new, ready, changed, gone or broken, kept in one document.

The document, `<root>/_ingest.json`, is all that is remembered: a restart loses nothing and opens nothing twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vipe_dag.errors import SourceError, StoreError, VipeDagError
from vipe_dag.operations import IngestSettings
from vipe_dag.urls import version_of

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore
    from vipe_dag.video.location import Location

LEDGER = "ingest.json"
OPENED = "ingest_opened"
"""Note that names the file that is open, to be found by the next look if the process ends with it."""
MARKER = ".done"
MAX_VIDEOS = 10_000
"""Partitions beyond which Dagster becomes slow; nothing more is taken in then."""
SECONDS = 20.0
"""Of a tick, after which no further file is opened; the next tick goes on."""
DIED = "the process ended while this file was open"


class Entry(BaseModel):
    """One file. state: `waiting` to be ready or to be tried again, `taken`, or in `quarantine`; gone: it is no longer there.

    video_id: of its newest content that was taken in; superseded: of contents before that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    etag: str
    state: Literal["waiting", "taken", "quarantine"] = "waiting"
    video_id: str | None = None
    superseded: tuple[str, ...] = ()
    tries: int = 0
    reason: str | None = None
    gone: bool = False

    def with_(self, **changes: Any) -> Entry:
        return self.model_copy(update=changes)


class Ledger(BaseModel):
    """All files ever seen, by path or URL without credentials."""

    model_config = ConfigDict(extra="forbid")

    files: dict[str, Entry] = {}

    @property
    def superseded(self) -> frozenset[str]:
        """Videos whose file has another content now, and that no other file has."""
        present = {entry.video_id for entry in self.files.values()}
        return frozenset(old for entry in self.files.values() for old in entry.superseded if old not in present)

    @property
    def gone(self) -> frozenset[str]:
        """Videos whose every file was deleted: results stay, but frames cannot be decoded again."""
        present = {entry.video_id for entry in self.files.values() if not entry.gone}
        return frozenset(entry.video_id for entry in self.files.values() if entry.video_id and entry.video_id not in present)


@dataclass
class Look:
    """What one look at a place came to; the lists hold paths or URLs as the ledger has them, `taken` video ids in order.

    quarantined: a sentence for each such file, with its name and the reason.
    """

    taken: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    full: bool = False


@dataclass(frozen=True)
class _File:
    key: str
    uri: str
    size: int
    etag: str
    marked: bool


def read_ledger(store: VideoStore) -> Ledger:
    """What was seen so far. Raises StoreError for a document that is damaged."""
    content = store.note(LEDGER)
    if content is None:
        return Ledger()
    try:
        return Ledger.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"{store.root}/_{LEDGER}: not readable ({error.errors()[0]['msg']}); delete it, and every file is opened once more"
        ) from error


def ingest(store: VideoStore, settings: IngestSettings, add: Callable[[str], None], known: int = 0) -> Look:
    """Looks at the place once and takes in what is ready, in the natural order of paths, at most `files_per_tick` files.

    add: makes a partition of a video, called after the store has its source; known: number of partitions so far. Raises SourceError when
    the place cannot be listed: that is not taken for a deletion of everything in it.
    """
    if settings.location is None:
        return Look()
    place, files = _listing(settings.location)
    ledger, look = read_ledger(store), Look()
    before = dict(ledger.files)
    _count_death(store, ledger)
    opened, until = 0, time.monotonic() + SECONDS
    for file in files:
        entry, ready = _seen(ledger.files.get(file.key), file, settings)
        ledger.files[file.key] = entry
        if not ready:
            continue
        look.full = known + len(look.taken) >= MAX_VIDEOS
        if look.full or opened >= settings.files_per_tick or time.monotonic() > until:
            continue
        opened += 1
        store.write_note(OPENED, file.key.encode())
        ledger.files[file.key] = _taken_in(store, file, entry.with_(tries=entry.tries + 1), settings, add, look)
    _notice_deletions(ledger, str(place).rstrip("/") + "/", {file.key for file in files}, look)
    if ledger.files != before:
        _write(store, ledger)
    if opened:
        store.write_note(OPENED, b"")
    look.waiting = [key for key, entry in ledger.files.items() if entry.state == "waiting"]
    look.quarantined = [_reason(key, entry) for key, entry in ledger.files.items() if entry.state == "quarantine"]
    return look


def _reason(key: str, entry: Entry) -> str:
    """Why a file was not taken in, with its name."""
    reason = entry.reason or "no reason given"
    return reason if key in reason else f"{key}: {reason}"


def retry(store: VideoStore, pattern: str = "*") -> list[str]:
    """Releases files from quarantine whose path or URL matches, to be opened at the next look; returns them."""
    ledger = read_ledger(store)
    found = [key for key, entry in ledger.files.items() if entry.state == "quarantine" and fnmatchcase(key, pattern)]
    for key in found:
        ledger.files[key] = ledger.files[key].with_(state="waiting", tries=0, reason=None)
    if found:
        _write(store, ledger)
    return found


def _listing(location: str) -> tuple[Location, list[_File]]:
    """Video files of a folder and those below; not hidden ones, nor symbolic links: who can drop files must not name others' files."""
    from natsort import natsorted

    from vipe_dag.video.location import Location
    from vipe_dag.video.sources import is_video

    place = Location.of(location)
    place.require()
    try:
        found: dict[str, dict[str, Any]] = place.fs.find(place.path, detail=True)
    except Exception as error:  # file systems raise what their client library raises
        raise place.guard(error) from error
    if place.bare in found or (not found and not place.is_folder()):
        raise SourceError(f"{place}: is no folder that can be listed; ingest.location names a folder or a prefix of an object store")
    below = len(place.bare.rstrip("/")) + 1
    visible = [path for path in natsorted(found) if not any(part.startswith(".") for part in path[below:].split("/"))]
    if place.local:
        root = os.path.realpath(place.path)
        visible = [path for path in visible if os.path.realpath(path) == os.path.join(root, path[below:])]
    files = []
    for path in visible:
        if is_video(path):
            here, facts = place.at(path), found[path]
            files.append(_File(str(here), here.uri, int(facts["size"] or 0), version_of(facts), f"{path}{MARKER}" in found))
    return place, files


def _seen(entry: Entry | None, file: _File, settings: IngestSettings) -> tuple[Entry, bool]:
    """The entry after this look, and whether the file is to be opened."""
    if entry is None:
        fresh = Entry(size=file.size, etag=file.etag)
    elif (entry.size, entry.etag) != (file.size, file.etag):
        fresh = Entry(size=file.size, etag=file.etag, video_id=entry.video_id, superseded=entry.superseded)
    else:
        entry = entry.with_(gone=False)
        if entry.state == "waiting" and entry.tries >= settings.attempts:
            return entry.with_(state="quarantine"), False
        return entry, entry.state == "waiting" and (settings.ready == "settled" or file.marked)
    return fresh, settings.ready == "marker" and file.marked


def _count_death(store: VideoStore, ledger: Ledger) -> None:
    """Counts a try for the file that was open when an earlier process ended: a file that kills decoders ends in quarantine too."""
    key = (store.note(OPENED) or b"").decode()
    entry = ledger.files.get(key)
    if entry is not None and entry.state == "waiting":
        ledger.files[key] = entry.with_(tries=entry.tries + 1, reason=DIED)
        _write(store, ledger)
    if key:
        store.write_note(OPENED, b"")


def _taken_in(store: VideoStore, file: _File, entry: Entry, settings: IngestSettings, add: Callable[[str], None], look: Look) -> Entry:
    from vipe_dag.registration import read_source, require_frames
    from vipe_dag.video.location import Location

    try:
        record = read_source(file.uri)
        require_frames(record)
    except Exception as error:  # whatever a file makes a decoder do must not stop the files after it
        reason = str(error) if isinstance(error, VipeDagError) else str(Location.of(file.uri).guard(error))
        return entry.with_(state="quarantine" if entry.tries >= settings.attempts else "waiting", reason=reason)
    if not _elsewhere(store, record.video_id, file.uri):
        store.register(record)
    add(record.video_id)
    look.taken.append(record.video_id)
    old = {*entry.superseded, *([entry.video_id] if entry.video_id else [])} - {record.video_id}
    return entry.with_(state="taken", video_id=record.video_id, superseded=tuple(sorted(old)), tries=0, reason=None)


def _elsewhere(store: VideoStore, video_id: str, uri: str) -> bool:
    """Whether the same content is registered from another place that still has it: then that one stays the source."""
    from vipe_dag.video.location import Location

    record = store.sources([video_id]).get(video_id)
    return record is not None and record.uri != uri and Location.of(record.uri).exists()


def _notice_deletions(ledger: Ledger, prefix: str, present: Iterable[str], look: Look) -> None:
    """Files below the place that are there no more: marked, unless they were never taken in; nothing is removed from the store."""
    there = set(present)
    for key, entry in list(ledger.files.items()):
        if not key.startswith(prefix) or key in there:
            continue
        if entry.video_id is None:
            del ledger.files[key]
        elif not entry.gone:
            ledger.files[key] = entry.with_(gone=True)
            look.gone.append(key)


def _write(store: VideoStore, ledger: Ledger) -> None:
    store.write_note(LEDGER, (ledger.model_dump_json(indent=1, exclude_defaults=True) + "\n").encode())
