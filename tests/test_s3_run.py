"""The whole pipeline with its store in a bucket: run, look, go back, export, tidy up, and read it lazily."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import quick_stages
from clips import write_clip
from object_store import SECRET, ObjectStore
from platform_worlds import hurry
from vipe_dag import cli, open_video
from vipe_dag.graph import STAGES
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE, ROOT_VARIABLE, config_file
from vipe_dag.store import VideoStore

ALL = [stage.name for stage in STAGES]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    for name in (ROOT_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    hurry(monkeypatch)
    return quick_stages.install(monkeypatch)


def test_a_store_in_a_bucket_does_all_that_a_directory_does(
    s3: ObjectStore, tmp_path: Path, calls: Counter[str], capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.bucket()
    root = f"s3://{bucket}/results"
    s3.client.put_file(str(write_clip(tmp_path / "slide.mp4", 36)), f"{bucket}/clips/slide.mp4")

    printed: list[str] = []

    def command(*arguments: str, code: int = 0) -> str:
        found = cli.main([*arguments, "--store", root])
        printed.extend(capfd.readouterr())
        assert found == code, printed[-1]
        return printed[-2].strip()

    run = ("run", f"s3://{bucket}/clips/slide.mp4")
    (video,) = json.loads(command(*run, "--json", "--debug").splitlines()[-1])["videos"]
    assert (video["status"], list(video["seconds"])) == ("computed", ALL)
    assert calls == dict.fromkeys(ALL, 1)
    video_id = video["video_id"]

    tree = open_video(root, video_id)
    assert isinstance(tree["aligned_depth/z_depth"].data, da.Array)
    np.testing.assert_array_equal(tree["aligned_depth/z_depth"][35], np.full((120, 160), 2.0, np.float16))
    assert tree["frames"].attrs["source_uri"] == f"s3://{bucket}/clips/slide.mp4"

    changed = ("--set", "aligned_depth.smoothing_rows=3")
    command(*run, *changed)
    assert calls == {**dict.fromkeys(ALL, 1), "aligned_depth": 2}
    (entry,) = json.loads(command("status", "--json").splitlines()[-1])["videos"]
    assert entry["assets"] == {**dict.fromkeys(ALL, "current"), "aligned_depth": "stored"}, "going back will move a pointer"

    command("export", "tum", video_id, str(tmp_path / "poses.txt"))
    assert len((tmp_path / "poses.txt").read_text().splitlines()) == 1 + 36
    assert command("path", video_id, "frames").startswith(f"{root}/{video_id}/frames/")

    stored = s3.client.find(f"{bucket}/results")
    (removed,) = json.loads(command("gc", "--retention-days", "0", "--keep", "0", "--json").splitlines()[-1])["removed"]
    left = s3.client.find(f"{bucket}/results")
    assert set(stored) - set(left) == {path for path in stored if removed["key"] in path} != set()

    command("run", f"s3://AKIA:{SECRET}@{bucket}/clips/slide.mp4", "--json", code=1)
    command("run", f"s3://{bucket}/clips/no.mp4", code=1)
    assert "STEP_START" in "".join(printed), "the log of Dagster is among what was printed"
    kept = dict(s3.client.cat(s3.client.find(bucket)))
    kept |= {str(path): path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert any(name.endswith(".db") for name in kept)
    for name, content in {**kept, **{f"printed {n}": text.encode() for n, text in enumerate(printed)}}.items():
        assert SECRET.encode() not in content, name


def test_settings_that_appear_in_the_bucket_are_seen_by_a_process_that_looked_before(s3: ObjectStore) -> None:
    bucket = s3.bucket()
    root = f"s3://{bucket}/results"
    s3.client.pipe_file(f"{bucket}/results/readme.txt", b"x")
    assert VideoStore(root).videos() == []
    assert config_file(root) is None
    s3.client.pipe_file(f"{bucket}/results/config.yaml", b"preset: fast\n")
    assert config_file(root) == f"{root}/config.yaml"
