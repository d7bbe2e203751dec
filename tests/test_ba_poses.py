"""Bundle adjustment of whole clips: right where the truth is known, honest where the motion does not show it."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from engine_worlds import angle_deg, ate_percent, clip, config, errors, frames, known, selected, solved
from vipe_dag import synthetic
from vipe_dag.config import load_config
from vipe_dag.evaluate import trajectory
from vipe_dag.results import BaPoses, Keyframes
from vipe_dag.sequence import ArrayFrames
from vipe_dag.stages import ba_poses, intrinsics, keyframes
from vipe_dag.stages.finds import Finds
from vipe_dag.synthetic.trajectory import handheld, turn_first

MOVING = ["orbit", "room"]
ALL = [*MOVING, "rotation", "static", "cut"]


@pytest.mark.parametrize("name", MOVING)
def test_the_trajectory_is_within_one_percent_of_the_path(name: str) -> None:
    found = errors(name, solved(name))
    assert found.ate_percent < 1.0
    assert found.rotation_deg < 1.0  # most of it is the alignment by positions of a short path


@pytest.mark.parametrize("name", MOVING)
def test_rotations_do_not_drift(name: str) -> None:
    found, truth = solved(name, given=True).cam2world[:, :3, :3], clip(name).cam2world[:, :3, :3]
    assert angle_deg(found[0].T @ found, truth[0].T @ truth).max() < 0.5


@pytest.mark.parametrize("name", MOVING)
def test_the_refined_focal_length_is_within_three_percent(name: str) -> None:
    assert solved(name).params[0] == pytest.approx(clip(name).camera.params[0], rel=0.03)


@pytest.mark.parametrize("name", MOVING)
def test_positions_are_as_uncertain_as_they_are_wrong(name: str) -> None:
    found = solved(name)
    aligned = trajectory.align(found.cam2world, clip(name).cam2world)
    miss = np.sqrt(np.square(aligned.estimate[:, :3, 3] - aligned.reference[:, :3, 3]).sum(1).mean())
    told = aligned.scale * np.sqrt(np.square(found.position_std).mean())
    assert miss / 3 < told < 10 * miss


@pytest.mark.parametrize("name", ["room", "cut"])
def test_what_calibration_found_in_the_pictures_changes_no_result_and_is_let_go(name: str) -> None:
    finds = Finds()
    camera = intrinsics.calibrate(frames(name), selected(name), config().intrinsics, finds=finds)
    assert finds.items
    found = ba_poses.solve(frames(name), selected(name), camera, config().ba_poses, finds=finds)
    alone = ba_poses.solve(frames(name), selected(name), camera, config().ba_poses)
    for field in fields(found):
        a, b = (getattr(result, field.name) for result in (found, alone))
        assert np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else np.array_equal(a, b)
    assert not finds.items


@pytest.mark.parametrize("name", ALL)
def test_every_frame_has_a_camera(name: str) -> None:
    found, count = solved(name), len(frames(name))
    assert found.cam2world.shape == (count, 4, 4)
    assert np.isfinite(found.cam2world).all()
    assert found.tracked.all()
    assert np.isfinite(found.position_std).all()
    assert (found.position_std >= 0).all()


@pytest.mark.parametrize("name", ALL)
def test_every_camera_is_a_rigid_motion(name: str) -> None:
    rotation = solved(name).cam2world[:, :3, :3]
    assert np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-9
    assert np.allclose(np.linalg.det(rotation), 1.0)
    assert (solved(name).cam2world[:, 3] == [0, 0, 0, 1]).all()


@pytest.mark.parametrize("name", ALL)
def test_every_shot_begins_at_the_origin(name: str) -> None:
    found = solved(name)
    for value in np.unique(found.segment):
        first = np.flatnonzero(found.segment == value)[0]
        assert np.allclose(found.cam2world[first], np.eye(4), atol=1e-9)


@pytest.mark.parametrize("name", MOVING)
def test_frames_agree_with_the_map(name: str) -> None:
    found = solved(name)
    assert "lost_frames" not in found.flags
    assert "no_parallax" not in found.flags
    assert found.parallax.tolist() == [True]
    assert found.residual_px_median < 0.5
    assert np.median(found.inlier_share) > 0.8


@pytest.mark.parametrize("name", MOVING)
def test_sparse_inverse_depths_are_those_of_the_world(name: str) -> None:
    found, world = solved(name), clip(name)
    ratios = []
    for k, row in enumerate(found.keyframe):
        uv = np.rint(found.point_uv[k]).astype(int)
        depth = world.truth(int(row))[0][uv[..., 1], uv[..., 0]]
        ratios.append((found.inverse_depth[k] * depth)[found.valid[k] & np.isfinite(depth)])
    ratio = np.concatenate(ratios)
    assert len(ratio) > 0.3 * found.valid.size
    assert np.quantile(np.abs(ratio / np.median(ratio) - 1), 0.75) < 0.08


@pytest.mark.parametrize("name", ALL)
def test_arrays_have_the_shapes_of_the_contract(name: str) -> None:
    found = solved(name)
    k, gy, gx = found.inverse_depth.shape
    assert k == len(found.keyframe)
    assert np.array_equal(found.keyframe, selected(name).keyframe)
    assert found.point_uv.shape == (k, gy, gx, 2)
    assert found.valid.shape == found.residual_px.shape == (k, gy, gx)
    assert (found.inverse_depth > 0).all()
    assert np.array_equal(found.segment, selected(name).segment)
    assert found.parallax.shape == (found.segment.max() + 1,)
    assert found.flags == tuple(sorted(set(found.flags)))


@pytest.mark.parametrize("name", MOVING)
def test_a_given_camera_is_used_exactly(name: str) -> None:
    found = solved(name, given=True)
    assert np.array_equal(found.params, clip(name).camera.params)
    assert not found.params_std.any()
    assert found.camera_model == "pinhole"
    assert errors(name, found).ate_percent < 0.5


@pytest.mark.parametrize("std", [0.001, 0.05, 0.5])
def test_a_focal_length_is_flagged_by_how_well_it_is_known(std: float) -> None:
    wanted = {0.001: set(), 0.05: {"focal_uncertain"}, 0.5: {"focal_unobservable"}}
    assert ba_poses.focal_flags(std, config().ba_poses) == wanted[std]


def test_a_wide_lens_is_kept_and_its_cameras_are_right() -> None:
    found, truth = solved("room_fisheye"), clip("room_fisheye").camera
    assert found.camera_model == "fisheye"
    assert found.params[0] == pytest.approx(truth.params[0], rel=0.02)
    assert errors("room_fisheye", found).ate_percent < 0.5


def test_a_pinhole_camera_is_not_given_a_distorted_lens() -> None:
    assert solved("orbit").camera_model == "pinhole"


@pytest.mark.parametrize("name", MOVING)
def test_a_centred_camera_keeps_its_centre(name: str) -> None:
    assert solved(name).params[2:4].tolist() == clip(name).camera.params[2:4].tolist()


def test_the_centre_of_a_picture_cut_from_one_side_is_found() -> None:
    gone, truth = 16, clip("orbit")
    cut = ArrayFrames(np.stack([truth.rgb(row) for row in range(len(truth.time))])[:, :, gone:], truth.time, np.arange(len(truth.time)))
    chosen = keyframes.select(cut, config().keyframes)
    found = ba_poses.solve(cut, chosen, intrinsics.calibrate(cut, chosen, config().intrinsics), config().ba_poses)
    assert found.params[2] == pytest.approx(truth.camera.params[2] - gone, abs=0.3 * gone / 2)
    assert found.params_std[2] > 0
    assert errors("orbit", found).ate_percent < 0.5


def test_a_still_camera_does_not_move() -> None:
    found = solved("static")
    assert np.allclose(found.cam2world, np.eye(4), rtol=0, atol=1e-12)
    assert not found.cam2world[:, :3, 3].any()
    assert {"no_parallax", "static", "focal_unobservable"} <= set(found.flags)
    assert not found.parallax.any()
    assert not found.valid.any()
    assert not found.position_std.any()


def test_a_turning_camera_keeps_its_rotations_and_claims_no_translation() -> None:
    found = solved("rotation", given=True)
    truth = clip("rotation").cam2world
    relative = truth[0, :3, :3].T @ truth[:, :3, :3]
    assert angle_deg(found.cam2world[:, :3, :3], relative).max() < 0.5
    assert not found.cam2world[:, :3, 3].any()
    assert "no_parallax" in found.flags
    assert not found.valid.any()


def test_a_turning_camera_of_unknown_focal_length_claims_no_translation_either() -> None:
    found = solved("rotation")
    assert "no_parallax" in found.flags
    assert not found.cam2world[:, :3, 3].any()


@pytest.mark.parametrize("segment", [0, 1])
def test_both_sides_of_a_cut_are_posed(segment: int) -> None:
    found = solved("cut", given=True)
    assert found.parallax.tolist() == [True, True]
    assert "segments" in found.flags
    assert errors("cut", found, segment).ate_percent < 1.0


def test_the_same_clip_gives_the_same_cameras_bit_for_bit() -> None:
    once = solved("room", given=True)
    again = ba_poses.solve(frames("room"), selected("room"), known("room"), config().ba_poses)
    for name, value in vars(once).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(again, name), equal_nan=value.dtype.kind == "f"), name
        else:
            assert value == getattr(again, name), name


def test_two_frames_are_posed() -> None:
    two = frames("room", 2, 3.0)
    found: BaPoses = ba_poses.solve(two, keyframes.select(two, config().keyframes), known("room"), config().ba_poses)
    assert np.isfinite(found.cam2world).all()
    assert found.tracked.all()


def test_progress_is_told_and_stays_within_bounds() -> None:
    told: list[tuple[str, float]] = []
    ba_poses.solve(
        frames("static"), selected("static"), known("static"), config().ba_poses, lambda phase, share: told.append((phase, share))
    )
    assert told
    assert all(0.0 <= share <= 1.0 for _, share in told)


@pytest.mark.parametrize(("height", "fov", "fps"), [(200, 45.0, 15.0), (200, 55.0, 10.0), (240, 55.0, 15.0)])
def test_a_bay_of_a_hall_is_not_taken_for_the_next_which_looks_alike(height: int, fov: float, fps: float) -> None:
    hall = synthetic.scene("hall", n_frames=40, width=320, height=height, fov=fov, fps=fps, supersample=1)
    shown, settings = hall.frames(), load_config()
    chosen = keyframes.select(shown, settings.keyframes)
    camera = intrinsics.calibrate(shown, chosen, settings.intrinsics, hall.camera)
    found = ba_poses.solve(shown, chosen, camera, settings.ba_poses)
    assert ate_percent(found.cam2world, hall.cam2world, hall.path_length) < 0.3


@cache
def rearranged(order: tuple[int, ...], blind: tuple[int, ...] = ()) -> tuple[BaPoses, float]:
    """The orbit with its frames in another order (a cut where they jump) or blinded by noise: its solution and the ATE where tracked."""
    whole, truth = frames("orbit"), clip("orbit").cam2world[list(order)]
    pixels = whole.rgb_array[list(order)].copy()
    for row in blind:
        pixels[row] = np.random.default_rng(row).integers(0, 255, pixels[row].shape)
    shown = ArrayFrames(pixels, np.arange(len(order)) / 10.0, np.arange(len(order)))
    shot = np.cumsum(np.abs(np.diff(order, prepend=order[0])) > 1).astype(np.int32)
    rows = len(order)
    unfollowed = np.full((rows, 3, 4, 2), np.nan, np.float16)
    every = Keyframes(np.arange(rows), np.zeros(rows, np.float32), shot, np.ones(rows, np.float32), unfollowed, unfollowed, ())
    settings = config().ba_poses.model_copy(update={"matches": 384})
    found = ba_poses.solve(shown, every, known("orbit"), settings)
    return found, ate_percent(found.cam2world[found.tracked], truth[found.tracked], clip("orbit").path_length)


def test_a_shot_that_comes_back_to_a_known_place_joins_its_world() -> None:
    found, ate_percent = rearranged((*range(10, 20), *range(10)))
    assert not found.segment.any()
    assert "segments" not in found.flags
    assert found.tracked.all()
    assert ate_percent < 1.0


def test_a_blind_first_frame_is_lost_and_the_others_do_not_hang_on_it() -> None:
    found, ate_percent = rearranged(tuple(range(20)), blind=(0,))
    assert not found.segment.any()
    assert np.flatnonzero(~found.tracked).tolist() == [0]
    assert np.flatnonzero(np.isnan(found.position_std)).tolist() == [0]
    assert found.position_std[1:].max() < 0.02
    assert ate_percent < 1.0


def test_every_frame_of_a_camera_that_first_turns_in_place_is_right() -> None:
    count = 60
    time = np.arange(count) / 15.0
    walk = handheld(((-1.7, 0.0, -2.2), (-0.4, 0.0, -2.7), (1.2, 0.0, -2.3), (1.8, 0.0, -0.6)), ((0.2, 0.5, 1.0),) * 4)
    cam2world = turn_first(walk, 2.0)(time)
    lens, shot = synthetic.camera(320, 180), np.zeros(count, np.int32)
    shown = synthetic.SyntheticClip("turn", (synthetic.room(seed=16),), shot, cam2world, lens, 15.0, supersample=1).frames()
    chosen = keyframes.select(shown, config().keyframes)
    camera = intrinsics.calibrate(shown, chosen, config().intrinsics, lens)
    found = ba_poses.solve(shown, chosen, camera, config().ba_poses)
    aligned = trajectory.align(found.cam2world, cam2world)
    miss = np.linalg.norm(aligned.estimate[:, :3, 3] - aligned.reference[:, :3, 3], axis=1)
    assert found.tracked.all()
    assert miss.max() < 0.03  # metres, of a path of 1.6


@pytest.mark.parametrize(
    ("inliers", "wanted"), [((0.9, 0.8, 0.3), False), ((0.4, 0.9, 0.3), True), ((0.0, 0.0, 0.9), False), ((0.0,), False)]
)
def test_a_map_that_contradicts_most_measurements_says_so(inliers: tuple[float, ...], wanted: bool) -> None:
    assert ba_poses.is_inconsistent(np.array(inliers)) == wanted


def test_frames_lost_in_the_middle_of_a_shot_do_not_end_its_world() -> None:
    found, ate_percent = rearranged(tuple(range(20)), blind=(8, 9))
    assert not found.segment.any()
    assert np.flatnonzero(~found.tracked).tolist() == [8, 9]
    assert "lost_frames" in found.flags
    assert ate_percent < 1.0
