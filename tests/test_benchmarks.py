"""The benchmark's own logic: what counts as right, as worse and as owned up to; its table; one tiny sequence from pixels to figures."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from benchmarks import engines, kernels, metrics, operations, poses, processes, scores, sequences, tables
from benchmarks.estimates import Estimate
from benchmarks.metrics import BY_NAME, regressions
from benchmarks.scores import Outcome
from benchmarks.sequences import Sequence, Target, Truth
from vipe_dag import synthetic
from vipe_dag.calibration import Calibration

GOOD = {"posed": 1.0, "ate": 0.01, "ate_percent": 0.2, "rotation": 0.1, "focal": 0.5}
SHARP = Target(ate_percent=0.3, focal=1.0)


def camera(focal: float = 300.0, k1: float = 0.0) -> Calibration:
    params = np.array([focal, focal, 159.5, 119.5, k1, 0, 0, 0, 0])
    return Calibration("brown", params, 320, 240)


def walk(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    clip = synthetic.scene("room", n_frames=count, width=64, height=36, fps=5.0)
    return clip.time, clip.cam2world


def estimate(poses_of: np.ndarray, time: np.ndarray, frames: int, lens: Calibration | None = None) -> Estimate:
    return Estimate(frames, time, poses_of, np.zeros(len(time), np.int32), np.full(len(time), np.nan), lens, (), 2.0)


# -- the verdict ---------------------------------------------------------------------------------------------------------------------------


def test_an_answer_that_meets_its_target_is_right() -> None:
    assert scores.judge(GOOD, (), SHARP) == ("right", ())


def test_a_miss_that_no_flag_announces_is_wrong() -> None:
    verdict, missed = scores.judge({**GOOD, "ate_percent": 2.0}, ("segments",), SHARP)
    assert verdict == "wrong"
    assert missed == ("ATE 2 % of path (asked 0.3)",)


@pytest.mark.parametrize("flag", ["lost_frames", "inconsistent", "low_texture", "no_parallax"])
def test_a_miss_of_the_trajectory_is_excused_by_a_flag_that_owns_up_to_it(flag: str) -> None:
    assert scores.judge({**GOOD, "ate_percent": 2.0}, (flag,), SHARP)[0] == "flagged"


def test_a_wrong_focal_length_is_excused_only_by_its_own_flag() -> None:
    off = {**GOOD, "focal": 20.0}
    assert scores.judge(off, ("lost_frames",), SHARP)[0] == "wrong"
    assert scores.judge(off, ("focal_unobservable",), SHARP)[0] == "flagged"
    assert scores.judge(off, ("focal_uncertain",), SHARP)[0] == "flagged"


def test_a_still_camera_must_be_flagged_as_such() -> None:
    assert scores.judge(GOOD, (), Target(still=True)) == ("wrong", ("not flagged as without parallax",))
    assert scores.judge(GOOD, ("no_parallax",), Target(still=True))[0] == "right"


def test_frames_without_a_pose_are_a_miss() -> None:
    assert scores.judge({**GOOD, "posed": 0.9}, (), SHARP)[0] == "wrong"
    assert scores.judge({**GOOD, "posed": 0.9}, ("lost_frames",), SHARP)[0] == "flagged"


def test_a_figure_that_is_asked_for_and_could_not_be_measured_is_a_miss() -> None:
    assert scores.judge({"posed": 1.0, "focal": 0.0}, (), SHARP)[0] == "wrong"


def test_nothing_is_judged_where_nothing_is_asked() -> None:
    assert scores.judge({}, (), None) == ("", ())


# -- the figures ---------------------------------------------------------------------------------------------------------------------------


def test_the_truth_in_another_frame_and_scale_has_no_error() -> None:
    time, cam2world = walk()
    moved = cam2world.copy()
    turn = np.linalg.inv(cam2world[3])
    moved = turn @ moved
    moved[:, :3, 3] *= 0.2
    found = scores.score(estimate(moved, time, 12, camera()), Truth(time, cam2world, camera()), 100.0)
    assert found["ate"] == pytest.approx(0, abs=1e-9)
    assert found["rotation"] == pytest.approx(0, abs=1e-5)
    assert (found["posed"], found["focal"], found["distortion"]) == (1.0, 0.0, pytest.approx(0, abs=1e-9))
    assert (found["fps"], found["peak_mb"]) == (6.0, 100.0)


def test_only_rotations_are_scored_where_the_camera_stands_still() -> None:
    time, cam2world = walk()
    found = scores.score(estimate(cam2world, time, 12), Truth(time, cam2world, None), 1.0, still=True)
    assert "rotation" in found
    assert not {"ate", "ate_percent", "rpe"} & set(found)


def test_the_rotation_error_ignores_the_roll_that_a_straight_path_leaves_open() -> None:
    clip = synthetic.scene("straight", n_frames=12, width=64, height=36)
    rng = np.random.default_rng(0)
    noisy = clip.cam2world.copy()
    noisy[:, :3, 3] += 1e-3 * rng.standard_normal((12, 3))
    found = scores.score(estimate(noisy, clip.time, 12), Truth(clip.time, clip.cam2world, None), 1.0)
    assert found["rotation"] == pytest.approx(0, abs=1e-5)


def test_an_estimate_without_poses_has_a_share_of_zero_and_no_error() -> None:
    time, cam2world = walk()
    found = scores.score(estimate(np.zeros((0, 4, 4)), np.zeros(0), 12), Truth(time, cam2world, camera()), 1.0)
    assert found["posed"] == 0.0
    assert "ate" not in found


def test_the_distortion_error_is_the_shift_of_pixels_that_the_coefficients_cause() -> None:
    assert scores.distortion_error(camera(k1=-0.1), camera(k1=-0.1)) == pytest.approx(0, abs=1e-9)
    corner = 200.0  # pixels from the middle, at a radius of 2/3 focal lengths: the shift there is 0.1 * (2/3)^2 * 200 = 8.9
    assert 1.0 < scores.distortion_error(camera(k1=-0.1), camera()) < 0.1 * (corner / 300) ** 2 * corner
    assert scores.distortion_error(camera(focal=330.0), camera()) == pytest.approx(0, abs=1e-9)


def test_what_is_told_of_positions_is_compared_with_their_errors_in_the_unit_of_the_reference() -> None:
    time, cam2world = walk(40)
    std = np.geomspace(1e-4, 1e-2, 40)
    moved = cam2world.copy()
    moved[:, :3, 3] = 0.5 * (cam2world[:, :3, 3] + std[:, None] * np.random.default_rng(0).standard_normal((40, 3)))
    told = replace(estimate(moved, time, 40), position_std=0.5 * std)
    found, error = scores.uncertainty(told, Truth(time, cam2world, None))
    np.testing.assert_allclose(found, std, rtol=0.05)
    assert scores.rank_correlation(found, error) > 0.8
    assert np.median(error / found) == pytest.approx(1.5, abs=0.5)


def test_an_engine_that_tells_no_uncertainty_has_none_compared() -> None:
    time, cam2world = walk()
    assert [len(part) for part in scores.uncertainty(estimate(cam2world, time, 12), Truth(time, cam2world, None))] == [0, 0]


def test_an_estimate_survives_its_file(tmp_path: Path) -> None:
    time, cam2world = walk()
    saved = Estimate(20, time, cam2world, np.arange(12, dtype=np.int32), np.linspace(0, 1, 12), camera(k1=0.1), ("static",), 3.5)
    saved.save(tmp_path / "e.npz")
    found = Estimate.load(tmp_path / "e.npz")
    np.testing.assert_array_equal(found.cam2world, cam2world)
    np.testing.assert_array_equal(found.segment, saved.segment)
    np.testing.assert_array_equal(found.position_std, saved.position_std)
    assert found.camera is not None
    np.testing.assert_array_equal(found.camera.params, camera(k1=0.1).params)
    assert (found.frames, found.flags, found.seconds) == (20, ("static",), 3.5)


# -- ratios and the gate -------------------------------------------------------------------------------------------------------------------


def test_ratios_are_ours_over_the_peers() -> None:
    found = metrics.ratios({**GOOD, "fps": 30.0, "peak_mb": 500.0}, {**GOOD, "ate": 0.02, "fps": 3.0, "peak_mb": 1000.0})
    assert found == {"ate_ratio": 0.5, "speed_ratio": 10.0, "memory_ratio": 0.5}


def test_a_peer_that_posed_few_frames_gives_no_ratio_of_accuracy() -> None:
    assert "ate_ratio" not in metrics.ratios(GOOD, {**GOOD, "posed": 0.1})


def test_the_gate_lets_a_figure_get_worse_by_its_tolerance_and_no_more() -> None:
    ate = BY_NAME["ate_percent"]
    limit = ate.limit(1.0)
    assert not regressions({"a": {"ate_percent": limit}}, {"a": {"ate_percent": 1.0}})
    (found,) = regressions({"a": {"ate_percent": limit + 0.01}}, {"a": {"ate_percent": 1.0}})
    assert str(found) == "a: ATE (ate_percent) 1.16 % of path; baseline 1, limit 1.15"


def test_a_tiny_baseline_does_not_make_the_gate_tight_beyond_noise() -> None:
    assert not regressions({"a": {"focal": 0.15}}, {"a": {"focal": 0.001}})


def test_for_a_share_lower_is_worse() -> None:
    assert regressions({"a": {"posed": 0.9}}, {"a": {"posed": 1.0}})
    assert not regressions({"a": {"posed": 1.0}}, {"a": {"posed": 0.9}})


def test_a_figure_that_disappeared_or_is_not_a_number_is_a_regression() -> None:
    (gone,) = regressions({"a": {}}, {"a": {"ate_percent": 1.0}})
    assert "no longer there" in str(gone)
    assert regressions({"a": {"ate_percent": math.nan}}, {"a": {"ate_percent": 1.0}})


def test_wall_time_and_memory_never_fail_the_gate() -> None:
    assert not regressions({"a": {"fps": 0.1, "peak_mb": 1e6}}, {"a": {"fps": 30.0, "peak_mb": 1.0}})


def test_ratios_are_not_missed_in_a_run_without_the_peer() -> None:
    assert regressions({"a": {}}, {"a": {"ate_ratio": 1.0}})
    assert not regressions({"a": {}}, {"a": {"ate_ratio": 1.0}}, with_peer=False)


def test_sequences_that_only_one_side_knows_pass() -> None:
    assert not regressions({"new": {"ate_percent": 99.0}}, {"old": {"ate_percent": 1.0}})


def test_the_gate_names_what_failed_to_run_and_ignores_the_peer(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    outcomes = [
        Outcome("a", engines.OURS, {}, problem="ValueError: no"),
        Outcome("a", engines.INCREMENTAL, {}, problem="crashed"),
    ]
    assert poses.gate(outcomes, True, tmp_path / "b.json") == ["a: ValueError: no"]


def test_the_gate_asks_that_uncertainty_tells_errors_apart_over_the_whole_rendered_set(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    std = tuple(np.linspace(1.0, 2.0, 10).tolist())
    good, bad = (
        [Outcome(sequence.name, engines.OURS, {}, std=std, error=error) for sequence in sequences.SYNTHETIC] for error in (std, std[::-1])
    )
    assert poses.gate(good, False, tmp_path / "b.json") == []
    assert poses.gate(bad[1:], False, tmp_path / "b.json") == []
    (line,) = poses.gate(bad, False, tmp_path / "b.json")
    assert "rank correlation -1.00" in line


def test_updating_the_baseline_keeps_what_was_not_measured(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"a": {"ate_percent": 9.0, "ate_ratio": 2.0}, "z": {"posed": 1.0}}))
    poses.update_baseline([Outcome("a", engines.OURS, {**GOOD, "fps": 9.0})], file)
    found = json.loads(file.read_text())
    assert found["a"] == {**GOOD, "ate_ratio": 2.0}
    assert found["z"] == {"posed": 1.0}


def test_the_committed_baseline_names_known_sequences_and_gated_metrics() -> None:
    baseline = json.loads(poses.BASELINE.read_text())
    assert set(baseline) <= {sequence.name for sequence in (*sequences.SYNTHETIC, sequences.LONG)} | set(sequences.TARGETS)
    assert all(BY_NAME[name].gated for figures in baseline.values() for name in figures)


# -- the table -----------------------------------------------------------------------------------------------------------------------------


def test_the_table_shows_figures_verdict_and_reasons() -> None:
    outcome = Outcome("a", engines.OURS, {"ate_percent": 2.0}, ("segments",), "wrong", ("ATE 2 % of path (asked 0.3)",))
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.show([outcome], console)
    text = console.export_text()
    assert all(word in text for word in ("vipe-dag", "wrong", "segments", "asked 0.3"))


def test_the_markdown_table_has_one_row_per_outcome_and_equal_columns() -> None:
    lines = tables.markdown([Outcome("a", "x", GOOD), Outcome("b", "x", {}, problem="a | b")]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_json_holds_the_figures_by_name() -> None:
    (found,) = json.loads(tables.to_json([Outcome("a", "x", GOOD)]))
    assert found["figures"]["ate_percent"] == 0.2


# -- choosing sequences --------------------------------------------------------------------------------------------------------------------


def test_folders_of_pictures_and_videos_are_found(tmp_path: Path) -> None:
    (tmp_path / "kitti_seq2" / "rgb").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "dog.mp4").touch()
    (tmp_path / "README.md").touch()
    found = sequences.discover(tmp_path)
    assert [one.name for one in found] == ["dog", "kitti_seq2"]
    assert found[1].target == sequences.TARGETS["kitti_seq2"]


def test_an_unknown_name_is_refused_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert poses.main(["--only", "syn_drvie"]) == 2
    assert "no sequence syn_drvie" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert poses.main(["--data", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_the_long_clip_runs_only_when_asked_for() -> None:
    words = ["--no-synthetic", "--long", "--only", "syn_long"]
    assert [one.name for one in poses.select(poses.parser().parse_args(words))] == ["syn_long"]
    assert "syn_long" not in {one.name for one in poses.select(poses.parser().parse_args([]))}


# -- processes -----------------------------------------------------------------------------------------------------------------------------


def test_a_process_reports_its_own_peak_memory_and_last_complaint() -> None:
    small = processes.run([sys.executable, "-c", "print('hello')"])
    large = processes.run([sys.executable, "-c", "x = bytearray(200_000_000); raise SystemExit('too much')"])
    assert (small.output.strip(), small.problem) == ("hello", "")
    assert large.peak_mb > small.peak_mb + 150
    assert large.problem == "too much"


# -- the whole way -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sequence, Path]:
    options = {"n_frames": 6, "width": 192, "height": 144, "fps": 10.0, "supersample": 1}
    clip = Sequence("tiny", scene="rotation", options=options, target=Target(rotation=1.0, still=True))
    return clip, sequences.prepare(clip, tmp_path_factory.mktemp("cache"))


def test_a_prepared_sequence_is_kept_while_its_recipe_is_the_same(tiny: tuple[Sequence, Path]) -> None:
    clip, folder = tiny
    before = (folder / "rgb" / "000000.png").stat().st_mtime_ns
    assert sequences.prepare(clip, folder.parent) == folder
    assert (folder / "rgb" / "000000.png").stat().st_mtime_ns == before
    truth = sequences.read_truth(folder)
    assert truth.cam2world is not None
    assert truth.camera is not None
    assert (len(truth.cam2world), truth.camera.width) == (6, 192)


def test_decoded_sources_bring_their_reference_along(tiny: tuple[Sequence, Path], tmp_path: Path) -> None:
    _, folder = tiny
    again = sequences.prepare(Sequence("copy", folder), tmp_path)
    copy, original = (cv2.imread(str(place / "rgb" / "000004.png")) for place in (again, folder))
    np.testing.assert_array_equal(copy, original)
    truth, copied = sequences.read_truth(folder), sequences.read_truth(again)
    assert truth.camera is not None
    assert copied.camera is not None
    np.testing.assert_allclose(copied.camera.params, truth.camera.params)


def test_our_engine_answers_a_tiny_sequence_in_a_process_of_its_own(tiny: tuple[Sequence, Path], tmp_path: Path) -> None:
    clip, folder = tiny
    (found,) = poses.measure(clip, folder, tmp_path, with_peer=False, given=False)
    assert found.problem == ""
    assert found.figures["posed"] == 1.0
    assert found.figures["rotation"] < 1.0
    assert found.figures["peak_mb"] > 100
    assert found.verdict == "right"


needs_peer = pytest.mark.skipif(find_spec("pycolmap") is None, reason="the peer is not installed: pip install -e '.[bench]'")


@needs_peer
def test_the_peer_answers_in_our_conventions(tmp_path: Path) -> None:
    options = {"n_frames": 6, "width": 320, "height": 240, "fps": 4.0}
    clip = Sequence("peer", scene="room", options=options)
    folder = sequences.prepare(clip, tmp_path)
    features = tmp_path / "features.npz"
    assert poses.run_engine(engines.FEATURES, folder, features).problem == ""
    finished = poses.run_engine(engines.INCREMENTAL, folder, tmp_path / "out.npz", features)
    assert finished.problem == ""
    found = scores.score(Estimate.load(tmp_path / "out.npz"), sequences.read_truth(folder), 1.0)
    assert found["posed"] == 1.0
    assert found["rotation"] < 2.0


# -- kernels -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> kernels.World:
    return kernels.world(keyframes=5, points=40, radius=2)


def test_the_kernel_problem_starts_away_from_its_solution_and_ours_solves_it(made: kernels.World) -> None:
    found = kernels.run_ours(made, 8)
    truth = kernels.rms(made.problem, made.truth)
    assert kernels.rms(made.problem, made.start) > 5 * truth
    assert found.rms < truth
    assert found.milliseconds > 0


@needs_peer
def test_ceres_starts_from_and_ends_at_the_same_problem(made: kernels.World) -> None:
    model, ids = kernels._reconstruction(made)
    assert kernels._rms_of(model, ids, made) == pytest.approx(kernels.rms(made.problem, made.start), rel=1e-6)
    found = kernels.run_ceres(made, 12, threads=1)
    assert found.rms < kernels.rms(made.problem, made.truth)


def test_every_operation_has_a_floor_and_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "seconds", lambda run, device: (run(), 0.001)[1])
    monkeypatch.setattr(operations, "measured", lambda device: operations.Device("this", 1e9, 1e9))
    machine, rows = operations.run("cpu", operations.Size(40, 30, 2, 4, 10, 2))
    assert {row.name for row in rows} == {
        "flow (medium)", "consistency", "projection (brown)", "triangulation", "linearisation and elimination",
    }  # fmt: skip
    assert all(row.floor > 0 for row in rows)
    assert operations.table(machine, rows).count("\n") == 3 + len(rows)
