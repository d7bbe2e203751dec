"""Keyframes follow the motion of the camera, not the clock; shots, stillness and odd clips are noticed."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from engine_worlds import clip, config, frames, selected, still_frames
from vipe_dag import synthetic
from vipe_dag.results import Keyframes
from vipe_dag.sequence import ArrayFrames
from vipe_dag.stages import keyframes


def select(sequence: ArrayFrames) -> Keyframes:
    return keyframes.select(sequence, config().keyframes)


@pytest.mark.parametrize("name", ["orbit", "room", "rotation", "static", "cut"])
def test_first_and_last_rows_of_every_shot_are_keyframes(name: str) -> None:
    found = selected(name)
    borders = np.flatnonzero(np.diff(found.segment))
    wanted = {0, len(found.segment) - 1, *borders.tolist(), *(borders + 1).tolist()}
    assert wanted <= set(found.keyframe.tolist())
    assert (np.diff(found.keyframe) > 0).all()


@pytest.mark.parametrize("name", ["orbit", "room", "cut"])
def test_every_row_has_its_motion_shot_and_sharpness(name: str) -> None:
    found, count = selected(name), len(frames(name))
    assert found.motion.shape == found.segment.shape == found.sharpness.shape == (count,)
    assert (found.motion.dtype, found.segment.dtype, found.sharpness.dtype) == (np.float32, np.int32, np.float32)
    assert np.isfinite(found.motion).all()
    assert (found.sharpness > 0).all()


def test_twice_the_frame_rate_gives_the_same_keyframes() -> None:
    slow, fast = select(frames("room", 30, 15.0)), select(frames("room", 60, 30.0))
    assert abs(len(fast.keyframe) - len(slow.keyframe)) <= 0.25 * len(slow.keyframe)
    assert len(slow.keyframe) >= 4


def test_a_slower_camera_needs_fewer_keyframes() -> None:
    settings = config().keyframes.model_copy(update={"at_least": 2})
    slow, fast = (len(keyframes.select(frames("room", 20, rate), settings).keyframe) for rate in (40.0, 7.0))
    assert slow < fast


def test_a_shot_that_moves_little_still_gets_its_keyframes() -> None:
    settings = config().keyframes
    found = select(frames("room", 20, 40.0)).keyframe
    without = keyframes.select(frames("room", 20, 40.0), settings.model_copy(update={"at_least": 2})).keyframe
    assert len(without) < len(found)
    assert abs(len(found) - settings.at_least) <= 1
    assert set(without.tolist()) <= set(found.tolist())


def test_the_size_of_the_picture_hardly_matters() -> None:
    small, large = select(frames("room", 30, 15.0)), select(frames("room", 30, 15.0, 640, 480))
    assert abs(len(large.keyframe) - len(small.keyframe)) <= max(1, 0.2 * len(small.keyframe))


def test_motion_is_measured_in_pixels_of_the_frames() -> None:
    base = cv2.resize(frames("static").rgb(0), (440, 330), interpolation=cv2.INTER_CUBIC)
    slide = np.stack([base[40:280, 4 * i : 4 * i + 320] for i in range(4)])
    found = select(ArrayFrames(np.ascontiguousarray(slide), np.arange(4) / 10, np.arange(4)))
    assert np.allclose(found.motion, [0, 4, 8, 12], atol=0.5)


@pytest.mark.parametrize("at_least", [2, 8])
def test_flow_to_the_next_keyframe_and_back_is_the_true_one(at_least: int) -> None:
    world = clip("room", 30, 15.0)
    settings = config().keyframes.model_copy(update={"at_least": at_least})
    pairs = keyframes.select(frames("room", 30, 15.0), settings).followed()
    assert len(pairs) >= at_least
    for (a, b), flow in pairs.items():
        assert flow.shape == (30, 40, 2)
        true, visible = world.flow(a, b)
        size = flow.shape[1::-1]
        seen = cv2.resize(visible.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
        miss = np.linalg.norm(flow - cv2.resize(true, size, interpolation=cv2.INTER_AREA), axis=-1)[seen]
        assert np.median(miss) < 1.0
        assert np.quantile(miss, 0.8) < 3.0


def test_flow_is_told_of_neighbouring_keyframes_of_a_shot_with_frames_between() -> None:
    found = selected("cut")
    between = {(int(a), int(b)) for a, b in itertools.pairwise(found.keyframe) if b > a + 2 and found.segment[a] == found.segment[b]}
    assert between
    assert set(found.followed()) == between | {(b, a) for a, b in between}


def test_a_cut_makes_two_shots() -> None:
    found = selected("cut")
    assert np.array_equal(found.segment, clip("cut").shot)
    assert "segments" in found.flags


@pytest.mark.parametrize("fov", [65.0, 70.0])
def test_a_cut_is_seen_although_flow_across_it_returns_here_and_there(fov: float) -> None:
    world = synthetic.scene("cut", n_frames=12, width=320, height=240, fov=fov, fps=10.0, supersample=1)
    assert np.array_equal(select(world.frames()).segment, world.shot)


@pytest.mark.parametrize("name", ["orbit", "room", "rotation", "static"])
def test_an_uncut_clip_is_one_shot(name: str) -> None:
    assert not selected(name).segment.any()
    assert "segments" not in selected(name).flags


def test_a_flash_is_not_a_cut() -> None:
    plain = frames("room")
    flashed = plain.rgb_array.copy()
    flashed[9] = np.clip(flashed[9].astype(int) * 2 + 40, 0, 255)
    assert not select(ArrayFrames(flashed, plain.time, plain.frame)).segment.any()


def test_a_still_camera_is_static() -> None:
    found = selected("static")
    assert found.flags == ("static",)
    assert found.keyframe.tolist() == [0, len(frames("static")) - 1]


def test_sensor_noise_is_not_motion() -> None:
    rng = np.random.default_rng(0)
    picture = frames("static").rgb(0).astype(float)
    noisy = np.stack([np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255) for _ in range(10)]).astype(np.uint8)
    assert "static" in select(ArrayFrames(noisy, np.arange(10) / 10, np.arange(10))).flags


@pytest.mark.parametrize("name", ["orbit", "room", "rotation"])
def test_a_moving_camera_is_not_static(name: str) -> None:
    assert "static" not in selected(name).flags


def test_two_frames_are_enough() -> None:
    found = select(frames("room", 2, 7.0))
    assert found.keyframe.tolist() == [0, 1]
    assert "short" in found.flags


def test_a_blank_wall_is_low_texture() -> None:
    found = select(still_frames(np.full((240, 320, 3), 120, np.uint8), 10))
    assert {"low_texture", "static"} <= set(found.flags)
    assert found.keyframe.tolist() == [0, 9]


def test_blur_shows_in_the_sharpness() -> None:
    plain = frames("room", 30, 15.0)
    blurred = plain.rgb_array.copy()
    blurred[7] = cv2.GaussianBlur(blurred[7], (0, 0), 2.5)
    found = select(ArrayFrames(blurred, plain.time, plain.frame))
    assert found.sharpness[7] < 0.4 * min(found.sharpness[6], found.sharpness[8])


def test_the_same_clip_gives_the_same_keyframes() -> None:
    again = select(frames("room"))
    assert np.array_equal(again.keyframe, selected("room").keyframe)
    assert np.array_equal(again.motion, selected("room").motion)


def test_progress_counts_every_row_once() -> None:
    rows: list[int] = []
    keyframes.select(frames("cut"), config().keyframes, rows.append)
    assert rows == list(range(1, len(frames("cut"))))
