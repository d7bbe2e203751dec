"""Dense and aligned depth on worlds whose cameras and depth are known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depth_worlds import DepthRun, run, true_poses
from vipe_dag import synthetic
from vipe_dag.sequence import ArrayFrames

SMALL = {"n_frames": 20, "width": 320, "height": 180}


@pytest.fixture(scope="module")
def room() -> DepthRun:
    return run(synthetic.scene("room", **SMALL))


def test_measured_pixels_are_accurate_and_many(room: DepthRun) -> None:
    error = room.error(room.dense)
    assert np.nanmean(error[room.dense.measured]) < 0.03
    assert room.dense.measured.mean() > 0.7


def test_every_pixel_gets_a_depth_and_the_mean_error_is_small(room: DepthRun) -> None:
    assert np.isfinite(room.aligned.z_depth).all()
    assert np.nanmean(room.error(room.aligned)) < 0.06


def test_confidence_tells_good_from_bad(room: DepthRun) -> None:
    error, confidence = room.error(room.aligned), room.aligned.confidence
    low, high = np.quantile(confidence, (0.25, 0.75))
    assert np.nanmean(error[confidence <= low]) > 3 * np.nanmean(error[confidence >= high])


def test_completed_pixels_are_less_confident_than_measured_ones(room: DepthRun) -> None:
    dense = room.dense
    assert np.median(dense.confidence[~dense.measured]) < 0.5 * np.median(dense.confidence[dense.measured])


def test_one_scale_holds_for_the_clip(room: DepthRun) -> None:
    per_row = np.nanmedian(room.aligned.z_depth / room.truth, axis=(1, 2))
    assert per_row.std() / per_row.mean() < 0.005
    assert room.scale.std() < 0.01


def test_alignment_steadies_depth_over_time(room: DepthRun) -> None:
    def flicker(z: np.ndarray) -> float:
        ratio = np.log(z / room.truth)
        return float(np.median(np.abs(np.diff(ratio, axis=0))))

    assert flicker(room.aligned.z_depth) < 0.7 * flicker(room.dense.z_depth)


@pytest.mark.parametrize(
    ("name", "size"), [("room_barrel", (320, 180)), ("room_fisheye", (320, 180)), ("room", (181, 321)), ("room_moving", (320, 180))]
)
def test_lenses_odd_portrait_sizes_and_movers(name: str, size: tuple[int, int]) -> None:
    clip = synthetic.scene(name, n_frames=8, width=size[0], height=size[1])
    found = run(clip)
    body = np.stack([clip.truth(row)[1] for row in range(len(clip))])
    error = found.error(found.aligned)[body == 0]
    assert np.nanmedian(error) < 0.03
    assert found.aligned.z_depth.shape == (8, size[1], size[0])


def test_brightness_changes_are_survived() -> None:
    found = run(synthetic.scene("room", **(SMALL | {"n_frames": 10}), exposure=0.3, noise=2.0))
    assert np.nanmean(found.error(found.aligned)) < 0.08


def test_no_parallax_leaves_depth_unknown() -> None:
    clip = synthetic.scene("static", n_frames=3, width=96, height=64)
    found = run(clip, replace(true_poses(clip), parallax=np.zeros(1, bool)))
    for depth in (found.dense, found.aligned):
        assert np.isnan(depth.z_depth).all()
        assert not depth.confidence.any()
        assert not depth.measured.any()


def test_an_untracked_row_is_unknown_and_its_neighbours_are_not() -> None:
    clip = synthetic.scene("room", n_frames=5, width=160, height=96)
    tracked = np.array([True, True, False, True, True])
    found = run(clip, replace(true_poses(clip), tracked=tracked))
    np.testing.assert_array_equal(np.isfinite(found.aligned.z_depth).all(axis=(1, 2)), tracked)


def test_nothing_is_measured_without_motion() -> None:
    clip = synthetic.scene("static", n_frames=4, width=160, height=96)
    assert not run(clip).dense.measured.any()


def test_two_frames_are_enough() -> None:
    clip = synthetic.scene("room", n_frames=2, width=160, height=96, fps=5)
    found = run(clip)
    assert np.nanmedian(found.error(found.aligned)) < 0.05


def test_a_shot_knows_nothing_of_the_one_before() -> None:
    clip = synthetic.scene("cut", n_frames=12, width=160, height=96)
    both, rows = run(clip), np.flatnonzero(clip.shot == 1)
    poses = true_poses(clip)
    keep = np.isin(poses.keyframe, rows)
    alone = replace(poses, valid=poses.valid & keep[:, None, None], tracked=clip.shot == 1)
    again = run(clip, alone)
    shown = again.aligned.z_depth[rows]
    np.testing.assert_allclose(shown, both.aligned.z_depth[rows], rtol=0.05)


def test_a_run_repeats_bit_for_bit(room: DepthRun) -> None:
    clip = synthetic.scene("room", **SMALL)
    frames = clip.frames()
    again = run(clip, frames=ArrayFrames(frames.rgb_array.copy(), frames.time, frames.frame))
    np.testing.assert_array_equal(again.aligned.z_depth, room.aligned.z_depth)
