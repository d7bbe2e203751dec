"""What the viewer draws, without a browser: points from depth, filters, paths, and other trajectories in the same world."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stored_clip import FINGERPRINT, VIDEO, second_generation, store_clip
from vipe_dag import synthetic
from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError, StoreError
from vipe_dag.evaluate import Reference
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import lens
from vipe_dag.synthetic.clip import SyntheticClip
from vipe_dag.synthetic.scenes import BARREL, FISHEYE
from vipe_dag.viewer.cloud import CloudFilter, chosen, depth_steps, frame_cloud, pixel_step_for, rays, sparse_points
from vipe_dag.viewer.comparison import Similarity, generation_onto, reference_paths, similarity_onto
from vipe_dag.viewer.paths import frustum_lines, path_lines, segment_colour, up_direction
from vipe_dag.viewer.video import ViewedVideo, generation_names, viewable

EVERY_PIXEL = CloudFilter(max_step=None, pixel_step=1)
MOVE = Similarity(2.5, Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix(), np.array([1.0, -2.0, 0.5]))


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return synthetic.scene("room", n_frames=8, width=80, height=45, supersample=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, clip: SyntheticClip) -> VideoStore:
    made = VideoStore(tmp_path_factory.mktemp("store"))
    store_clip(made, clip)
    return made


@pytest.mark.parametrize(("model", "distortion"), [("pinhole", (0.0,) * 5), ("brown", BARREL), ("fisheye", FISHEYE)])
def test_a_ray_leads_back_to_its_pixel(model: str, distortion: tuple[float, ...]) -> None:
    camera = Calibration(model, np.array([90.0, 95.0, 79.5, 44.5, *distortion]), 160, 90)
    u, v = np.meshgrid(np.arange(0.0, 160, 7), np.arange(0.0, 90, 7))
    pixels, _ = lens.project(camera, 3 * rays(camera, u, v))
    assert np.abs(pixels - np.stack([u, v], axis=-1)).max() < 1e-6


def test_a_fisheye_pixel_beyond_90_degrees_has_no_ray() -> None:
    camera = Calibration("fisheye", np.array([40.0, 40.0, 79.5, 44.5, *[0.0] * 5]), 160, 90)
    assert np.isnan(rays(camera, np.array([159.0]), np.array([44.5]))[0, :2]).all()


def test_points_project_into_another_frame_at_the_depth_that_it_has(clip: SyntheticClip) -> None:
    depth, full = clip.truth(2)[0], np.full((45, 80), 255, np.uint8)
    cloud = frame_cloud(depth, full, full > 0, clip.rgb(2), clip.camera, clip.cam2world[2], CloudFilter(pixel_step=1))
    world2cam = np.linalg.inv(clip.cam2world[6])
    local = cloud.points @ world2cam[:3, :3].T + world2cam[:3, 3]
    pixels, _ = lens.project(clip.camera, local)
    u, v = np.round(pixels).astype(int).T
    inside = (u >= 0) & (u < 80) & (v >= 0) & (v < 45) & (local[:, 2] > 0)
    there = clip.truth(6)[0][v[inside], u[inside]]
    assert inside.mean() > 0.5
    assert np.median(np.abs(local[inside, 2] / there - 1)) < 0.01


def test_a_point_has_the_colour_of_its_pixel_in_a_picture_of_any_size() -> None:
    camera = Calibration("pinhole", np.array([4.0, 4.0, 3.5, 1.5, *[0.0] * 5]), 8, 4)
    depth = np.full((2, 4), np.nan, np.float32)
    depth[1, 2] = 2.0
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[6, 10] = (1, 2, 3)
    cloud = frame_cloud(depth, np.full((2, 4), 9, np.uint8), np.ones((2, 4), bool), rgb, camera, np.eye(4), EVERY_PIXEL)
    assert cloud.colours.tolist() == [[1, 2, 3]]
    assert cloud.points == pytest.approx(np.array([[0.5, 0.5, 2.0]]))


def test_filters_drop_what_is_unknown_doubtful_completed_or_an_edge() -> None:
    depth = np.full((4, 6), 2.0, np.float32)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, -1.0
    confidence, measured = np.full((4, 6), 100, np.uint8), np.ones((4, 6), bool)
    confidence[1, 0], measured[1, 1] = 99, False

    def left(choice: CloudFilter) -> int:
        return len(chosen(depth, confidence, measured, choice)[0])

    assert left(EVERY_PIXEL) == 21
    assert left(CloudFilter(100, False, None, 1)) == 20
    assert left(CloudFilter(0, True, None, 1)) == 20
    depth[:, 3:] = 3.0
    assert left(CloudFilter(0, False, 0.1, 1)) == 21 - 6  # three known pixels on either side


def test_a_step_of_depth_is_relative_to_the_nearer_side() -> None:
    assert depth_steps(np.array([[2.0, 2.0, 3.0, np.nan]])).tolist() == [[0.0, 0.5, 0.5, 0.0]]


@pytest.mark.parametrize(("frames", "budget"), [(1, 10**6), (24, 600_000), (1000, 4_000_000)])
def test_the_step_of_pixels_keeps_a_cloud_within_its_budget(frames: int, budget: int) -> None:
    step = pixel_step_for(640, 360, frames, budget)
    assert frames * (640 / step) * (360 / step) <= budget
    assert step == 1 or frames * (640 / (step - 1)) * (360 / (step - 1)) > budget


def test_sparse_points_stand_where_inverse_depth_says() -> None:
    camera = Calibration("pinhole", np.array([10.0, 10.0, 5.0, 5.0, *[0.0] * 5]), 11, 11)
    uv = np.array([[[5.0, 5.0], [15.0, 5.0]]], np.float32)
    found = sparse_points(uv, np.array([[0.5, 0.25]], np.float32), np.array([[True, True]]), camera, np.eye(4))
    assert found.tolist() == [[0, 0, 2], [4, 0, 4]]


def test_a_path_skips_untracked_frames_and_never_joins_segments() -> None:
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = np.arange(6)
    lines, colours = path_lines(poses, np.array([1, 0, 1, 1, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1], np.int32))
    assert lines[:, :, 0].tolist() == [[0, 2], [2, 3], [4, 5]]
    assert colours[:, 0].tolist() == [list(segment_colour(0))] * 2 + [list(segment_colour(1))]


def test_a_frustum_ends_in_the_corners_of_the_picture() -> None:
    camera = Calibration("pinhole", np.array([10.0, 10.0, 9.5, 4.5, *[0.0] * 5]), 20, 10)
    lines = frustum_lines(np.eye(4)[None], camera, 2.0)
    assert len(lines) == 8
    assert lines[2, 1].tolist() == [2.0, 1.0, 2.0]


def test_up_is_against_the_cameras_y_axis() -> None:
    assert up_direction(np.eye(4)[None]).tolist() == [0, -1, 0]


def test_a_similarity_is_found_again(clip: SyntheticClip) -> None:
    found = similarity_onto(clip.cam2world, MOVE.poses(clip.cam2world))
    assert found.scale == pytest.approx(MOVE.scale)
    assert found.rotation == pytest.approx(MOVE.rotation)
    assert found.translation == pytest.approx(MOVE.translation)


@pytest.mark.parametrize("timed", [True, False])
def test_a_reference_is_moved_onto_the_cameras_by_time_or_by_frame(store: VideoStore, clip: SyntheticClip, timed: bool) -> None:
    video = ViewedVideo(store, VIDEO)
    reference = Reference("truth.txt", clip.time if timed else None, MOVE.poses(clip.cam2world))
    (path,) = reference_paths(video, reference)
    assert path == pytest.approx(clip.cam2world[:, :3, 3])


def test_a_reference_of_another_time_is_refused_with_what_to_do(store: VideoStore, clip: SyntheticClip) -> None:
    with pytest.raises(EstimationError, match=r"truth.txt: fewer than two .* timestamps of this source"):
        reference_paths(ViewedVideo(store, VIDEO), Reference("truth.txt", clip.time + 100, clip.cam2world))


def test_another_generation_is_moved_onto_this_one(tmp_path: Path, clip: SyntheticClip) -> None:
    store = VideoStore(tmp_path)
    store_clip(store, clip)
    second_generation(store, MOVE.poses(clip.cam2world))
    assert list(generation_names(store, VIDEO).values()) == [FINGERPRINT]
    current, first = ViewedVideo(store, VIDEO), ViewedVideo(store, VIDEO, FINGERPRINT)
    move = generation_onto(first, current)[0]
    assert move.poses(first.cam2world) == pytest.approx(current.cam2world)


def test_depth_that_does_not_agree_with_the_sparse_points_is_not_shown_with_them(store: VideoStore) -> None:
    assert ViewedVideo(store, VIDEO).depth_asset == "aligned_depth"
    assert ViewedVideo(store, VIDEO, FINGERPRINT).depth_asset is None  # stored_clip's sparse points are all at depth 1


def test_untracked_frames_have_no_points(tmp_path: Path, clip: SyntheticClip) -> None:
    store = VideoStore(tmp_path)
    store_clip(store, clip, tracked=np.arange(8) != 3)
    video = ViewedVideo(store, VIDEO)
    assert len(video.cloud(3, EVERY_PIXEL)) == 0
    assert len(video.cloud(4, EVERY_PIXEL)) == 80 * 45


def test_without_a_name_the_first_video_with_poses_is_shown(store: VideoStore) -> None:
    assert viewable(store, None) == VIDEO


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing to view, the store is empty; .*vipe-dag run SOURCE"):
        viewable(VideoStore(tmp_path / "empty"), None)


def test_it_works_without_torch_and_opencv(store: VideoStore) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['cv2'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "import vipe_dag.viewer.app, vipe_dag.viewer.comparison\n"
        "from vipe_dag.store import VideoStore; from vipe_dag.viewer.video import ViewedVideo\n"
        "from vipe_dag.viewer.cloud import CloudFilter\n"
        "print(len(ViewedVideo(VideoStore(sys.argv[1]), sys.argv[2]).cloud(0, CloudFilter())))"
    )
    found = subprocess.run([sys.executable, "-c", program, store.root, VIDEO], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 50
