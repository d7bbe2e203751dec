"""Ingestion from a bucket: what a folder does, by etag, and a thousand objects at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from assets_defs.ingestion import INGEST_SENSOR
from assets_defs.partitions import VIDEOS
from object_store import ObjectStore
from platform_worlds import World, clip_in, world
from vipe_dag.ingest import LEDGER, read_ledger
from vipe_dag.video import SourceRecord


@pytest.fixture
def inbox(s3: ObjectStore) -> str:
    return f"{s3.bucket()}/inbox"


@pytest.fixture
def place(tmp_path: Path, inbox: str) -> Iterator[World]:
    with world(tmp_path / "store") as place:
        place.operate(ingest={"location": f"s3://{inbox}", "files_per_tick": 400})
        yield place


def look(place: World, times: int = 2) -> list[str]:
    for _ in range(times):
        place.look(INGEST_SENSOR)
    return list(place.instance.get_dynamic_partitions(VIDEOS))


def test_objects_become_videos_a_new_etag_supersedes_and_a_deletion_is_noticed(
    place: World, s3: ObjectStore, inbox: str, tmp_path: Path
) -> None:
    first, second, third = (clip_in(tmp_path, f"clip{seed}.mp4", seed, 4).read_bytes() for seed in range(3))
    bucket = s3.client
    bucket.pipe({f"{inbox}/clip 1#ü.mp4": first, f"{inbox}/clip 1#é.mp4": second, f"{inbox}/notes.txt": b"x"})
    both = look(place)
    assert {place.store.source(video).uri for video in both} == {f"s3://{inbox}/clip 1#ü.mp4", f"s3://{inbox}/clip 1#é.mp4"}
    assert {request.partition_key for request in place.look()} == set(both)

    gone, old = sorted(both, key=lambda video: "ü" in place.store.source(video).uri)
    bucket.pipe_file(f"{inbox}/clip 1#ü.mp4", third)
    bucket.rm_file(f"{inbox}/clip 1#é.mp4")
    look(place, 1)
    assert "1 deleted at the source, results kept" in place.said
    (new,) = set(look(place, 1)) - set(both)
    ledger = read_ledger(place.store)
    assert (ledger.superseded, ledger.gone) == ({old}, {gone})
    assert [request.partition_key for request in place.look()] == [new]

    place.store._backend.remove(f"_{LEDGER}")
    assert look(place) == [*both, new], "what was seen is lost: objects are opened once more, and are the videos that they were"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes objects of one byte videos that are named like the objects; says which were opened."""
    found: list[str] = []

    def read(uri: str, *_: Any) -> SourceRecord:
        found.append(Path(uri).stem)
        return SourceRecord(video_id=found[-1], uri=uri, digest=f"{int(found[-1][1:]):016x}")

    monkeypatch.setattr("vipe_dag.registration.read_source", read)
    monkeypatch.setattr("vipe_dag.registration.require_frames", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    return found


def test_a_thousand_objects_at_once_are_each_taken_in_once_in_order_and_not_again_after_a_restart(
    place: World, s3: ObjectStore, inbox: str, opened: list[str]
) -> None:
    names = [f"v{number}" for number in range(1000)]
    s3.client.pipe({f"{inbox}/{name}.mp4": b"x" for name in names} | {f"{inbox}/{number}.txt": b"x" for number in range(50)})
    counts = [len(look(place, 1))]
    while counts[-1] < len(names) and len(counts) < 50:  # a slow machine opens fewer in the seconds of a tick
        counts.append(len(look(place, 1)))
    assert counts[0] == 0, "an object has to be seen twice"
    assert max(after - before for before, after in pairwise(counts)) <= 400
    assert look(place, 2) == opened == names, "definitions are loaded anew at each look, as after a restart"
