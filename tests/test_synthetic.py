"""The synthetic worlds are exact: colours, depth, flow and cameras of one clip agree with each other and with OpenCV."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vipe_dag import synthetic
from vipe_dag.calibration import Calibration
from vipe_dag.export import tum
from vipe_dag.synthetic import lens, places, trajectory
from vipe_dag.synthetic.clip import SyntheticClip
from vipe_dag.synthetic.scenes import BARREL, FISHEYE

LENSES = [("pinhole", (0.0,) * 5), ("brown", BARREL), ("fisheye", FISHEYE)]


@pytest.fixture(scope="module")
def room() -> SyntheticClip:
    return synthetic.scene("room", n_frames=24, width=320, height=180)


@pytest.fixture(scope="module")
def moving() -> SyntheticClip:
    return synthetic.scene("room_moving", width=192, height=108, supersample=1)


def world_points(clip: SyntheticClip, row: int) -> np.ndarray:
    depth = clip.truth(row)[0].astype(float)
    v, u = np.mgrid[: clip.camera.height, : clip.camera.width]
    x, y = lens.undistort(clip.camera, u, v)
    points = np.stack([x * depth, y * depth, depth], axis=-1)
    return points @ clip.cam2world[row, :3, :3].T + clip.cam2world[row, :3, 3]


@pytest.mark.parametrize("name", ["room", "room_barrel", "room_fisheye", "street"])
def test_points_of_one_frame_project_into_another_where_the_flow_says(name: str) -> None:
    clip = synthetic.scene(name, n_frames=10, width=160, height=90, supersample=1)
    flow, visible = clip.flow(2, 6)
    world2cam = np.linalg.inv(clip.cam2world[6])
    pixels, _ = lens.project(clip.camera, world_points(clip, 2) @ world2cam[:3, :3].T + world2cam[:3, 3])
    v, u = np.mgrid[: clip.camera.height, : clip.camera.width]
    error = np.abs(pixels - np.stack([u, v], axis=-1) - flow)[visible]
    assert visible.mean() > 0.4
    assert error.max() < 2e-3


def test_flow_there_and_back_is_the_identity(room: SyntheticClip) -> None:
    there, visible = room.flow(0, 3)
    back, _ = room.flow(3, 0)
    v, u = np.mgrid[: room.camera.height, : room.camera.width].astype(np.float32)
    returned = cv2.remap(back, u + there[..., 0], v + there[..., 1], cv2.INTER_LINEAR) + there
    length = np.linalg.norm(returned, axis=-1)[visible]
    assert np.median(length) < 1e-3
    assert np.mean(length < 0.05) > 0.93  # the rest lies within a pixel of a depth edge, where interpolating `back` mixes two surfaces


@pytest.mark.parametrize("name", ["room", "room_moving", "room_barrel"])
def test_visible_points_keep_their_colour_under_the_flow(name: str) -> None:
    clip = synthetic.scene(name, n_frames=24, width=320, height=180)
    flow, visible = clip.flow(4, 6)
    v, u = np.mgrid[: clip.camera.height, : clip.camera.width].astype(np.float32)
    warped = cv2.remap(clip.rgb(6), u + flow[..., 0], v + flow[..., 1], cv2.INTER_CUBIC)
    difference = np.abs(warped.astype(float) - clip.rgb(4)).mean(axis=-1)
    still = np.abs(clip.rgb(6).astype(float) - clip.rgb(4)).mean(axis=-1)
    assert visible.mean() > 0.8
    assert np.median(difference[visible]) < 4
    assert difference[visible].mean() < 0.4 * still[visible].mean()


def test_depth_lies_on_the_walls(room: SyntheticClip) -> None:
    points = world_points(room, 0)
    (hx, hz), (top, bottom) = places.ROOM_HALF, (places.CEILING, places.FLOOR)
    inside = (np.abs(points[..., 0]) < hx + 1e-4) & (np.abs(points[..., 2]) < hz + 1e-4)
    assert (inside & (points[..., 1] > top - 1e-4) & (points[..., 1] < bottom + 1e-4)).all()
    assert np.isclose(points[0, 160, 1], top, atol=1e-4)  # the upper edge of the picture shows the ceiling


def test_depth_does_not_depend_on_the_sampling_of_colours(room: SyntheticClip) -> None:
    picture = synthetic.render(room.worlds[0], room.cam2world[5], room.camera, supersample=1)
    np.testing.assert_array_equal(picture.z_depth, room.truth(5)[0])


@pytest.mark.parametrize("name", sorted(set(synthetic.SCENES) - {"plain"}))
def test_every_pixel_of_every_scene_shows_something_with_detail(name: str) -> None:
    clip = synthetic.scene(name, width=192, height=108)
    for row in (0, len(clip) // 2, len(clip) - 1):
        rgb, depth, _ = (picture := clip.picture(row)).rgb, picture.z_depth, picture.body
        assert np.isfinite(depth).all()
        assert depth.min() > 0.3
        grey = rgb.mean(axis=-1).astype(np.float32)
        blocks = grey[:96, :192].reshape(6, 16, 12, 16).std(axis=(1, 3))
        assert np.quantile(blocks, 0.1) > 3
        assert 40 < grey.mean() < 215


def test_the_figure_covers_the_asked_share_and_moves_by_itself(moving: SyntheticClip) -> None:
    shares = [float((moving.truth(row)[1] > 0).mean()) for row in range(0, 90, 6)]
    assert abs(np.mean(shares) - 0.2) < 0.03
    assert min(shares) > 0.13
    flow, visible = moving.flow(10, 13)
    static = replace(moving, worlds=(synthetic.room(),))
    rigid, _ = static.flow(10, 13)
    body = (moving.truth(10)[1] > 0) & visible
    assert np.median(np.linalg.norm(flow - rigid, axis=-1)[body]) > 2
    background = (moving.truth(10)[1] == 0) & visible
    np.testing.assert_allclose(flow[background], rigid[background], atol=1e-3)


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_projection_agrees_with_opencv(model: str, distortion: tuple[float, ...]) -> None:
    camera = synthetic.camera(640, 480, 70, model, distortion)
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.7, 0.7, (200, 2)), np.ones(200)]) * rng.uniform(1, 9, (200, 1))
    matrix = np.array([[camera.params[0], 0, camera.params[2]], [0, camera.params[1], camera.params[3]], [0, 0, 1]])
    zero = np.zeros(3)
    if model == "fisheye":
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, camera.params[4:8])[0]
    else:
        expected = cv2.projectPoints(points, zero, zero, matrix, camera.params[4:])[0]
    pixels, z = lens.project(camera, points)
    np.testing.assert_allclose(pixels, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(z, points[:, 2])


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_undistorting_inverts_projection_over_the_whole_picture(model: str, distortion: tuple[float, ...]) -> None:
    camera = synthetic.camera(640, 480, 75, model, distortion)
    v, u = np.mgrid[:480:13, :640:17].astype(float)
    np.testing.assert_allclose(np.stack(lens.distort(camera, *lens.undistort(camera, u, v))), np.stack([u, v]), atol=1e-9)


def test_a_lens_that_folds_inside_the_picture_is_refused() -> None:
    folding = Calibration("brown", np.array([200, 200, 159.5, 119.5, -0.9, 0, 0, 0, 0]), 320, 240)
    with pytest.raises(ValueError, match="milder distortion"):
        lens.undistort(folding, *np.meshgrid(np.arange(320.0), np.arange(240.0)))


@pytest.mark.parametrize("name", sorted(synthetic.SCENES))
def test_cameras_are_rotations_that_move_smoothly_inside_a_shot(name: str) -> None:
    clip = synthetic.scene(name, width=64, height=36)
    rotation, position = clip.cam2world[:, :3, :3], clip.cam2world[:, :3, 3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    for shot in np.unique(clip.shot):
        steps = np.linalg.norm(np.diff(position[clip.shot == shot], axis=0), axis=1)
        assert steps.max(initial=0) < 1.0


def test_special_paths_are_what_their_names_say() -> None:
    def travelled(name: str) -> float:
        return synthetic.scene(name, width=64, height=36).path_length

    assert travelled("rotation") == travelled("static") == 0
    assert 2 < travelled("room") < 6
    assert travelled("street") > 30


def test_looking_at_a_point_puts_it_on_the_optical_axis() -> None:
    pose = trajectory.look_at([1.0, -0.5, 2.0], [0.0, 0.3, 5.0])
    seen = np.linalg.inv(pose) @ [0.0, 0.3, 5.0, 1.0]
    np.testing.assert_allclose(seen[:2], 0, atol=1e-12)
    assert pose[1, 1] > 0.9  # upright: the camera's y points down with the world's


def test_a_cut_has_no_flow_across() -> None:
    clip = synthetic.scene("cut", width=64, height=36)
    with pytest.raises(ValueError, match="cut"):
        clip.flow(0, len(clip) - 1)


def test_a_clip_longer_than_its_path_is_refused() -> None:
    with pytest.raises(ValueError, match="path ends"):
        synthetic.scene("street", n_frames=1000, fps=10)


def test_the_same_row_has_the_same_pixels_whatever_was_rendered_before() -> None:
    clip = synthetic.scene("room", n_frames=8, width=128, height=72, noise=3.0, exposure=0.1)
    first = clip.rgb(5)
    clip.rgb(0)
    np.testing.assert_array_equal(clip.rgb(5), first)
    np.testing.assert_array_equal(clip.frames(slice(4, 7)).rgb(1), first)


def test_noise_has_the_asked_deviation() -> None:
    clean = synthetic.scene("room", n_frames=2, width=128, height=72)
    noisy = synthetic.scene("room", n_frames=2, width=128, height=72, noise=4.0)
    middle = (clean.rgb(0) > 30) & (clean.rgb(0) < 225)
    assert abs((noisy.rgb(0).astype(float) - clean.rgb(0))[middle].std() - 4) < 0.3


def test_the_plain_room_has_little_detail_and_the_same_shape() -> None:
    plain, room = (synthetic.scene(name, n_frames=2, width=160, height=90, noise=0.0) for name in ("plain", "room"))
    detail = [cv2.Laplacian(clip.rgb(0), cv2.CV_32F).std() for clip in (plain, room)]
    assert detail[0] < 0.5 * detail[1]
    np.testing.assert_array_equal(plain.truth(0)[0], room.truth(0)[0])


def test_the_hall_looks_the_same_one_bay_further() -> None:
    clip = synthetic.scene("hall", n_frames=2, width=160, height=120)
    poses = np.stack([clip.cam2world[0], clip.cam2world[0]])
    poses[1, 2, 3] += places.BAY
    ahead = replace(clip, cam2world=poses)
    middle = (slice(None), slice(0, 40))
    assert np.abs(ahead.rgb(0).astype(float) - ahead.rgb(1))[middle].mean() < 1


def test_the_straight_drive_neither_turns_nor_sways() -> None:
    clip = synthetic.scene("straight", width=64, height=36)
    assert np.ptp(clip.cam2world[:, 0, 3]) == 0
    assert np.abs(np.diff(clip.cam2world[:, 2, 3]) - 0.6).max() < 1e-9


def test_a_shaken_exposure_blurs_about_its_own_camera() -> None:
    clip = synthetic.scene("shake", n_frames=12, width=160, height=120, exposure=0.0)
    assert clip.shutter is not None
    np.testing.assert_allclose(clip.shutter[:, clip.shutter.shape[1] // 2], clip.cam2world, atol=1e-12)
    row = int(np.argmax(np.abs(clip.shutter[:, 0] - clip.cam2world)[:, :3, :3].max(axis=(1, 2))))
    blurred, crisp = (cv2.Laplacian(one.rgb(row), cv2.CV_32F).std() for one in (clip, replace(clip, shutter=None)))
    assert blurred < 0.8 * crisp


def test_the_exposure_of_the_shaken_clip_varies() -> None:
    clip = synthetic.scene("shake", n_frames=24, width=64, height=48, supersample=1)
    brightness = [clip.rgb(row).mean() / replace(clip, exposure=0.0).rgb(row).mean() for row in (0, 13)]
    assert brightness[1] > 1.1 * brightness[0]


def test_the_mp4_is_h264_with_exact_timestamps_and_faithful_pixels(tmp_path: Path) -> None:
    import av

    clip = synthetic.scene("room", n_frames=6, width=128, height=72, fps=12.5)
    path = synthetic.write_mp4(clip, tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = list(container.decode(video=0))
    assert [float(frame.time) for frame in frames] == pytest.approx(clip.time)
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
    grey = np.abs(decoded.mean(axis=-1) - np.stack([clip.rgb(row) for row in range(6)]).mean(axis=-1))
    assert grey.mean() < 3


def test_an_odd_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sizes"):
        synthetic.write_mp4(synthetic.scene("room", n_frames=2, width=63, height=36), tmp_path / "clip.mp4")


def test_a_clip_is_the_same_video_each_time_it_is_written(tmp_path: Path) -> None:
    clip = synthetic.scene("room", n_frames=12, width=160, height=90, supersample=1)
    assert len({synthetic.write_mp4(clip, tmp_path / f"{n}.mp4").read_bytes() for n in range(6)}) == 1
    assert not (tmp_path / "clip.mp4").exists()


def test_the_truth_on_disk_is_the_truth_in_memory(tmp_path: Path, room: SyntheticClip) -> None:
    synthetic.write_truth(room, tmp_path, depth_every=10)
    time, cam2world = tum.read(tmp_path / "groundtruth.txt")
    np.testing.assert_allclose(time, room.time, atol=1e-9)
    np.testing.assert_allclose(cam2world, room.cam2world, atol=1e-7)
    assert sorted(path.name for path in (tmp_path / "depth").iterdir()) == ["000000.npy", "000010.npy", "000020.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "depth" / "000010.npy"), room.truth(10)[0])
    content = json.loads((tmp_path / "intrinsics.json").read_text())
    np.testing.assert_array_equal(Calibration.from_json(content, "truth").params, room.camera.params)
