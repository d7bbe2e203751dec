"""A run of a shard: every video is brought up to date, what is done is skipped, and one that fails stops no other."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import platform_worlds
import quick_stages
from clips import write_clip
from fleet_worlds import ONE, register, register_corrupt, run
from platform_worlds import ALL, clip_in
from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.errors import ConfigError
from vipe_dag.fleet.journal import DIED, read_journal
from vipe_dag.fleet.run import run_shard
from vipe_dag.fleet.shards import all_shards, members, parse_shard, shard_number
from vipe_dag.pipeline import run_video, states
from vipe_dag.store import VideoStore

pytestmark = pytest.mark.usefixtures("hurried")

VIDEOS = [f"v{number:02d}" for number in range(12)]
PATIENCE_SECONDS = 120.0


@pytest.fixture
def store(tmp_path: Path, calls: Counter[str]) -> VideoStore:
    """Three videos, nothing computed."""
    return filled(tmp_path, "a", "b", "c")


def filled(folder: Path, *video_ids: str) -> VideoStore:
    store = VideoStore(folder / "store")
    register(store, folder, *video_ids)
    return store


class TestShards:
    def test_an_id_alone_decides(self) -> None:
        assert [shard_number("clip-1a2b3c4d", count) for count in (1, 64, 4096)] == [0, 30, 3998]

    def test_every_video_is_in_one_shard_and_shards_are_about_equal(self) -> None:
        videos = [f"video-{number:06d}" for number in range(10_000)]
        found = members(videos, 64)
        assert sorted(video for shard in found.values() for video in shard) == videos
        assert all(100 < len(shard) < 220 for shard in found.values())

    def test_names_sort_as_numbers(self) -> None:
        names = [shard.name for shard in all_shards(11)]
        assert names == sorted(names)
        assert names[-1] == "10-of-11"

    @pytest.mark.parametrize(
        ("word", "remedy"), [("3", "expected K/N"), ("3/16", "shards: 16"), ("64/64", "numbered 0 to 63"), ("-1/64", "expected K/N")]
    )
    def test_a_shard_that_is_none_is_refused_with_the_remedy(self, word: str, remedy: str) -> None:
        with pytest.raises(ConfigError, match=remedy):
            parse_shard(word, 64)


def test_all_videos_of_a_shard_are_computed_and_the_next_run_skips_them(store: VideoStore, calls: Counter[str]) -> None:
    assert run(store, ALL[-1]).counts() == {"videos": 3, "computed": 3, "current": 0, "failed": 0, "given_up": 0}
    assert calls == dict.fromkeys(ALL, 3)
    calls.clear()
    assert run(store, ALL[-1]).counts() == {"videos": 3, "computed": 0, "current": 3, "failed": 0, "given_up": 0}
    assert not calls


def test_a_changed_setting_computes_the_stages_below_it_and_going_back_nothing(store: VideoStore, calls: Counter[str]) -> None:
    run(store)
    calls.clear()
    changed = load_config(overrides=["keyframes.side=256"])
    run_shard(store, ONE, store.names(), changed, until="keyframes")
    assert calls == {"keyframes": 3}
    calls.clear()
    assert run(store).counts()["computed"] == 3
    assert not calls


def test_a_corrupt_video_is_reported_with_the_reason_and_the_others_land(store: VideoStore, tmp_path: Path) -> None:
    register_corrupt(store, tmp_path, "broken")
    report = run(store)
    assert report.counts() == {"videos": 4, "computed": 3, "current": 0, "failed": 1, "given_up": 0}
    (failure,) = report.failed
    assert (failure.video_id, failure.stage) == ("broken", "frames")
    assert "broken.mp4" in (failure.reason or "")
    assert states(store, "broken", load_config()) == dict.fromkeys(ALL, "missing")


def test_stages_below_a_failed_check_are_not_run(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vipe_dag.verdicts.MAX_RESIDUAL_PX", 0.1)
    (failure, *_) = run(store, ALL[-1]).failed
    assert failure.stage == "ba_poses"
    assert "check residual failed" in (failure.reason or "")
    assert states(store, failure.video_id, load_config())["dense_depth"] == "missing"


def test_an_error_that_nobody_foresaw_stops_one_video_and_is_called_a_defect(
    store: VideoStore, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        if calls["keyframes"] == 2:
            raise ZeroDivisionError("a corner of the solver")

    quick_stages.replace(monkeypatch, "keyframes", "select", lambda *a, **k: explode() or quick_stages.select(*a, **k), calls)
    report = run(store)
    assert report.counts()["computed"] == 2
    assert report.failed[0].reason == "ZeroDivisionError: a corner of the solver; this is a defect of vipe-dag"


def test_a_record_that_cannot_be_read_fails_its_video_alone(store: VideoStore) -> None:
    (Path(store.root) / "b" / "_source.json").write_text("{")
    report = run(store)
    assert report.counts() == {"videos": 3, "computed": 2, "current": 0, "failed": 1, "given_up": 0}
    assert "not a readable source record" in (report.failed[0].reason or "")
    assert run(store, attempts=1).counts()["given_up"] == 1


def test_a_folder_that_is_no_video_is_passed_over(store: VideoStore) -> None:
    (Path(store.root) / "notes").mkdir()
    assert run(store).counts()["videos"] == 3


class TestFailures:
    def test_a_video_is_left_alone_after_so_many_failures(self, store: VideoStore, tmp_path: Path) -> None:
        register_corrupt(store, tmp_path, "broken")
        assert [run(store, attempts=2).failed[0].status for _ in range(3)] == ["failed", "failed", "given_up"]
        assert "broken.mp4" in (run(store, attempts=2).failed[0].reason or "")

    def test_and_is_tried_again_on_demand_or_when_something_else_is_wanted(self, store: VideoStore, tmp_path: Path) -> None:
        register_corrupt(store, tmp_path, "broken")
        run(store, attempts=1)
        assert run(store, attempts=1, retry=True).failed[0].status == "failed"
        changed = load_config(overrides=["frames.long_side=320"])
        assert run_shard(store, ONE, ["broken"], changed, attempts=1).failed[0].status == "failed"

    def test_what_failed_before_comes_last_and_leaves_the_journal_when_it_is_mended(self, store: VideoStore, tmp_path: Path) -> None:
        register_corrupt(store, tmp_path, "a")
        run(store)
        write_clip(tmp_path / "a.mp4", 8, 64, 48, seed=1)
        report = run(store)
        assert [outcome.video_id for outcome in report.outcomes] == ["b", "c", "a"]
        assert report.counts()["computed"] == 1
        assert read_journal(store, ONE).failures == {}

    def test_a_run_that_is_interrupted_blames_nobody(self, store: VideoStore, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        quick_stages.replace(monkeypatch, "keyframes", "select", interrupted, calls)
        with pytest.raises(KeyboardInterrupt):
            run(store)
        assert read_journal(store, ONE).failures == {}


def run_until_killed(root: Path, victim: str) -> None:
    """In a process of its own: a run of the shard that ends by SIGKILL in the middle of one video."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        platform_worlds.hurry(monkeypatch)
        quick_stages.install(monkeypatch)

        def run_or_die(store: VideoStore, video_id: str, *arguments: Any, **named: Any) -> Any:
            until = "keyframes" if video_id == victim else arguments[-1]
            run_video(store, video_id, *arguments[:-1], until, **named)
            if video_id == victim:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr("vipe_dag.fleet.run.run_video", run_or_die)
        run(VideoStore(root), "intrinsics")


def killed(root: Path, victim: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(root, victim))
    process.start()
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == -signal.SIGKILL


def test_a_shard_killed_half_way_goes_on_where_it_was(tmp_path: Path, calls: Counter[str]) -> None:
    store = filled(tmp_path, *VIDEOS)
    register_corrupt(store, tmp_path, VIDEOS[2])
    killed(tmp_path / "store", VIDEOS[6])
    assert read_journal(store, ONE).failures[VIDEOS[6]].reason == DIED

    report = run(store, "intrinsics")
    assert report.counts() == {"videos": 12, "computed": 6, "current": 5, "failed": 1, "given_up": 0}
    assert [outcome.video_id for outcome in report.outcomes if outcome.status == "current"] == [VIDEOS[i] for i in (0, 1, 3, 4, 5)]
    assert calls == {"frames": 5, "keyframes": 5, "intrinsics": 6}, "of the video that was hit, what was missing"
    assert [outcome.video_id for outcome in report.failed] == [VIDEOS[2]]
    assert all(states(store, video, load_config())["intrinsics"] == "current" for video in VIDEOS if video != VIDEOS[2])
    assert states(store, VIDEOS[2], load_config()) == dict.fromkeys(ALL, "missing")


def test_a_video_that_ends_the_process_holds_up_the_others_once(tmp_path: Path, calls: Counter[str]) -> None:
    store = filled(tmp_path, "a", "b", "c")
    for _ in range(2):
        killed(tmp_path / "store", "a")
    report = run(store, "intrinsics", attempts=2)
    assert report.counts() == {"videos": 3, "computed": 0, "current": 2, "failed": 0, "given_up": 1}
    assert report.failed[0].reason == DIED


def test_the_command_line_adds_and_runs_and_says_what_became_of_it(
    tmp_path: Path, calls: Counter[str], capfd: pytest.CaptureFixture[str]
) -> None:
    clips, root = tmp_path / "clips", str(tmp_path / "store")
    clips.mkdir()
    for number in range(3):
        clip_in(clips, f"{number}.mp4", seed=number)
    (clips / "broken.mp4").write_bytes(b"no video")
    assert cli.main(["fleet", "add", str(clips), "--store", root]) == 1
    out, err = capfd.readouterr()
    assert len(out.split()) == 3
    assert "broken.mp4" in err
    assert cli.main(["fleet", "run", "--store", root, "--until", "frames", "--json"]) == 0
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(said["shards"]) == 64
    assert sum(shard["computed"] for shard in said["shards"]) == 3
    assert cli.main(["fleet", "run", "--store", root, "--shard", "0/7"]) == 2
    assert "fleet: {shards: 7}" in capfd.readouterr().err
