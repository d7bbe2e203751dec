"""A small fleet: videos that stages without numerics computed, one that is corrupt, two shards, their catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import platform_worlds
import quick_stages
from clips import write_clip
from platform_worlds import clip_in
from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.fleet.run import ShardReport, run_shard
from vipe_dag.fleet.shards import Shard
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, open_source

ONE = Shard(0, 1)
GOOD = ("a", "b", "c", "d")
CORRUPT = "broken"
FRAMES = 8


def register(store: VideoStore, folder: Path, *video_ids: str) -> None:
    """Videos of one content under several names."""
    clip = clip_in(folder, frames=FRAMES)
    for video_id in video_ids:
        store.register(SourceRecord.of(open_source(str(clip)), video_id=video_id))


def register_corrupt(store: VideoStore, folder: Path, video_id: str = CORRUPT) -> None:
    """A video whose file lost its content after it was registered."""
    clip = write_clip(folder / f"{video_id}.mp4", FRAMES, 64, 48, seed=1)
    store.register(SourceRecord.of(open_source(str(clip)), video_id=video_id))
    clip.write_bytes(clip.read_bytes()[:100])


def run(store: VideoStore, until: str = "keyframes", **options: Any) -> ShardReport:
    """All videos as one shard. Two stages say as much about what is around them as six."""
    return run_shard(store, ONE, store.names(), load_config(), until=until, **options)


def small_fleet(folder: Path) -> VideoStore:
    """The videos GOOD and CORRUPT in the store `out` of a folder, computed by the command line."""
    store = VideoStore(folder / "out")
    register(store, folder, *GOOD)
    register_corrupt(store, folder)
    (folder / "out" / "operations.yaml").write_text("fleet: {enabled: true, shards: 2}\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        platform_worlds.hurry(monkeypatch)
        quick_stages.install(monkeypatch)
        assert cli.main(["fleet", "run", "--store", store.root]) == 1
    return store
