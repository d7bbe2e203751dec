"""Exports that are kept up to date: a folder for each video, replaced as a whole, but never one that holds anything of somebody else's.

`<folder>/<video_id>/` has a file or folder for each format, and MANIFEST, which lists them and says from which generations they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vipe_dag.errors import SourceError
from vipe_dag.export import FILE_NAMES, export_video
from vipe_dag.export.target import replaced_folder
from vipe_dag.schema import ASSETS
from vipe_dag.store import VideoStore

MANIFEST = "_exports.json"
_ALGORITHM_VERSION = 1
"""Raised when a format is written differently, so that what is kept is written again."""


@dataclass(frozen=True)
class Kept:
    """path: the folder of the video; version: 16 hex digits of formats and generations; written: False when it was all there already.

    files, bytes: of all formats; notes: by format, sentences on what it could not take.
    """

    path: Path
    version: str
    written: bool
    files: int
    bytes: int
    notes: Mapping[str, Sequence[str]]


def keep_exports(store: VideoStore, video_id: str, formats: Sequence[str], folder: str | Path) -> Kept:
    """Bring the exports of a video to its current generations; what is up to date is left alone.

    Either all formats are replaced, or what was there stays: when one fails, or the process is killed. Raises SourceError when `folder`
    does not exist or the video's folder holds what an earlier call did not write, and whatever the formats raise.
    """
    place = Path(folder) / video_id
    version, generations = _version(store, video_id, formats)
    manifest = _own(place)
    if manifest is not None and manifest["version"] == version:
        return _kept(place, manifest, written=False)
    with replaced_folder(place) as unfinished:
        notes = {name: list(export_video(store, video_id, name, unfinished / FILE_NAMES[name]).notes) for name in formats}
        manifest = {"video_id": video_id, "version": version, "generations": generations, "notes": notes, "files": _sizes(unfinished)}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return _kept(place, manifest, written=True)


def _version(store: VideoStore, video_id: str, formats: Sequence[str]) -> tuple[str, dict[str, str]]:
    found = {asset: pointer.generation for asset in ASSETS if (pointer := store.current(video_id, asset))}
    text = json.dumps([_ALGORITHM_VERSION, sorted(formats), found], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest(), found


def _own(place: Path) -> dict[str, Any] | None:
    """What the manifest says; None for a folder that is not there or empty. Raises SourceError for one that holds anything else."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((place / MANIFEST).read_text())
        listed = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{place}: exists already and is no folder of exports; move it away, or name another folder") from error
    sizes = _sizes(place)
    other = [name for name, size in sizes.items() if listed.get(name) != size]
    if other:
        raise SourceError(f"{place}: holds {other[0]}, which the exports did not write like that; move it away, or name another folder")
    return manifest if len(sizes) == len(listed) else {**manifest, "version": ""}


def _sizes(place: Path) -> dict[str, int]:
    """Bytes of all files but the manifest, by their path in the folder."""
    files = (path for path in sorted(place.rglob("*")) if not path.is_dir() and path != place / MANIFEST)
    return {path.relative_to(place).as_posix(): path.lstat().st_size for path in files}


def _kept(place: Path, manifest: Mapping[str, Any], written: bool) -> Kept:
    sizes = manifest["files"]
    return Kept(place, manifest["version"], written, len(sizes), sum(sizes.values()), manifest["notes"])
