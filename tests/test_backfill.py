"""`vipe-dag backfill`: videos that the store has are brought to a configuration, without naming their files again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from platform_worlds import clip_in
from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.pipeline import run_video, states
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, open_source

pytestmark = pytest.mark.usefixtures("hurried")

CHANGED = "ba_poses.grid_columns=20"


@pytest.fixture
def store(tmp_path: Path, calls: Counter[str]) -> VideoStore:
    """Two videos that are as the default configuration asks for; their file is there no more."""
    store, clip = VideoStore(tmp_path / "store"), clip_in(tmp_path)
    for video in "ab":
        store.register(SourceRecord.of(open_source(str(clip)), video_id=video))
        run_video(store, video, load_config())
    clip.unlink()
    calls.clear()
    return store


def backfill(capfd: pytest.CaptureFixture[str], store: VideoStore, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["backfill", "--store", store.root, "--json", *arguments])
    return code, json.loads(capfd.readouterr().out.splitlines()[-1])


def test_every_video_gets_the_stages_that_are_behind(store: VideoStore, calls: Counter[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, said = backfill(capfd, store, "--set", CHANGED)
    assert code == 0
    assert calls == {"ba_poses": 2, "dense_depth": 2, "aligned_depth": 2}
    assert [(video["video_id"], video["status"]) for video in said["videos"]] == [("a", "computed"), ("b", "computed")]


def test_only_the_videos_and_stages_that_were_named(store: VideoStore, calls: Counter[str], capfd: pytest.CaptureFixture[str]) -> None:
    backfill(capfd, store, "b", "--until", "ba_poses", "--set", CHANGED)
    assert calls == {"ba_poses": 1}
    assert states(store, "b", load_config(overrides=[CHANGED]))["ba_poses"] == "current"


def test_videos_that_are_as_wanted_cost_nothing(store: VideoStore, calls: Counter[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, said = backfill(capfd, store)
    assert (code, [video["status"] for video in said["videos"]]) == (0, ["current", "current"])
    assert not calls


def test_a_video_that_is_not_there_is_one_failure_among_the_others(store: VideoStore, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = backfill(capfd, store, "nobody", "a")
    assert code == 1
    assert [video["status"] for video in said["videos"]] == ["failed", "current"]
    assert said["videos"][0]["error"].startswith("no video 'nobody' in ")


def test_a_frame_that_has_to_be_decoded_again_needs_the_source(store: VideoStore, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = backfill(capfd, store, "a", "--set", "frames.long_side=320")
    assert code == 1
    assert "no such file or folder" in said["videos"][0]["error"]
