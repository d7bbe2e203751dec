"""Errors against references: zero for the truth, known values in closed-form cases, and evo's own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stored_clip import VIDEO, store_clip
from vipe_dag import evaluate, synthetic
from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError, SourceError
from vipe_dag.export import tum
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip

TIME = np.arange(40) / 20


def walk(seed: int = 0, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = np.cumsum(rng.normal(0, 0.1, (count, 3)), axis=0)
    poses[:, :3, :3] = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (count, 3)), axis=0)).as_matrix()
    return poses


def similarity(poses: np.ndarray, scale: float) -> np.ndarray:
    """The same trajectory told in another world: turned, moved and scaled."""
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    other = poses.copy()
    other[:, :3, :3] = turn @ poses[:, :3, :3]
    other[:, :3, 3] = scale * poses[:, :3, 3] @ turn.T + [3.0, -2.0, 1.0]
    return other


def errors_of(estimate: np.ndarray, reference: np.ndarray, **options: object) -> evaluate.TrajectoryErrors:
    return evaluate.compare(TIME[: len(estimate)], estimate, TIME[: len(reference)], reference, **options)[0]  # type: ignore[arg-type]


class TestTrajectory:
    @pytest.mark.parametrize("alignment", ["sim3", "se3"])
    def test_the_truth_has_no_error(self, alignment: str) -> None:
        errors = errors_of(walk(), walk(), alignment=alignment)
        values = (
            errors.ate_rmse,
            errors.ate_max,
            errors.rotation_max_deg,
            errors.rpe_translation,
            errors.rpe_rotation_deg,
            errors.ate_percent,
        )
        np.testing.assert_allclose(values, 0, atol=1e-5)
        assert errors.alignment == alignment
        assert errors.rotation_from == "positions"
        assert errors.frames == errors.frames_estimate == 40

    def test_a_similarity_changes_no_error_after_sim3_alignment(self) -> None:
        errors = errors_of(similarity(walk(), 0.25), walk())
        assert errors.ate_rmse < 1e-9
        assert errors.scale == pytest.approx(4)

    def test_a_rigid_motion_changes_no_error_after_se3_alignment_but_a_scale_does(self) -> None:
        assert errors_of(similarity(walk(), 1.0), walk(), alignment="se3").ate_rmse < 1e-9
        assert errors_of(similarity(walk(), 2.0), walk(), alignment="se3").ate_rmse > 0.1

    def test_closed_form_scale_error_of_a_square_under_rigid_alignment(self) -> None:
        corners = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]], float)
        reference = np.tile(np.eye(4), (4, 1, 1))
        reference[:, :3, 3] = corners
        estimate = reference.copy()
        estimate[:, :3, 3] *= 1.1
        errors = errors_of(estimate, reference, alignment="se3")
        assert errors.ate_rmse == pytest.approx(0.1 * np.sqrt(2))
        assert errors.path_length == pytest.approx(6)
        assert errors.ate_percent == pytest.approx(100 * 0.1 * np.sqrt(2) / 6)
        assert errors.rpe_translation == pytest.approx(0.2)
        assert errors.rotation_max_deg == pytest.approx(0, abs=1e-6)

    def test_a_constant_turn_of_the_camera_is_rotation_error_only(self) -> None:
        estimate = walk()
        estimate[:, :3, :3] = estimate[:, :3, :3] @ Rotation.from_rotvec([0, 0, np.radians(3)]).as_matrix()
        errors = errors_of(estimate, walk())
        assert errors.ate_rmse < 1e-9
        assert errors.rotation_mean_deg == pytest.approx(3)

    def test_equals_the_numbers_of_evos_own_programs(self, tmp_path: Path) -> None:
        from evo.core.metrics import PoseRelation, Unit
        from evo.core.sync import associate_trajectories
        from evo.main_ape import ape
        from evo.main_rpe import rpe
        from evo.tools.file_interface import read_tum_trajectory_file

        rng = np.random.default_rng(3)
        noisy = similarity(walk(), 0.5)
        noisy[:, :3, 3] += rng.normal(0, 0.01, (40, 3))
        reference_file = tum.write(tmp_path / "reference.txt", TIME, walk())
        estimate_file = tum.write(tmp_path / "estimate.txt", TIME + 0.004, noisy)
        pair = associate_trajectories(*(read_tum_trajectory_file(str(f)) for f in (reference_file, estimate_file)), max_diff=0.025)
        theirs = ape(*pair, pose_relation=PoseRelation.translation_part, align=True, correct_scale=True).stats
        relative = rpe(*pair, PoseRelation.translation_part, delta=1, delta_unit=Unit.frames).stats  # `ape` aligned the pair
        ours = evaluate.compare(TIME + 0.004, noisy, *tum.read(reference_file))[0]
        assert ours.ate_rmse == pytest.approx(theirs["rmse"], rel=1e-6)
        assert ours.ate_max == pytest.approx(theirs["max"], rel=1e-6)
        assert ours.ate_median == pytest.approx(theirs["median"], rel=1e-6)
        assert ours.rpe_translation == pytest.approx(relative["rmse"], rel=1e-6)

    def test_every_segment_is_aligned_on_its_own(self) -> None:
        estimate, segment = walk().copy(), np.repeat([0, 1], 20).astype(np.int32)
        estimate[20:] = similarity(walk()[20:], 7.0)
        assert errors_of(estimate, walk()).ate_rmse > 0.05
        apart = errors_of(estimate, walk(), segment=segment)
        assert apart.ate_rmse < 1e-9
        assert apart.segments == 2

    @pytest.mark.parametrize("alignment", ["sim3", "se3"])
    def test_a_static_reference_gives_errors_but_no_percentage(self, alignment: str) -> None:
        still = np.tile(np.eye(4), (40, 1, 1))
        estimate = still.copy()
        estimate[::2, 0, 3], estimate[1::2, 0, 3] = 0.01, -0.01
        errors = errors_of(estimate, still, alignment=alignment)
        assert errors.ate_percent is None
        assert errors.ate_rmse == pytest.approx(0.01)
        assert errors.position_spread == pytest.approx(0.01)
        assert errors.rotation_from == "orientations"

    def test_two_static_trajectories_agree(self) -> None:
        still = np.tile(np.eye(4), (10, 1, 1))
        errors = errors_of(similarity(still, 1.0), still)
        assert errors.ate_rmse == pytest.approx(0, abs=1e-12)
        assert errors.rotation_max_deg == pytest.approx(0, abs=1e-5)

    def test_a_straight_line_is_aligned_with_the_help_of_orientations(self) -> None:
        line = np.tile(np.eye(4), (10, 1, 1))
        line[:, 2, 3] = np.arange(10)
        errors = errors_of(similarity(line, 0.1), line)
        assert errors.rotation_from == "orientations"
        assert errors.scale == pytest.approx(10)
        assert errors.ate_rmse < 1e-9
        assert errors.rotation_max_deg < 1e-5

    def test_an_estimate_that_collapsed_to_a_point_is_measured(self) -> None:
        errors = errors_of(np.tile(np.eye(4), (40, 1, 1)), walk())
        assert errors.ate_rmse == pytest.approx(np.sqrt(walk()[:, :3, 3].var(axis=0).sum()))

    def test_poses_are_paired_within_half_a_frame_gap(self) -> None:
        errors = evaluate.compare(TIME + 0.02, walk(), TIME, walk())[0]
        assert errors.frames == 40
        sparse = evaluate.compare(TIME, walk(), TIME[::5], walk()[::5])[0]
        assert (sparse.frames, sparse.frames_reference) == (8, 8)
        with pytest.raises(EstimationError, match="wider tolerance"):
            evaluate.compare(TIME + 0.02, walk(), TIME, walk(), tolerance=0.01)

    def test_nothing_in_common_names_both_spans(self) -> None:
        with pytest.raises(EstimationError, match=r"1000 to 1001\.95 s.*0 to 1\.95 s"):
            evaluate.compare(TIME, walk(), TIME + 1000, walk())

    def test_one_common_pose_is_not_enough(self) -> None:
        with pytest.raises(EstimationError, match="at least two"):
            evaluate.compare(TIME, walk(), TIME[:1], walk()[:1])

    def test_results_are_plain_json(self) -> None:
        assert json.loads(json.dumps(errors_of(walk(), walk()).to_dict()))["alignment"] == "sim3"


Pair = tuple[np.ndarray, np.ndarray]


def depth_pairs(*pairs: Pair) -> Callable[[], Iterator[Pair]]:
    return lambda: iter(pairs)


class TestDepth:
    def test_the_truth_has_no_error(self) -> None:
        depth = np.random.default_rng(0).uniform(1, 5, (8, 9))
        errors = evaluate.compare_depth(depth_pairs((depth, depth)), "metric")
        assert (errors.abs_rel, errors.rmse, errors.delta1, errors.coverage, errors.scale) == (0, 0, 1, 1, 1)

    def test_closed_form_errors_without_alignment(self) -> None:
        reference = np.array([[1.0, 2.0, 4.0, 10.0]])
        errors = evaluate.compare_depth(depth_pairs((np.array([[1.1, 2.6, 7.0, 25.0]]), reference)), "metric")
        assert errors.abs_rel == pytest.approx((0.1 + 0.3 + 0.75 + 1.5) / 4)
        assert errors.rmse == pytest.approx(np.sqrt((0.01 + 0.36 + 9 + 225) / 4))
        assert (errors.delta1, errors.delta2, errors.delta3) == (0.25, 0.5, 0.75)

    def test_one_median_scale_for_the_clip_not_one_per_frame(self) -> None:
        reference = np.random.default_rng(0).uniform(1, 5, (10, 10))
        uniform = evaluate.compare_depth(depth_pairs((reference / 3, reference), (reference / 3, reference)))
        assert uniform.scale == pytest.approx(3, rel=1e-5)
        assert uniform.abs_rel < 1e-5
        flicker = evaluate.compare_depth(depth_pairs((reference, reference), (reference, reference), (reference * 2, reference)))
        assert flicker.scale == pytest.approx(1, rel=1e-5)
        assert flicker.abs_rel == pytest.approx(1 / 3, rel=1e-4)

    def test_the_clip_median_is_the_median_of_all_ratios(self) -> None:
        rng = np.random.default_rng(1)
        pairs = [(rng.uniform(1, 5, (20, 21)), rng.uniform(1, 5, (20, 21))) for _ in range(5)]
        expected = np.median(np.concatenate([(r / d).ravel() for d, r in pairs]))
        assert evaluate.compare_depth(depth_pairs(*pairs)).scale == pytest.approx(expected, rel=2e-3)

    def test_the_least_squares_scale_minimises_the_squared_relative_error(self) -> None:
        rng = np.random.default_rng(2)
        d, r = rng.uniform(1, 5, (2, 30, 30))
        scale = evaluate.compare_depth(depth_pairs((d, r)), "scale").scale

        def cost(s: float) -> float:
            return float((((s * d - r) / r) ** 2).sum())

        assert cost(scale) < min(cost(scale * 1.001), cost(scale * 0.999))

    def test_scale_and_shift_of_inverse_depth_are_found_again_over_the_clip(self) -> None:
        rng = np.random.default_rng(3)
        references = [rng.uniform(1, 5, (20, 21)) for _ in range(3)]
        pairs = [(1 / (0.5 / reference + 0.1), reference) for reference in references]
        errors = evaluate.compare_depth(depth_pairs(*pairs), "scale_shift_disp")
        assert (errors.scale, errors.shift) == (pytest.approx(2), pytest.approx(-0.2))
        assert errors.abs_rel < 1e-9
        assert errors.delta1 == 1

    def test_scale_and_shift_equal_a_direct_least_squares_fit(self) -> None:
        rng = np.random.default_rng(4)
        d, r = rng.uniform(1, 5, (2, 30, 30))
        errors = evaluate.compare_depth(depth_pairs((d[:15], r[:15]), (d[15:], r[15:])), "scale_shift_disp")
        slope, intercept = np.polyfit(1 / d.ravel(), 1 / r.ravel(), 1)
        assert (errors.scale, errors.shift) == (pytest.approx(slope), pytest.approx(intercept))
        aligned = 1 / np.maximum(slope / d + intercept, 1 / r.max())
        assert errors.abs_rel == pytest.approx((np.abs(aligned - r) / r).mean())

    def test_an_aligned_depth_beyond_infinity_is_held_at_the_farthest_reference(self) -> None:
        reference = np.array([[1.0, 2.0, 4.0, 8.0]])
        estimate = np.array([[1.0, 2.0, 4.0, 1000.0]])
        errors = evaluate.compare_depth(depth_pairs((estimate, reference)), "scale_shift_disp")
        assert np.isfinite(errors.rmse)

    def test_estimates_of_one_depth_get_a_scale_and_no_shift(self) -> None:
        errors = evaluate.compare_depth(depth_pairs((np.full((4, 4), 2.0), np.full((4, 4), 6.0))), "scale_shift_disp")
        assert (errors.shift, errors.abs_rel) == (0, pytest.approx(0))

    def test_unknown_pixels_of_either_side_do_not_count_and_coverage_says_so(self) -> None:
        estimate = np.array([[1.0, np.nan, 3.0, 0.0, 5.0]])
        reference = np.array([[1.0, 2.0, np.inf, 4.0, np.nan]])
        errors = evaluate.compare_depth(depth_pairs((estimate, reference)), "metric")
        assert (errors.pixels, errors.abs_rel) == (1, 0)
        assert errors.coverage == pytest.approx(1 / 3)

    def test_nothing_known_is_an_error(self) -> None:
        with pytest.raises(EstimationError, match="no pixel"):
            evaluate.compare_depth(depth_pairs((np.full((2, 2), np.nan), np.ones((2, 2)))))

    def test_maps_are_read_in_each_format(self, tmp_path: Path) -> None:
        depth = np.array([[1.5, 2.0], [0.0, 3.25]], np.float32)
        expected = np.array([[1.5, 2.0], [np.nan, 3.25]], np.float32)
        np.save(tmp_path / "000001.npy", depth)
        np.savez(tmp_path / "000002.npz", depth=depth)
        millimetres = (depth * 1000).astype(np.uint16)
        cv2.imwrite(str(tmp_path / "depth_000003.png"), millimetres)
        folder = evaluate.DepthFolder(tmp_path)
        assert folder.frames == [1, 2, 3]
        for frame in folder.frames:
            np.testing.assert_allclose(folder.read(frame), expected)
        np.testing.assert_allclose(evaluate.DepthFolder(tmp_path, png_unit=1 / 5000).read(3), expected / 5, rtol=1e-6)

    def test_the_largest_png_value_means_no_reading(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "0.png"), np.array([[65535, 1000]], np.uint16))
        np.testing.assert_allclose(evaluate.DepthFolder(tmp_path).read(0), [[np.nan, 1.0]])

    def test_maps_belong_to_images_of_the_same_name(self, tmp_path: Path) -> None:
        np.save(tmp_path / "left-9.npy", np.ones((2, 2)))
        assert evaluate.DepthFolder(tmp_path, frame_stems=("right-1", "left-9")).frames == [1]

    @pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY"])
    def test_a_broken_map_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "000000.npy").write_bytes(content)
        with pytest.raises(SourceError, match=r"000000\.npy"):
            evaluate.DepthFolder(tmp_path).read(0)

    def test_a_folder_without_maps_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="holds no depth map"):
            evaluate.DepthFolder(tmp_path)

    def test_resizing_takes_the_nearest_pixel_and_never_mixes(self) -> None:
        depth = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
        doubled = evaluate.resize_nearest(depth, 4, 4)
        np.testing.assert_array_equal(doubled, np.kron(depth, np.ones((2, 2))))
        np.testing.assert_array_equal(evaluate.resize_nearest(doubled, 2, 2), depth)
        with pytest.raises(SourceError, match="same picture"):
            evaluate.resize_nearest(depth, 4, 8)


class TestReferences:
    def test_kitti_lines_are_matrices_by_frame_index(self, tmp_path: Path) -> None:
        poses = walk(count=5)
        np.savetxt(tmp_path / "poses.txt", poses[:, :3].reshape(5, 12))
        reference = evaluate.read_reference(tmp_path / "poses.txt")
        assert reference.time is None
        np.testing.assert_allclose(reference.cam2world, poses)

    @pytest.mark.parametrize("content", ["", "1 2 3", " ".join(["1"] * 12) + "\n1 2 3", " ".join(["nan"] * 12)])
    def test_other_files_are_refused_by_name(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "poses.txt").write_text(content)
        with pytest.raises(SourceError, match=r"poses\.txt"):
            evaluate.read_reference(tmp_path / "poses.txt")

    def test_a_missing_file_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"nowhere\.txt"):
            evaluate.read_reference(tmp_path / "nowhere.txt")

    def test_focal_error_is_relative_and_free_of_resolution(self) -> None:
        half = synthetic.camera(320, 180, 60)
        full = synthetic.camera(640, 360, 60)
        assert evaluate.focal_error_percent(half, full) == pytest.approx(0, abs=1e-12)
        wide = Calibration("pinhole", half.params * [1.02, 1.02, 1, 1, 1, 1, 1, 1, 1], 320, 180)
        assert evaluate.focal_error_percent(wide, full) == pytest.approx(2)


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return synthetic.scene("room", n_frames=12, width=64, height=36, supersample=1)


@pytest.fixture(scope="module")
def truth(clip: SyntheticClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_truth(clip, tmp_path_factory.mktemp("truth"), depth_every=3)


class TestStoredVideo:
    def test_known_errors_come_back(self, tmp_path: Path, clip: SyntheticClip, truth: Path) -> None:
        store_clip(VideoStore(tmp_path), clip, cam2world=similarity(clip.cam2world, 0.5), focal_factor=1.01, depth_factor=0.5)
        found = evaluate.evaluate_video(
            tmp_path, VIDEO, truth / "groundtruth.txt", depth_dir=truth / "depth", intrinsics=truth / "intrinsics.json"
        )
        assert found.trajectory.ate_rmse < 1e-6
        assert found.trajectory.scale == pytest.approx(2)
        assert found.focal_error_percent == pytest.approx(1)
        assert found.depth is not None
        assert found.depth.frames == 4
        assert found.depth.scale == pytest.approx(2, rel=1e-3)  # float16 in the store
        assert found.depth.abs_rel < 1e-3
        assert json.loads(json.dumps(found.to_dict()))["depth"]["alignment"] == "median"

    def test_untracked_frames_are_left_out(self, tmp_path: Path, clip: SyntheticClip, truth: Path) -> None:
        tracked = np.arange(12) != 5
        wrong = clip.cam2world.copy()
        wrong[5] = np.eye(4)
        store_clip(VideoStore(tmp_path), clip, cam2world=wrong, tracked=tracked)
        found = evaluate.evaluate_video(tmp_path, VIDEO, truth / "groundtruth.txt")
        assert found.trajectory.frames == 11
        assert found.trajectory.ate_rmse < 1e-6

    def test_kitti_poses_are_matched_by_source_index(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store_clip(VideoStore(tmp_path / "store"), clip)
        np.savetxt(tmp_path / "kitti.txt", clip.cam2world[:, :3].reshape(-1, 12))
        assert evaluate.evaluate_video(tmp_path / "store", VIDEO, tmp_path / "kitti.txt").trajectory.ate_rmse < 1e-9

    def test_a_reference_of_another_video_is_named(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store_clip(VideoStore(tmp_path / "store"), clip)
        tum.write(tmp_path / "other.txt", clip.time + 500, clip.cam2world)
        with pytest.raises(EstimationError, match=r"room-0a1b2c3d against .*other\.txt: no pose"):
            evaluate.evaluate_video(tmp_path / "store", VIDEO, tmp_path / "other.txt")

    def test_depth_of_another_video_is_named(self, tmp_path: Path, clip: SyntheticClip, truth: Path) -> None:
        store_clip(VideoStore(tmp_path / "store"), clip)
        (tmp_path / "depth").mkdir()
        np.save(tmp_path / "depth" / "000900.npy", np.ones((36, 64)))
        with pytest.raises(EstimationError, match="900 to 900"):
            evaluate.evaluate_video(tmp_path / "store", VIDEO, truth / "groundtruth.txt", depth_dir=tmp_path / "depth")
