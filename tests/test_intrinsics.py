"""Self-calibration finds the focal length that the motion shows, and says so where it shows none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_worlds import HEIGHT, WIDTH, calibrated, clip, config, frames, known, selected
from vipe_dag import synthetic
from vipe_dag.calibration import Calibration
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages import intrinsics, keyframes
from vipe_dag.stages.intrinsics import default_params
from vipe_dag.stages.mapping import Evidence, Map
from vipe_dag.stages.measurements import Measurements
from vipe_dag.synthetic.scenes import BARREL, camera


@pytest.mark.parametrize("name", ["orbit", "room"])
def test_the_focal_length_is_found_within_three_percent(name: str) -> None:
    found, truth = calibrated(name), clip(name).camera.params
    assert found.params[0] == pytest.approx(truth[0], rel=0.03)
    assert found.params[0] == found.params[1]
    assert found.focal_observable
    assert found.flags == ()
    assert found.source == "estimated"


@pytest.mark.parametrize("name", ["orbit", "room"])
def test_the_error_is_within_what_the_standard_deviation_says(name: str) -> None:
    found, truth = calibrated(name), clip(name).camera.params
    assert abs(found.params[0] - truth[0]) < 3 * found.params_std[0] + 0.005 * truth[0]
    assert 0 < found.params_std[0] < 0.1 * truth[0]


@pytest.mark.parametrize("name", ["orbit", "room"])
def test_the_principal_point_is_assumed_in_the_middle(name: str) -> None:
    found = calibrated(name)
    assert found.params[2:].tolist() == [159.5, 119.5, 0, 0, 0, 0, 0]
    assert (found.params_std[2:4] > 0).all()


def test_the_better_half_of_the_starts_reports_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intrinsics, "unlike", list)  # none is dropped for being like another
    found = intrinsics.calibrate(frames("orbit"), selected("orbit"), config().intrinsics)
    assert found.candidate_focal.shape == found.candidate_cost.shape == ((len(config().intrinsics.starts) + 1) // 2,)
    assert np.isfinite(found.candidate_cost).all()
    best = found.candidate_focal[found.candidate_cost.argmin()]
    assert best == pytest.approx(found.params[0], rel=0.03)


def test_starts_that_came_to_the_same_focal_length_are_pursued_once() -> None:
    measurements = Measurements(frames("room"), 16, 0)
    trials = [Map(measurements, "pinhole", default_params(320, 240, focal)) for focal in (200.0, 201.0, 150.0, 199.5)]
    assert intrinsics.unlike(trials) == [trials[0], trials[2]]


@pytest.mark.parametrize(("followed", "count"), [(0.0, 0), (1.0, 96)])
def test_features_are_matched_only_where_too_few_corners_can_be_followed(
    followed: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def measurements(frames: FrameSequence, columns: int, matches: int, *known: Any) -> Measurements:
        made.append(matches)
        return Measurements(frames, columns, matches, *known)

    monkeypatch.setattr(intrinsics, "Measurements", measurements)
    settings = config().intrinsics.model_copy(update={"followed": followed})
    found = intrinsics.calibrate(frames("room"), selected("room"), settings)
    assert made[-1] == count
    assert found.params[0] == pytest.approx(clip("room").camera.params[0], rel=0.03)


def test_a_given_camera_is_returned_exactly() -> None:
    found, truth = known("room"), clip("room").camera
    assert np.array_equal(found.params, truth.params)
    assert not found.params_std.any()
    assert (found.source, found.focal_observable, found.flags) == ("given", True, ())


def test_a_given_camera_of_another_size_is_scaled_to_the_frames() -> None:
    large = Calibration("brown", np.array([1000.0, 1010.0, 639.5, 479.5, *BARREL]), 1280, 960)
    found = intrinsics.calibrate(frames("room"), selected("room"), config().intrinsics, large)
    assert found.camera_model == "brown"
    assert np.allclose(found.params, [250.0, 252.5, 159.5, 119.5, *BARREL])
    assert not found.params_std.any()


def test_a_still_camera_shows_no_focal_length() -> None:
    found, settings = calibrated("static"), config().intrinsics
    assert not found.focal_observable
    assert "focal_unobservable" in found.flags
    assert found.params[0] == pytest.approx(settings.prior_focal * 320)
    assert found.params_std[0] == pytest.approx(settings.prior_std * found.params[0])


def test_a_turning_camera_gives_a_focal_length_within_its_own_uncertainty() -> None:
    found, truth = calibrated("rotation"), clip("rotation").camera.params
    assert abs(found.params[0] - truth[0]) < 3 * found.params_std[0] + 0.02 * truth[0]
    assert found.focal_observable == ("focal_unobservable" not in found.flags)


def test_the_same_clip_gives_the_same_camera_bit_for_bit() -> None:
    again = intrinsics.calibrate(frames("room"), selected("room"), config().intrinsics)
    assert np.array_equal(again.params, calibrated("room").params)
    assert np.array_equal(again.params_std, calibrated("room").params_std)
    assert np.array_equal(again.candidate_cost, calibrated("room").candidate_cost)


# -- lenses


@pytest.mark.parametrize(
    ("name", "model"), [("orbit", "pinhole"), ("room", "pinhole"), ("room_barrel", "brown"), ("room_fisheye", "fisheye")]
)
def test_the_lens_is_chosen_by_what_it_explains(name: str, model: str) -> None:
    assert calibrated(name).camera_model == model


@pytest.mark.parametrize("name", ["room_barrel", "room_fisheye"])
def test_the_focal_length_of_a_lens_is_found_within_three_percent(name: str) -> None:
    found, truth = calibrated(name), clip(name).camera.params
    assert found.params[0] == pytest.approx(truth[0], rel=0.03)
    assert found.params[4] == pytest.approx(truth[4], abs=0.05)
    assert (found.params_std[4:6] > 0).all()


@pytest.mark.parametrize(
    ("name", "fps", "height", "fov", "distortion"),
    [("rotation", 15.0, 200, 78.0, (-0.283, 0.074, 0.0002, 0.0, 0.0)), ("orbit", 11.0, 240, 60.0, (0.1, -0.03, 0.0, 0.0, 0.0))],
    ids=["wide barrel that turns", "pincushion that orbits"],
)
def test_what_a_lens_bends_is_not_taken_for_another_focal_length(
    name: str, fps: float, height: int, fov: float, distortion: tuple[float, ...]
) -> None:
    """A pinhole explains these nearly as well, with a focal length 190 % too long and 9 % too short."""
    straight = synthetic.scene(name, n_frames=50, width=320, height=height, fps=fps, supersample=1, noise=1.0)
    bent = replace(straight, camera=camera(320, height, fov, "brown", distortion))
    seen = bent.frames()
    found = intrinsics.calibrate(seen, keyframes.select(seen, config().keyframes), config().intrinsics)
    assert found.camera_model == "brown"
    assert found.params[0] == pytest.approx(bent.camera.params[0], rel=0.05)


@pytest.mark.parametrize(
    ("cost", "std", "gain", "better"),
    [(80.0, 0.05, 0.1, True), (95.0, 0.05, 0.1, False), (95.0, 0.02, 0.1, True), (101.0, 0.01, 0.1, False)],
    ids=["explains much more", "explains little more", "leaves less open", "explains less"],
)
def test_a_lens_is_taken_for_what_it_explains_or_settles(cost: float, std: float, gain: float, better: bool) -> None:
    scene = Map(Measurements(frames("room"), 16, 0), "pinhole", default_params(320, 240, 200.0))
    nothing = Evidence((), np.zeros((0, 0)), np.zeros((0, 0)), (), 1.0)
    pinhole = intrinsics.Solved(scene, 100.0, nothing, np.array([0.05]))
    assert intrinsics.Solved(scene, cost, nothing, np.array([std])).beats(pinhole, gain) is better


def test_without_a_prior_on_distortion_none_is_sought() -> None:
    settings = config().intrinsics.model_copy(update={"prior_distortion_std": 0.0})
    found = intrinsics.calibrate(frames("room_barrel"), selected("room_barrel"), settings)
    assert found.camera_model == "pinhole"
    assert not found.params_std[4:].any()


# -- windows


def test_the_default_camera_has_its_centre_in_the_middle_of_the_picture() -> None:
    assert intrinsics.default_params(WIDTH, HEIGHT, 500.0).tolist() == [500, 500, 319.5, 179.5, 0, 0, 0, 0, 0]


@given(count=st.integers(0, 12), radius=st.integers(1, 4))
def test_neighbours_are_all_ordered_pairs_within_the_radius(count: int, radius: int) -> None:
    pairs = intrinsics.neighbours(count, radius)
    assert set(pairs) == {(i, j) for i in range(count) for j in range(count) if 0 < abs(i - j) <= radius}
    assert len(set(pairs)) == len(pairs)


@given(lengths=st.lists(st.integers(1, 20), max_size=5), length=st.integers(2, 8), at_most=st.integers(1, 6))
def test_windows_stay_within_one_shot(lengths: list[int], length: int, at_most: int) -> None:
    segment = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    windows = intrinsics.window_starts(segment, length, at_most)
    assert len(windows) <= at_most
    assert bool(windows) == any(n >= 2 for n in lengths)
    for window in windows:
        assert 2 <= len(window) <= length
        assert len(set(segment[list(window)])) == 1
