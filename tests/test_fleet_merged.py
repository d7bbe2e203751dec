"""Merged files of the catalogue: questions open few files, and hear what the shards' own files say, whatever became of the merged ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fleet_worlds import register
from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.fleet import merged
from vipe_dag.fleet.catalogue import file_key, table_of, write_file
from vipe_dag.fleet.merged import MERGED, merge
from vipe_dag.fleet.reading import Fleet
from vipe_dag.fleet.run import run_shard
from vipe_dag.fleet.shards import Shard, all_shards, videos_of
from vipe_dag.store import VideoStore

COUNT = 6
SHARDS = all_shards(COUNT)
CONFIG = load_config()
pytestmark = pytest.mark.filterwarnings("ignore:.*the catalogue lacks")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shards in a merged file, which is written anew for two of them."""
    monkeypatch.setattr(merged, "SHARDS", 4)
    monkeypatch.setattr(merged, "LOOSE", 2)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VideoStore:
    """Six shards of two videos each, merged."""
    store = VideoStore(tmp_path if request.param == "disk" else f"memory://{tmp_path.name}")
    for shard in SHARDS:
        write(store, shard, 0)
    merge(store, SHARDS)
    return store


def write(store: VideoStore, shard: Shard, frames: int) -> None:
    rows: list[dict[str, Any]] = [{"video_id": f"{shard.number}{name}", "shard": shard.number, "frames": frames} for name in "ab"]
    write_file(store, shard, table_of(rows), CONFIG)


def frames(store: VideoStore) -> dict[str, int]:
    """What a question hears of every video; fails when it hears of one twice."""
    found = Fleet(store, COUNT).select(["video_id", "frames"])
    assert found["video_id"].is_unique
    return dict(zip(found["video_id"], found["frames"], strict=True))


def said(**of_shard: int) -> dict[str, int]:
    return {f"{number}{name}": of_shard.get(f"s{number}", 0) for number in range(COUNT) for name in "ab"}


def opened(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards whose own files a question opens."""
    found: list[int] = []
    plain = merged._own_rows
    with monkeypatch.context() as patched:
        patched.setattr(
            merged, "_own_rows", lambda store, shards, *rest: found.extend(s.number for s in shards) or plain(store, shards, *rest)
        )
        frames(store)
    return found


def test_merged_shards_are_not_opened(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.backend.children(MERGED) == ["0-3-of-6.parquet", "4-5-of-6.parquet"]
    assert opened(store, monkeypatch) == []
    assert frames(store) == said()


def test_a_shard_that_was_written_since_is_heard_itself(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, SHARDS[1], 7)
    assert frames(store) == said(s1=7)
    assert opened(store, monkeypatch) == [1]


def test_conditions_and_columns_hold_for_merged_rows_and_others(store: VideoStore) -> None:
    write(store, SHARDS[1], 7)
    write(store, SHARDS[4], 9)
    found = Fleet(store, COUNT).select(["video_id"], [("frames", ">", 0), ("video_id", "in", ["0a", "1a", "4b"])])
    assert list(found.columns) == ["video_id"]
    assert sorted(found["video_id"]) == ["1a", "4b"]


def test_a_shard_whose_file_is_gone_is_not_heard(store: VideoStore) -> None:
    store.backend.remove(file_key(SHARDS[2]))
    with pytest.warns(UserWarning, match="lacks 1 of 6 shards"):
        found = frames(store)
    assert found == {video: count for video, count in said().items() if not video.startswith("2")}


@pytest.mark.parametrize("damage", [b"", b"PAR1 and then nothing"])
def test_a_damaged_merged_file_costs_time_only(store: VideoStore, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    store.backend.update(f"{MERGED}/0-3-of-6.parquet", lambda _: damage)
    assert frames(store) == said()
    assert opened(store, monkeypatch) == [0, 1, 2, 3]
    merge(store, SHARDS)
    assert opened(store, monkeypatch) == []


def test_it_is_written_anew_when_so_many_shards_are_not_in_it(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, SHARDS[0], 1)
    merge(store, [SHARDS[0]])
    assert opened(store, monkeypatch) == [0]
    write(store, SHARDS[3], 2)
    merge(store, [SHARDS[3]])
    assert opened(store, monkeypatch) == []
    assert frames(store) == said(s0=1, s3=2)


def test_a_file_that_is_replaced_while_it_is_merged_is_heard_itself(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = merged._own_rows

    def overtaken(store: VideoStore, shards: list[Shard], *rest: Any) -> Any:
        write(store, SHARDS[0], 5)
        found = plain(store, shards, *rest)
        write(store, SHARDS[1], 6)
        return found

    for shard in SHARDS[:2]:
        write(store, shard, 1)
    with monkeypatch.context() as patched:
        patched.setattr(merged, "_own_rows", overtaken)
        merge(store, [SHARDS[0]])
    assert frames(store) == said(s0=5, s1=6)


def test_a_damaged_file_of_a_shard_is_left_out_of_the_merged_one(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in SHARDS[:3]:
        write(store, shard, 1)
    store.backend.update(file_key(SHARDS[0]), lambda _: b"no table")
    merge(store, SHARDS)
    write(store, SHARDS[0], 3)
    assert opened(store, monkeypatch) == [0]
    assert frames(store) == said(s0=3, s1=1, s2=1)


def test_another_number_of_shards_has_merged_files_of_its_own(store: VideoStore) -> None:
    for shard in all_shards(2):
        write(store, shard, 8)
    merge(store, all_shards(2))
    assert len(Fleet(store, 2).catalogue) == 4
    assert frames(store) == said()


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_written_removed_and_merged_questions_hear_the_shards_own_files(store: VideoStore, seed: int) -> None:
    choose, truth = random.Random(seed), dict.fromkeys(range(COUNT), 0)
    for step in range(1, 20):
        shard = choose.choice(SHARDS)
        match choose.choice(["write", "write", "merge", "remove", "lose"]):
            case "write":
                write(store, shard, step)
                truth[shard.number] = step
            case "merge":
                merge(store, [shard])
            case "remove" if len(truth) > 1:
                store.backend.remove(file_key(shard))
                truth.pop(shard.number, None)
            case "lose":
                store.backend.remove(f"{MERGED}/0-3-of-6.parquet")
        assert frames(store) == {f"{number}{name}": count for number, count in truth.items() for name in "ab"}


@pytest.mark.usefixtures("hurried")
class TestCommands:
    def test_runs_of_shards_merge(self, tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        store = VideoStore(tmp_path / "store")
        register(store, tmp_path, *"abcdefgh")
        for shard, video_ids in videos_of(store, COUNT).items():
            run_shard(store, shard, video_ids, CONFIG, until="frames")
        assert opened(store, monkeypatch) == []
        assert frames(store) == dict.fromkeys("abcdefgh", 8)

    def test_writing_the_catalogues_anew_merges(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = VideoStore(tmp_path / "store")
        register(store, tmp_path, *"abcd")
        (tmp_path / "store" / "operations.yaml").write_text(f"fleet: {{shards: {COUNT}}}\n")
        assert cli.main(["fleet", "catalogue", "--store", store.root]) == 0
        assert opened(store, monkeypatch) == []
