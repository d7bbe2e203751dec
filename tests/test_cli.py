"""The command line as a user and as a program meet it: forms, exit codes, what is printed where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import quick_stages
from clips import write_clip
from vipe_dag import cli, demo
from vipe_dag.errors import EstimationError
from vipe_dag.graph import STAGES
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE, ROOT_VARIABLE
from vipe_dag.store import VideoStore

ALL = [stage.name for stage in STAGES]
CHANGED_BA = ["--set", "ba_poses.grid_columns=20"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ROOT_VARIABLE, CONFIG_VARIABLE, HOME_VARIABLE, cli.DEBUG_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "store")


class Terminal:
    """Runs commands in this process; keeps the exit code and what the last one printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        code = cli.main([str(argument) for argument in arguments])
        self.out, self.err = self._capfd.readouterr()
        return code

    @property
    def json(self) -> Any:
        """The last line printed on standard output."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line on standard error that says what went wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capfd)


def test_run_makes_every_asset(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    assert terminal("run", clip, "--store", root, "--json") == 0
    (video,) = terminal.json["videos"]
    assert video["status"] == "computed"
    assert video["video_id"].startswith("slide-")
    assert list(video["seconds"]) == ALL
    assert {check["name"] for check in video["checks"]} > {"timestamps_monotonic", "residual", "focal_observable"}
    assert calls == dict.fromkeys(ALL, 1)


def test_without_json_standard_output_says_what_was_done(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    assert terminal("run", clip, "--store", root, "--until", "frames") == 0
    assert str(clip) in terminal.out
    assert "frames" in terminal.out
    assert "computed" in terminal.out
    assert terminal.err == ""


def test_the_log_of_dagster_stays_off_the_screen(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root, "--until", "frames")
    assert "STEP_START" not in terminal.out + terminal.err


def test_debug_shows_the_log_of_dagster(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root, "--until", "frames", "--debug")
    assert "STEP_START" in terminal.out + terminal.err


def test_what_libraries_print_stays_off_the_screen(
    terminal: Terminal, clip: Path, root: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talks(*arguments: Any, **named: Any) -> Any:
        os.write(1, b"a word from a library")
        return quick_stages.select(*arguments, **named)

    quick_stages.replace(monkeypatch, "keyframes", "select", talks, calls)
    terminal("run", clip, "--store", root, "--until", "keyframes")
    assert "a word" not in terminal.out + terminal.err


def test_a_rerun_does_nothing(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root)
    calls.clear()
    assert terminal("run", clip, "--store", root, "--json") == 0
    assert terminal.json["videos"][0]["status"] == "current"
    assert {stage["status"] for stage in terminal.json["videos"][0]["stages"].values()} == {"current"}
    assert not calls


def test_one_changed_value_recomputes_three_and_going_back_none(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root)
    calls.clear()
    terminal("run", clip, "--store", root, *CHANGED_BA, "--json")
    assert set(calls) == {"ba_poses", "dense_depth", "aligned_depth"}
    calls.clear()
    assert terminal("run", clip, "--store", root, "--json") == 0
    statuses = [stage["status"] for stage in terminal.json["videos"][0]["stages"].values()]
    assert statuses == ["current"] * 3 + ["flipped"] * 3
    assert not calls


def test_a_bad_video_does_not_stop_the_others(terminal: Terminal, clip: Path, root: str, calls: Counter[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    assert terminal("run", bad, clip, "--store", root, "--until", "frames", "--json") == 1
    assert [video["status"] for video in terminal.json["videos"]] == ["failed", "computed"]
    assert "bad.mp4" in terminal.json["videos"][0]["error"]
    assert "bad.mp4" in terminal.error
    assert len(VideoStore(root).videos()) == 1


def test_a_missing_source_fails_in_one_line(terminal: Terminal, root: str) -> None:
    assert terminal("run", "nowhere.mp4", "--store", root) == 1
    assert "nowhere.mp4: no such file" in terminal.error
    assert not Path(root).exists()


@pytest.mark.parametrize(("frames", "options"), [(1, []), (12, ["--start", "0.95"])])
def test_less_than_two_frames_fail_before_anything_is_stored(
    terminal: Terminal, root: str, tmp_path: Path, frames: int, options: list[str]
) -> None:
    clip = write_clip(tmp_path / "short.mp4", frames)
    assert terminal("run", clip, "--store", root, *options) == 1
    assert "at least 2 frames" in terminal.error
    assert not Path(root).exists()


def test_a_stage_that_fails_is_named_with_its_video(
    terminal: Terminal, clip: Path, root: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise EstimationError("no agreement; try --preset quality")

    quick_stages.replace(monkeypatch, "ba_poses", "solve", fails, calls)
    assert terminal("run", clip, "--store", root, "--video-id", "mine", "--json") == 1
    assert terminal.error == "error: mine: ba_poses: no agreement; try --preset quality"
    (video,) = terminal.json["videos"]
    assert list(video["stages"]) == ["frames", "keyframes", "intrinsics"]
    assert "Traceback" not in terminal.out + terminal.err


def test_a_defect_is_called_one(terminal: Terminal, clip: Path, root: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    quick_stages.replace(monkeypatch, "keyframes", "select", breaks, calls)
    assert terminal("run", clip, "--store", root, "--video-id", "mine") == 1
    assert terminal.error == "error: mine: keyframes: ZeroDivisionError: division by zero; this is a defect of vipe-dag"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_in_one_line_and_keeps_what_is_complete(
    number: signal.Signals, terminal: Terminal, clip: Path, root: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        signal.raise_signal(number)
        time.sleep(5)
        raise AssertionError("the signal did not arrive")

    quick_stages.replace(monkeypatch, "ba_poses", "solve", interrupted, calls)
    assert terminal("run", clip, "--store", root, "--video-id", "mine") == 130
    assert terminal.error == "error: interrupted; what is in the store stays as it was"
    assert VideoStore(root).current("mine", "intrinsics") is not None
    assert VideoStore(root).current("mine", "ba_poses") is None


def test_a_directory_of_videos_is_many_videos(terminal: Terminal, root: str, calls: Counter[str], tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        write_clip(folder / f"clip{number}.mp4", 4, seed=number)
    assert terminal("run", folder, "--store", root, "--until", "frames", "--json") == 0
    assert [video["video_id"][:5] for video in terminal.json["videos"]] == ["clip0", "clip1"]


def test_one_video_id_for_two_videos_is_wrong_usage(terminal: Terminal, clip: Path, root: str) -> None:
    assert terminal("run", clip, clip.parent / "other.mp4", "--store", root, "--video-id", "mine") == 2
    assert "--video-id mine" in terminal.error


def test_a_clip_is_part_of_the_video(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    options = ["--start", "0.25", "--end", "0.75", "--stride", "2", "--video-id", "part", "--until", "frames"]
    assert terminal("run", clip, "--store", root, *options) == 0
    assert VideoStore(root).open("part", "frames")["frame"].values.tolist() == [3, 5, 7]


def test_a_given_calibration_is_used(terminal: Terminal, clip: Path, root: str, calls: Counter[str], tmp_path: Path) -> None:
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"fx": 300.0, "fy": 300.0, "cx": 79.5, "cy": 59.5}))
    options = ["--intrinsics", str(camera), "--video-id", "given", "--until", "intrinsics"]
    assert terminal("run", clip, "--store", root, *options) == 0
    assert VideoStore(root).open("given", "intrinsics").attrs["source"] == "given"


def test_a_broken_calibration_fails_before_anything_is_stored(terminal: Terminal, clip: Path, root: str, tmp_path: Path) -> None:
    camera = tmp_path / "camera.json"
    camera.write_text('{"fx": NaN, "fy": 300.0, "cx": 79.5, "cy": 59.5}')
    assert terminal("run", clip, "--store", root, "--intrinsics", camera) == 1
    assert "fx" in terminal.error
    assert not Path(root).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "ba_poses.grid_column=24"], "did you mean ba_poses.grid_columns"),
        (["--set", "frames.long_side=1"], "frames.long_side"),
        (["--preset", "fats"], "did you mean fast"),
        (["--start", "5", "--end", "2"], "the clip is empty"),
        (["--stride", "0"], "--stride 0"),
    ],
)
def test_a_wrong_value_is_wrong_usage_in_one_line(terminal: Terminal, clip: Path, root: str, options: list[str], message: str) -> None:
    assert terminal("run", clip, "--store", root, *options) == 2
    assert message in terminal.error
    assert not Path(root).exists()


@pytest.mark.parametrize("arguments", [["run"], ["run", "a.mp4"], ["nonsense"], ["run", "a.mp4", "--store", "x", "--until", "frame"]])
def test_wrong_usage_exits_with_2(terminal: Terminal, arguments: list[str]) -> None:
    assert terminal(*arguments) == 2
    assert terminal.err


def test_status_lists_what_each_video_has(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root, "--until", "keyframes", "--video-id", "mine")
    assert terminal("status", "--store", root, "--json") == 0
    (video,) = terminal.json["videos"]
    assert video == {"video_id": "mine", "assets": {**dict.fromkeys(ALL, "missing"), "frames": "current", "keyframes": "current"}}
    terminal("status", "--store", root)
    assert "mine" in terminal.out


def test_status_of_an_empty_store_says_how_to_start(terminal: Terminal, root: str) -> None:
    assert terminal("status", "--store", root) == 0
    assert "no videos yet" in terminal.out


def test_path_prints_where_an_asset_is(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root, "--until", "frames", "--video-id", "mine")
    assert terminal("path", "mine", "frames", "--store", root) == 0
    assert (Path(terminal.out.strip()) / "zarr.json").is_file()


def test_path_of_an_asset_that_is_not_there_says_what_is(terminal: Terminal, clip: Path, root: str, calls: Counter[str]) -> None:
    terminal("run", clip, "--store", root, "--until", "frames", "--video-id", "mine")
    assert terminal("path", "mine", "ba_poses", "--store", root) == 1
    assert "mine has no ba_poses" in terminal.error


def test_export_and_evaluate_agree(terminal: Terminal, clip: Path, root: str, calls: Counter[str], tmp_path: Path) -> None:
    terminal("run", clip, "--store", root, "--until", "ba_poses", "--video-id", "mine")
    out = tmp_path / "poses.txt"
    assert terminal("export", "tum", "mine", out, "--store", root) == 0
    assert len([line for line in out.read_text().splitlines() if not line.startswith("#")]) == 12
    assert terminal("evaluate", "mine", "--reference", out, "--store", root, "--alignment", "se3", "--json") == 0
    assert terminal.json["trajectory"]["alignment"] == "se3"
    assert terminal.json["trajectory"]["ate_rmse"] < 1e-6


def test_export_keeps_an_existing_file(terminal: Terminal, clip: Path, root: str, calls: Counter[str], tmp_path: Path) -> None:
    terminal("run", clip, "--store", root, "--until", "ba_poses", "--video-id", "mine")
    out = tmp_path / "poses.txt"
    out.write_text("mine")
    assert terminal("export", "tum", "mine", out, "--store", root) == 1
    assert out.read_text() == "mine"
    assert terminal("export", "tum", "mine", out, "--store", root, "--overwrite") == 0


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = demo.prepare
    small = {"n_frames": 8, "width": 64, "height": 36, "supersample": 1}
    monkeypatch.setattr(demo, "prepare", lambda *arguments: prepare(*arguments, **small))


@pytest.mark.usefixtures("small_demo")
def test_the_demo_names_each_error_with_its_limit_and_prints_the_page_last(terminal: Terminal, tmp_path: Path, calls: Counter[str]) -> None:
    assert terminal("demo", "--out", tmp_path) == 1  # quick stages estimate nothing
    *lines, page = terminal.out.splitlines()
    assert calls == dict.fromkeys(ALL, 1)
    assert Path(page) == tmp_path / "room.html"
    assert "must be below 0.06" in Path(page).read_text()
    for name, limit in (("ATE", "< 1 % of the path"), ("focal length", "< 2 %"), ("AbsRel", "< 0.06")):
        assert any(line.strip().startswith(name) and limit in line for line in lines)
    assert any("fail" in line for line in lines)


@pytest.mark.usefixtures("small_demo")
def test_a_demo_that_is_there_is_not_computed_again(terminal: Terminal, tmp_path: Path, calls: Counter[str]) -> None:
    terminal("demo", "--out", tmp_path)
    calls.clear()
    terminal("demo", "--out", tmp_path)
    assert not calls


@pytest.mark.usefixtures("small_demo")
def test_the_demo_with_a_moving_figure_judges_the_trajectory(terminal: Terminal, tmp_path: Path, calls: Counter[str]) -> None:
    terminal("demo", "--out", tmp_path, "--scene", "room_moving")
    assert [line.split()[0] for line in terminal.out.splitlines() if " < " in line] == ["ATE"]


def test_doctor_finds_this_installation_sound(terminal: Terminal, root: str) -> None:
    assert terminal("doctor", "--store", root, "--json") == 0
    findings = {finding["subject"]: finding["level"] for finding in terminal.json["findings"]}
    assert findings["names"] == "ok"
    assert findings["writing"] == "ok"
    assert "broken" not in findings.values()


def test_doctor_exits_with_1_when_something_is_broken(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("frames:\n  long_sid: 3\n")
    assert terminal("doctor", "--store", tmp_path, "--json") == 1
    assert {finding["subject"] for finding in terminal.json["findings"] if finding["level"] == "broken"} == {"store"}


def test_the_stores_configuration_is_the_base(terminal: Terminal, clip: Path, tmp_path: Path, calls: Counter[str]) -> None:
    (tmp_path / "config.yaml").write_text("frames:\n  long_side: 80\n")
    assert terminal("run", clip, "--store", tmp_path, "--until", "frames", "--video-id", "small") == 0
    assert VideoStore(tmp_path).open("small", "frames").sizes["x"] == 80


def test_no_colours_in_a_pipe(clip: Path, root: str) -> None:
    command = [sys.executable, "-m", "vipe_dag", "run", str(clip), "--store", root, "--until", "frames"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in result.stdout + result.stderr


def test_help_of_every_command(terminal: Terminal) -> None:
    for command in ([], ["run"], ["status"], ["path"], ["doctor"], ["ui"], ["view"], ["report"], ["export", "tum"], ["evaluate"], ["demo"]):
        assert terminal(*command, "--help") == 0
        assert "Usage" in terminal.out
