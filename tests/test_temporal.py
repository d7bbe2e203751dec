"""Steadiness of depth over time: nothing for the truth, closed forms for known faults, and a slow reference that says what is meant."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from stored_clip import VIDEO, store_clip
from vipe_dag import evaluate, synthetic
from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError
from vipe_dag.evaluate import TimedDepth, evaluate_steadiness, temporal_errors
from vipe_dag.store import VideoStore
from vipe_dag.synthetic.lens import undistort

HEIGHT, WIDTH = 30, 40
PINHOLE = Calibration("pinhole", np.array([35.0, 36.0, 19.0, 15.5, 0, 0, 0, 0, 0]), WIDTH, HEIGHT)
LENSES = [
    PINHOLE,
    Calibration("brown", np.array([35.0, 36.0, 19.0, 15.5, -0.1, 0.02, 0.001, -0.002, 0]), WIDTH, HEIGHT),
    Calibration("fisheye", np.array([25.0, 26.0, 19.0, 15.5, 0.02, -0.01, 0.003, 0, 0]), WIDTH, HEIGHT),
]
NORMAL, OFFSET = np.array([0.15, -0.1, 1.0]), 4.0


def walk(count: int = 5) -> np.ndarray:
    """Cameras that move and turn a little before a plane."""
    from scipy.spatial.transform import Rotation

    poses = np.tile(np.eye(4), (count, 1, 1))
    for t in range(count):
        poses[t, :3, :3] = Rotation.from_rotvec([0.01 * t, -0.02 * t, 0.015 * t]).as_matrix()
        poses[t, :3, 3] = [0.05 * t, -0.03 * t, 0.08 * t]
    return poses


def plane_depth(camera: Calibration, pose: np.ndarray) -> np.ndarray:
    """z-depth of the plane NORMAL x = OFFSET, exactly."""
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    rays = np.stack([*undistort(camera, u, v), np.ones_like(u)], -1)
    return (OFFSET - NORMAL @ pose[:3, 3]) / (rays @ (pose[:3, :3].T @ NORMAL))


def clip(camera: Calibration = PINHOLE, factors: np.ndarray | float = 1.0, count: int = 5) -> list[TimedDepth]:
    factors = np.broadcast_to(factors, count)
    static = np.ones((HEIGHT, WIDTH), bool)
    return [
        TimedDepth(row, plane_depth(camera, pose) * factor, static, pose)
        for row, (pose, factor) in enumerate(zip(walk(count), factors, strict=True))
    ]


def still(factors: list[float]) -> list[TimedDepth]:
    """A camera at rest before a wall at depth 2, whose depth is told with a factor per frame."""
    static = np.ones((HEIGHT, WIDTH), bool)
    return [TimedDepth(row, np.full((HEIGHT, WIDTH), 2.0 * factor), static, np.eye(4)) for row, factor in enumerate(factors)]


def slow_reference(frames: list[TimedDepth], camera: Calibration, step: int) -> tuple[float, float, float]:
    """TAE, tau5 and flicker of a pinhole, pixel by pixel in float64, as the definitions read."""
    fx, fy, cx, cy = camera.params[:4]

    def log_ratio(source: TimedDepth, target: TimedDepth, v: int, u: int) -> float:
        z = float(source.z_depth[v, u])
        point = np.linalg.inv(target.cam2world) @ source.cam2world @ [(u - cx) / fx * z, (v - cy) / fy * z, z, 1]
        x, y = fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy
        if not (0 <= x <= WIDTH - 1 and 0 <= y <= HEIGHT - 1):
            return math.nan
        left, top = min(int(x), WIDTH - 2), min(int(y), HEIGHT - 2)
        a, b = x - left, y - top
        inverse = 1 / target.z_depth[top : top + 2, left : left + 2].astype(float)
        there = (1 - b) * ((1 - a) * inverse[0, 0] + a * inverse[0, 1]) + b * ((1 - a) * inverse[1, 0] + a * inverse[1, 1])
        return math.log(point[2] * there)

    pixels = list(itertools.product(range(0, HEIGHT, step), range(0, WIDTH, step)))
    errors, within, flicker = [], [], []
    for one, other in itertools.pairwise(frames):
        for source, target in ((one, other), (other, one)):
            ratios = [math.exp(r) for v, u in pixels if not math.isnan(r := log_ratio(source, target, v, u))]
            errors.append(np.mean([abs(r - 1) for r in ratios]))
            within.append(np.mean([max(r, 1 / r) < 1.05 for r in ratios]))
    for before, frame, after in zip(frames, frames[1:], frames[2:], strict=False):
        jitter = [abs(log_ratio(frame, before, v, u) + log_ratio(frame, after, v, u)) / 2 for v, u in pixels if frame.static[v, u]]
        flicker.append(np.nanmedian(jitter))
    return 100 * float(np.mean(errors)), float(np.mean(within)), 100 * float(np.mean(flicker))


@pytest.mark.parametrize("camera", LENSES, ids=lambda camera: camera.camera_model)
def test_the_truth_of_a_plane_before_a_moving_camera_is_steady(camera: Calibration) -> None:
    found = temporal_errors(clip(camera), camera)
    # bilinear interpolation of inverse depth is exact for a pinhole; a lens bends the plane between pixels
    limit = 1e-9 if camera.camera_model == "pinhole" else 0.05
    assert found.tae_percent < limit
    assert found.flicker_percent is not None
    assert found.flicker_percent < limit
    assert found.tau5 == 1
    assert found.pairs == 4


def test_closed_form_of_a_wall_that_is_told_nearer_and_farther() -> None:
    found = temporal_errors(still([1.0, 1.04, 1.0, 1.04]), PINHOLE)
    assert found.tae_percent == pytest.approx(100 * (0.04 + (1 - 1 / 1.04)) / 2)
    assert found.tau5 == 1
    assert found.flicker_percent == pytest.approx(100 * math.log(1.04))
    assert found.coverage == 1


def test_a_step_beyond_a_twentieth_is_no_inlier() -> None:
    assert temporal_errors(still([1.0, 1.06, 1.06]), PINHOLE).tau5 == pytest.approx(0.5)


def test_a_slow_drift_of_scale_is_an_error_but_no_flicker() -> None:
    found = temporal_errors(still([1.0, 1.02, 1.02**2, 1.02**3]), PINHOLE)
    assert found.tae_percent == pytest.approx(100 * (0.02 + (1 - 1 / 1.02)) / 2)
    assert found.flicker_percent == pytest.approx(0, abs=1e-9)


def test_depth_at_another_scale_than_the_poses_is_seen_when_the_camera_moves() -> None:
    assert temporal_errors(clip(factors=3.0), PINHOLE).tae_percent > 1


def test_equals_the_slow_reference_on_noisy_depth() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        TimedDepth(f.row, f.z_depth * np.exp(rng.normal(0, 0.03, f.z_depth.shape)), rng.random(f.z_depth.shape) < 0.5, f.cam2world)
        for f in clip(count=4)
    ]
    found = temporal_errors(noisy, PINHOLE, pixel_step=3)
    assert (found.tae_percent, found.tau5, found.flicker_percent) == pytest.approx(slow_reference(noisy, PINHOLE, 3), rel=1e-9)


def test_flicker_is_of_static_areas_only() -> None:
    frames = still([1.0, 1.0, 1.0])
    frames[1].z_depth[:, 20:] *= 1.5
    frames[1].static[:, 20:] = False
    found = temporal_errors(frames, PINHOLE)
    assert found.flicker_percent == pytest.approx(0, abs=1e-9)
    assert found.tae_percent > 10


def test_unknown_depth_does_not_count_and_coverage_says_so() -> None:
    frames = still([1.0, 1.0])
    frames[1].z_depth[: HEIGHT // 2] = np.nan
    found = temporal_errors(frames, PINHOLE, pixel_step=1)
    assert found.tae_percent == pytest.approx(0, abs=1e-9)
    assert found.coverage == pytest.approx((0.5 + 0.5) / 1.5)


def test_only_neighbours_in_one_world_are_compared() -> None:
    frames = still([1.0, 1.0, 2.0, 2.0, 5.0])
    frames = [TimedDepth(f.row + (f.row == 4), f.z_depth, f.static, f.cam2world, int(f.row >= 2)) for f in frames]
    found = temporal_errors(frames, PINHOLE)
    assert (found.pairs, found.tae_percent, found.flicker_percent) == (2, pytest.approx(0, abs=1e-9), None)


@pytest.mark.parametrize("frames", [[], still([1.0]), [f for f in still([1.0, 1.0, 1.0]) if f.row != 1]])
def test_without_neighbours_nothing_can_be_said(frames: list[TimedDepth]) -> None:
    with pytest.raises(EstimationError, match="no two consecutive frames"):
        temporal_errors(frames, PINHOLE)


def test_depth_of_another_size_than_the_camera_is_refused() -> None:
    with pytest.raises(EstimationError, match="row 0"):
        temporal_errors(still([1.0, 1.0]), PINHOLE.scaled(20, 15))


class TestStoredVideo:
    def test_a_steady_room_is_steady_and_scale_does_not_matter(self, tmp_path: Path) -> None:
        room = synthetic.scene("room", n_frames=4, width=160, height=90, supersample=1)
        smaller = room.cam2world.copy()
        smaller[:, :3, 3] *= 0.5
        store = VideoStore(tmp_path)
        store_clip(store, room, cam2world=smaller, depth_factor=0.5)
        found = evaluate_steadiness(store, VIDEO)
        assert found is not None
        assert found.pairs == 3
        assert found.tae_percent < 3  # edges of furniture, where pixels mix
        assert found.tau5 > 0.97
        assert found.flicker_percent is not None
        assert found.flicker_percent < 0.1
        truth = synthetic.write_truth(room, tmp_path / "truth")
        evaluation = evaluate.evaluate_video(store, VIDEO, truth / "groundtruth.txt")
        assert evaluation.temporal == found
        assert evaluate.evaluate_video(store, VIDEO, truth / "groundtruth.txt", temporal=False).temporal is None

    def test_a_video_of_one_tracked_frame_has_no_steadiness(self, tmp_path: Path) -> None:
        room = synthetic.scene("room", n_frames=3, width=64, height=36, supersample=1)
        store = VideoStore(tmp_path)
        store_clip(store, room, tracked=np.arange(3) == 1)
        assert evaluate_steadiness(store, VIDEO) is None
