"""A store of videos: every read resolves a pointer once, every write becomes visible by flipping one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vipe_dag.errors import StoreError, VipeDagError
from vipe_dag.schema import ASSETS, CONVENTIONS, SHARD_FRAMES, asset_schema, nearest
from vipe_dag.sequence import DepthSequence, FrameSequence
from vipe_dag.store.backend import Backend, LocalBackend, open_backend, storage_errors
from vipe_dag.store.pointer import (
    COMMIT,
    POINTER,
    ROOT,
    SOURCE,
    Pointer,
    asset_key,
    generation_fingerprint,
    new_generation,
    parse_pointer,
    valid_fingerprint,
    valid_video_id,
)
from vipe_dag.video.records import SourceRecord

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from vipe_dag.store.rows import OpenedGeneration, RowReader
    from vipe_dag.store.writer import Generation

REFERENCES = "_references"
"""Folder of the reference trajectories of a store, one VIDEO_ID.txt each."""
_REFERENCE = ".txt"
_MAX_REASON = 400
"""Characters of a reason that may repeat what somebody wrote."""
SHARD_CHUNKS: Mapping[str, int] = {"frame": SHARD_FRAMES}


@dataclass(frozen=True)
class Swept:
    """What `VideoStore.sweep` or `collect` removed: its key below the root, and bytes."""

    key: str
    bytes: int


class VideoStore:
    """Videos, their sources and their assets below one root: a local path, memory://NAME, or any URL of fsspec (s3://BUCKET/PREFIX).

    Methods that take `fingerprint` read the newest complete generation of that fingerprint, current or not; without it, the current one.
    They raise StoreError when there is none. Opened data never changes: a later commit writes elsewhere.
    """

    def __init__(self, root: str | Path, storage_options: Mapping[str, Any] | None = None) -> None:
        self._backend: Backend = open_backend(root, dict(storage_options or {}))

    @property
    def root(self) -> str:
        """The absolute path or the URL of the store."""
        return self._backend.root

    @property
    def backend(self) -> Backend:
        """Where it lives, for what is kept beside the videos."""
        return self._backend

    def __repr__(self) -> str:
        return f"VideoStore({self.root!r})"

    # Videos and their sources

    def videos(self) -> list[str]:
        """Sorted ids of the videos that are registered or have an asset."""
        names = self.names()
        with storage_errors(self.root):
            return [name for name in names if {SOURCE, *ASSETS}.intersection(self._backend.children(name))]

    def names(self) -> list[str]:
        """Sorted names below the root that are ids of videos, from one listing: nothing is looked into, so a folder may be empty."""
        with storage_errors(self.root):
            return [name for name in self._backend.children("") if _is_video_id(name)]

    def register(self, source: SourceRecord) -> None:
        """Remembers where a video comes from; replaces an earlier record of that id."""
        content = (source.model_dump_json(indent=2) + "\n").encode()
        with storage_errors(source.video_id):
            self._backend.update(f"{valid_video_id(source.video_id)}/{SOURCE}", lambda _: content)

    def source(self, video_id: str) -> SourceRecord:
        """The registered source. Raises StoreError for a video that is not registered."""
        key = f"{valid_video_id(video_id)}/{SOURCE}"
        content = self._read(key)
        if content is None:
            raise self._no_such_video(video_id)
        return self._parsed_source(key, content)

    def sources(self, video_ids: Sequence[str]) -> dict[str, SourceRecord]:
        """The registered sources of those videos that have one, read at once. Raises StoreError for a record that is not readable."""
        keys = {f"{valid_video_id(video_id)}/{SOURCE}": video_id for video_id in video_ids}
        with storage_errors(self.root):
            found = self._backend.read_many(list(keys))
        return {keys[key]: self._parsed_source(key, content) for key, content in found.items()}

    def _parsed_source(self, key: str, content: bytes) -> SourceRecord:
        try:
            return SourceRecord.model_validate_json(content)
        except (ValidationError, VipeDagError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise StoreError(
                f"{self._backend.url(key)}: not a readable source record ({str(reason)[:_MAX_REASON]}); run the video again"
            ) from error

    # Reference trajectories, which people bring

    def register_reference(self, video_id: str, content: bytes) -> None:
        """Keeps a trajectory file as what this video is judged by; replaces an earlier one. See vipe_dag.evaluate.register_reference."""
        with storage_errors(video_id):
            self._backend.update(_reference_key(video_id), lambda _: content)

    def reference(self, video_id: str) -> bytes | None:
        """The content of the registered reference; None when there is none."""
        return self._read(_reference_key(video_id))

    def reference_place(self, video_id: str) -> str:
        """Where the registered reference is, for people."""
        return self._backend.url(_reference_key(video_id))

    def referenced(self) -> dict[str, str]:
        """Ids of the videos that have a reference, sorted, each with a word that changes when the reference is replaced."""
        with storage_errors(self.root):
            found = self._backend.objects(REFERENCES) if self._backend.children(REFERENCES) else {}
        names = {key.removeprefix(f"{REFERENCES}/"): facts for key, facts in found.items()}
        words = {name.removesuffix(_REFERENCE): f"{size} {written}" for name, (size, written) in names.items() if name.endswith(_REFERENCE)}
        return {video_id: words[video_id] for video_id in sorted(words) if _is_video_id(video_id)}

    # Notes beside the videos

    def note(self, name: str) -> bytes | None:
        """The content of `<root>/_NAME`, a small document about the whole store; None when there is none."""
        return self._read(f"_{name}")

    def write_note(self, name: str, content: bytes) -> None:
        """Replaces `<root>/_NAME` in one step."""
        with storage_errors(self.root):
            self._backend.update(f"_{name}", lambda _: content)

    # Generations and pointers

    def current(self, video_id: str, asset: str) -> Pointer | None:
        """The current generation, or None. Raises StoreError when the pointer is unreadable."""
        key = asset_key(video_id, asset)
        content = self._read(f"{key}/{POINTER}")
        return None if content is None else parse_pointer(content, self._backend.url(f"{key}/{POINTER}"), key)

    def generations(self, video_id: str, asset: str) -> list[Pointer]:
        """Every complete generation, oldest first. Half-written ones are left out."""
        complete = (self._complete(video_id, asset, name) for name in self._generation_names(video_id, asset))
        return sorted((pointer for pointer in complete if pointer), key=lambda pointer: (pointer.written_at, pointer.generation))

    def find(self, video_id: str, asset: str, fingerprint: str) -> Pointer | None:
        """The newest complete generation of a fingerprint, or None; the current one if it has that fingerprint."""
        valid_fingerprint(fingerprint)
        with suppress(StoreError):
            current = self.current(video_id, asset)
            if current is not None and current.fingerprint == fingerprint and self._complete(video_id, asset, current.generation):
                return current
        names = [n for n in self._generation_names(video_id, asset) if generation_fingerprint(n) == fingerprint]
        found = [pointer for name in names if (pointer := self._complete(video_id, asset, name))]
        return max(found, key=lambda pointer: (pointer.written_at, pointer.generation), default=None)

    def point(self, video_id: str, asset: str, fingerprint: str) -> Pointer | None:
        """Makes a complete generation of that fingerprint current and returns its pointer; None, and no change, when there is none."""
        pointer = self.find(video_id, asset, fingerprint)
        if pointer is not None:
            self._flip(pointer, lambda content: content != _pointer_bytes(pointer))
        return pointer

    def path(self, video_id: str, asset: str, fingerprint: str | None = None) -> str:
        """The path or URL of a generation, for anything that reads Zarr."""
        return self._backend.url(self._generation_key(self._resolve(video_id, asset, fingerprint)))

    # Writing

    @contextmanager
    def begin(
        self, video_id: str, asset: str, fingerprint: str, *, run_id: str | None = None, sizes: Mapping[str, int | None] | None = None
    ) -> Iterator[Generation]:
        """A new generation that nobody sees until the block is left; then it is validated, made durable and becomes current.

        sizes: lengths of dimensions known beforehand (None or absent: unknown); they are asserted at commit. An exception leaves nothing
        behind and the earlier generation current. Two writers of one fingerprint both succeed. Raises StoreError when the data breaks the
        schema, or when another run made a different fingerprint current in the meantime: the result is then kept, complete, for `point`.
        """
        from vipe_dag.store.writer import Generation

        key, name = asset_key(video_id, asset), new_generation(fingerprint)
        where = f"{video_id}, {asset}"
        seen = self._read(f"{key}/{POINTER}")
        try:
            writer = Generation(self._backend, f"{key}/{name}", where, asset_schema(asset), sizes or {})
            yield writer
            stored, checks = writer.finish()
            pointer = Pointer(
                video_id=video_id,
                asset=asset,
                generation=name,
                fingerprint=fingerprint,
                run_id=run_id,
                checks=checks,
                bytes=stored,
                written_at=datetime.now(UTC),
            )
            writer.mark_complete(pointer)
        except BaseException:
            with suppress(Exception):
                self._backend.remove(f"{key}/{name}")
            raise

        def not_overtaken(content: bytes | None) -> bool:
            if content != seen and content is not None and _fingerprint_of(content) not in (None, fingerprint):
                raise StoreError(
                    f"{where}: another run made {_fingerprint_of(content)} current while {fingerprint} was computed. "
                    f"The result is kept; run again to make it current"
                )
            return True

        self._flip(pointer, not_overtaken)

    def _flip(self, pointer: Pointer, allowed: Callable[[bytes | None], bool]) -> None:
        content = _pointer_bytes(pointer)
        key = f"{asset_key(pointer.video_id, pointer.asset)}/{POINTER}"
        with storage_errors(f"{pointer.video_id}, {pointer.asset}"):
            self._backend.update(key, lambda current: content if allowed(current) else None)

    # Reading

    def group(self, video_id: str, asset: str, fingerprint: str | None = None) -> zarr.Group:
        """The Zarr group of a generation, read-only."""
        return self._group(self._resolve(video_id, asset, fingerprint))

    def open(
        self, video_id: str, asset: str, fingerprint: str | None = None, chunks: Mapping[str, int] | None = SHARD_CHUNKS
    ) -> xr.Dataset:
        """A generation as lazy xarray. Per-frame images are dask arrays, by default one chunk per shard; chunks=None uses no dask.

        Attributes are those of the asset. Arrays have their stored dtype: nothing is masked, scaled or decoded.
        """
        from vipe_dag.store.reader import open_dataset

        pointer = self._resolve(video_id, asset, fingerprint)
        if self._complete(video_id, asset, pointer.generation) is None:
            raise self._lost(pointer)
        with storage_errors(self._backend.url(self._generation_key(pointer))), _known_codecs(pointer):
            return open_dataset(self._zarr(pointer), asset, chunks)

    def frames(self, video_id: str, fingerprint: str | None = None) -> FrameSequence:
        """The frames of a video, row by row, with a bounded cache of decoded rows.

        Of the profile `reference` the source is decoded on demand. Raises SourceError when it is gone or changed.
        """
        from vipe_dag.store.reader import StoredFrames, decoded_frames

        opened = self.opened(video_id, "frames", fingerprint)
        return StoredFrames(opened) if "rgb" in opened.group else decoded_frames(opened.group)

    def depth(self, video_id: str, asset: str = "dense_depth", fingerprint: str | None = None) -> DepthSequence:
        """The depth of `dense_depth` or `aligned_depth`, row by row, with a bounded cache of decoded rows."""
        from vipe_dag.store.reader import StoredDepth

        return StoredDepth(self.group(video_id, asset, fingerprint))

    def rows(self, video_id: str, asset: str, variable: str, fingerprint: str | None = None) -> RowReader:
        """Single rows of a per-frame image; none is kept decoded. Raises StoreError when there is no such variable."""
        return self.opened(video_id, asset, fingerprint).rows(variable)

    def opened(self, video_id: str, asset: str, fingerprint: str | None = None) -> OpenedGeneration:
        """A generation whose arrays and rows are read one by one, all of them of the pointer that is resolved here."""
        from vipe_dag.store.rows import OpenedGeneration

        pointer = self._resolve(video_id, asset, fingerprint)
        key, where = self._generation_key(pointer), f"{video_id}, {asset}"

        def read_part(name: str, start: int, end: int | None) -> bytes | None:
            with storage_errors(where):
                return self._backend.read_part(f"{key}/{name}", start, end)

        return OpenedGeneration(self._group(pointer), read_part, where)

    # Upkeep

    def sweep(self, older_than: timedelta, *, now: datetime | None = None) -> list[Swept]:
        """Removes what crashed writers left: generations without a commit and temporary files, when their newest object is older than that.

        Never a complete generation, nor one that a pointer names. A writer that is still writing renews its age with every object.
        """
        limit = ((now or datetime.now(UTC)) - older_than).timestamp()
        removed: list[Swept] = []
        for video_id in self._backend.children(""):
            if not _is_video_id(video_id):
                continue
            for asset in ASSETS:
                removed += self._sweep_asset(video_id, asset, limit)
        return removed

    def collect(self, older_than: timedelta, keep: int = 2, *, now: datetime | None = None, dry_run: bool = False) -> list[Swept]:
        """Removes complete generations that are not current, but for the `keep` newest of each asset; dry_run only says which.

        What goes is older than that, and so is the last move of its pointer: a result stays that long after another one replaced it.
        """
        from vipe_dag.store.garbage import collect

        return collect(self, self._backend, (now or datetime.now(UTC)) - older_than, keep, dry_run)

    def _sweep_asset(self, video_id: str, asset: str, limit: float) -> list[Swept]:
        key, named = asset_key(video_id, asset), None
        with suppress(StoreError):
            named = self.current(video_id, asset)
        spared = named.generation if named else ""
        names = [name for name in self._generation_names(video_id, asset) if name != spared]
        litter = [f"{key}/{name}" for name in names if not self._complete(video_id, asset, name)]
        objects = self._backend.objects(key) if self._backend.children(key) else {}
        litter += [name for name in objects if name.startswith(f"{key}/{POINTER}.") and name.endswith(LocalBackend.TEMPORARY)]
        removed = []
        for name in litter:
            inside = [facts for other, facts in objects.items() if other == name or other.startswith(f"{name}/")]
            if all(written < limit for _, written in inside):
                self._backend.remove(name)
                removed.append(Swept(name, sum(size for size, _ in inside)))
        return removed

    # Inside

    def _read(self, key: str) -> bytes | None:
        with storage_errors(self._backend.url(key)):
            return self._backend.read(key)

    def _generation_names(self, video_id: str, asset: str) -> list[str]:
        return [name for name in self._backend.children(asset_key(video_id, asset)) if generation_fingerprint(name)]

    def _generation_key(self, pointer: Pointer) -> str:
        return f"{asset_key(pointer.video_id, pointer.asset)}/{pointer.generation}"

    def _complete(self, video_id: str, asset: str, generation: str) -> Pointer | None:
        """A generation's own commit record; None unless it was written to its end."""
        content = self._read(f"{asset_key(video_id, asset)}/{generation}/{ROOT}")
        if content is None:
            return None
        try:
            root = json.loads(content)
            if not root.get("consolidated_metadata"):
                return None
            pointer = Pointer.model_validate(root["attributes"][COMMIT])
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return None
        return pointer if (pointer.video_id, pointer.asset, pointer.generation) == (video_id, asset, generation) else None

    def _resolve(self, video_id: str, asset: str, fingerprint: str | None) -> Pointer:
        pointer = self.current(video_id, asset) if fingerprint is None else self.find(video_id, asset, fingerprint)
        if pointer is not None:
            return pointer
        if not self._backend.children(valid_video_id(video_id)):
            raise self._no_such_video(video_id)
        wanted = asset if fingerprint is None else f"{asset} of fingerprint {fingerprint}"
        kept = [p.fingerprint for p in self.generations(video_id, asset)]
        present = f"complete generations: {', '.join(kept)}" if kept else f"it has: {', '.join(self._assets(video_id)) or 'nothing yet'}"
        raise StoreError(f"{video_id} has no {wanted} in {self.root}; {present}; run the video until {asset}")

    def _assets(self, video_id: str) -> list[str]:
        return [asset for asset in ASSETS if self._backend.read(f"{video_id}/{asset}/{POINTER}") is not None]

    def _group(self, pointer: Pointer) -> zarr.Group:
        import zarr

        import vipe_dag.codecs  # noqa: F401  registers the image codec, also where the package runs without being installed

        with storage_errors(self._backend.url(self._generation_key(pointer))):
            try:
                with _known_codecs(pointer):
                    return zarr.open_group(self._zarr(pointer), mode="r", zarr_format=3, use_consolidated=True)
            except (ValueError, FileNotFoundError) as error:
                raise self._lost(pointer) from error

    def _zarr(self, pointer: Pointer) -> Any:
        return self._backend.zarr(self._generation_key(pointer), read_only=True)

    def _lost(self, pointer: Pointer) -> StoreError:
        return StoreError(
            f"{pointer.video_id}, {pointer.asset}: the pointer names {pointer.generation}, which is missing or incomplete in {self.root}; "
            "materialize the asset again"
        )

    def _no_such_video(self, video_id: str) -> StoreError:
        return StoreError(f"no video {video_id!r} in {self.root}{nearest(video_id, self.videos()) or '; the store is empty'}")


@contextmanager
def _known_codecs(pointer: Pointer) -> Iterator[None]:
    """StoreError for a generation in an encoding that this version does not read."""
    from zarr.errors import UnknownCodecError

    try:
        yield
    except UnknownCodecError as error:
        raise StoreError(
            f"{pointer.video_id}, {pointer.asset}: written by another version of vipe-dag ({error}); materialize the asset again"
        ) from error


def open_video(root: str | Path | VideoStore, video_id: str) -> xr.DataTree:
    """All assets of a video as one lazy tree: `tree["dense_depth/z_depth"]`, `tree["ba_poses"].attrs`.

    Pointers are resolved once: the tree is a snapshot, and `tree.attrs["generations"]` records it. Raises StoreError for an unknown video.
    """
    import xarray as xr

    store = root if isinstance(root, VideoStore) else VideoStore(root)
    pointers = {asset: pointer for asset in ASSETS if (pointer := store.current(video_id, asset))}
    if not pointers:
        store.source(video_id)
    generations = {asset: pointer.model_dump(mode="json") for asset, pointer in pointers.items()}
    root_set = xr.Dataset(attrs={"Conventions": CONVENTIONS, "video_id": video_id, "store": store.root, "generations": generations})
    return xr.DataTree.from_dict(
        {"/": root_set, **{asset: store.open(video_id, asset, pointer.fingerprint) for asset, pointer in pointers.items()}}
    )


def _reference_key(video_id: str) -> str:
    return f"{REFERENCES}/{valid_video_id(video_id)}{_REFERENCE}"


def _is_video_id(name: str) -> bool:
    try:
        return bool(valid_video_id(name))
    except StoreError:
        return False


def _pointer_bytes(pointer: Pointer) -> bytes:
    return (pointer.model_dump_json(indent=2) + "\n").encode()


def _fingerprint_of(content: bytes) -> str | None:
    try:
        return parse_pointer(content, "").fingerprint
    except StoreError:
        return None
