"""COLMAP exports: COLMAP itself reads them, poses and lenses come back, and every observation was measured where the point is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from exported_clip import VIDEO, Result, make_result
from vipe_dag.calibration import Calibration
from vipe_dag.evaluate.trajectory import compare
from vipe_dag.export import export_video
from vipe_dag.export.colmap import camera_of
from vipe_dag.export.estimate import estimate_of
from vipe_dag.export.tracks import Tracks, tracks_of
from vipe_dag.sequence import luma


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("pictures"), scene="room_barrel", as_pictures=True)


@pytest.fixture(scope="module")
def out(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_video(result.store, VIDEO, "colmap", tmp_path_factory.mktemp("colmap") / "out").path


@pytest.fixture(scope="module")
def tracks(result: Result) -> Tracks:
    estimate = estimate_of(result.store, VIDEO)
    return tracks_of(estimate.poses, estimate.working, result.store.frames(VIDEO), 0)


def read(out: Path, number: int = 0) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(out / "sparse" / str(number))


def poses_of(model: pycolmap.Reconstruction) -> np.ndarray:
    """(I, 4, 4) cam2world by id."""
    poses = []
    for number in sorted(model.images):
        world2cam = np.vstack([model.images[number].cam_from_world().matrix(), [0, 0, 0, 1]])
        poses.append(np.linalg.inv(world2cam))
    return np.array(poses)


def residuals(model: pycolmap.Reconstruction) -> np.ndarray:
    """Distances in pixels of all observations from the projections of their points, as COLMAP computes them."""
    found = []
    for point in model.points3D.values():
        for element in point.track.elements:
            image = model.images[element.image_id]
            found.append(np.linalg.norm(image.project_point(point.xyz) - image.points2D[element.point2D_idx].xy))
    return np.array(found)


class TestModel:
    def test_poses_come_back(self, result: Result, out: Path) -> None:
        np.testing.assert_allclose(poses_of(read(out)), result.clip.cam2world, atol=1e-6)

    def test_the_camera_is_that_of_the_source_counted_from_the_corner(self, result: Result, out: Path) -> None:
        (camera,) = read(out).cameras.values()
        assert (camera.model_name, camera.width, camera.height) == ("PINHOLE", result.clip.camera.width, result.clip.camera.height)
        np.testing.assert_allclose(camera.params, result.clip.camera.params[:4] + np.array([0, 0, 0.5, 0.5]), atol=1e-6)

    def test_text_says_the_same_as_binary(self, result: Result, out: Path, tmp_path: Path) -> None:
        text = export_video(result.store, VIDEO, "colmap", tmp_path / "out", text=True).path
        assert sorted(path.name for path in (text / "sparse" / "0").iterdir()) == ["cameras.txt", "images.txt", "points3D.txt"]
        binary, plain = read(out), read(text)
        np.testing.assert_allclose(poses_of(plain), poses_of(binary), atol=1e-12)
        np.testing.assert_allclose(residuals(plain), residuals(binary), atol=1e-9)
        assert {number: point.xyz.tolist() for number, point in plain.points3D.items()} == {
            number: point.xyz.tolist() for number, point in binary.points3D.items()
        }

    def test_every_image_is_there(self, of_pictures: Result, tmp_path: Path) -> None:
        out = export_video(of_pictures.store, VIDEO, "colmap", tmp_path / "out").path
        folder = Path(of_pictures.source.uri)
        for image in read(out).images.values():
            assert (out / "images" / image.name).read_bytes() == (folder / image.name).read_bytes()

    def test_a_segment_is_a_model_and_a_lost_frame_is_in_none(self, tmp_path: Path) -> None:
        tracked, segment = np.array([1, 0, 1, 1, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1])
        result = make_result(tmp_path, tracked=tracked, segment=segment)
        written = export_video(result.store, VIDEO, "colmap", tmp_path / "out")
        assert [sorted(read(written.path, number).images) for number in (0, 1)] == [[1, 3, 4], [5, 6]]
        assert written.notes[0] == "1 of 6 frames have no pose and are left out"
        assert not read(written.path, 1).points3D

    @pytest.mark.parametrize(
        ("model", "distortion", "name"),
        [
            ("brown", (-0.2, 0.05, 1e-3, -1e-3, 0.0), "OPENCV"),
            ("brown", (-0.2, 0.05, 1e-3, -1e-3, 0.01), "FULL_OPENCV"),
            ("fisheye", (-0.03, 0.006, -0.002, 0.0004, 0.0), "OPENCV_FISHEYE"),
        ],
    )
    def test_a_lens_bends_rays_in_colmap_as_it_does_here(self, model: str, distortion: tuple[float, ...], name: str) -> None:
        from vipe_dag.synthetic.lens import distort

        camera = Calibration(model, np.array([300, 310, 320, 180, *distortion]), 640, 360)
        theirs = pycolmap.Camera(model=name, width=640, height=360, params=camera_of(camera)[1])
        assert camera_of(camera)[0] == name
        rays = np.random.default_rng(0).uniform(-0.6, 0.6, (20, 2))
        ours = np.column_stack(distort(camera, *rays.T)) + 0.5
        np.testing.assert_allclose(np.array([theirs.img_from_cam(np.array([*ray, 1.0])) for ray in rays]), ours, atol=1e-9)


class TestTracks:
    def test_reprojection_is_small_and_not_zero(self, out: Path) -> None:
        found = residuals(read(out))
        assert np.median(found) < 1.5
        assert (found > 0.01).mean() > 0.4

    def test_the_error_of_a_point_is_its_mean_reprojection_error(self, out: Path) -> None:
        model = read(out)
        written = np.array([model.points3D[number].error for number in sorted(model.points3D)])
        model.update_point_3d_errors()
        np.testing.assert_allclose(written, [model.points3D[number].error for number in sorted(model.points3D)], atol=1e-6)

    def test_bundle_adjustment_improves_and_stays(self, out: Path) -> None:
        model = read(out)
        before, error = poses_of(model), model.compute_mean_reprojection_error()
        pycolmap.bundle_adjustment(model, pycolmap.BundleAdjustmentOptions(refine_focal_length=False))
        moved, keyframes = compare(np.arange(3.0), poses_of(model)[::2], np.arange(3.0), before[::2], "sim3")[0], before[::2, :3, 3]
        assert model.compute_mean_reprojection_error() < error
        assert moved.ate_max < 0.01 * np.linalg.norm(np.diff(keyframes, axis=0), axis=1).sum()

    def test_a_point_is_observed_where_it_is(self, result: Result, tracks: Tracks) -> None:
        camera = result.truth.camera
        poses = result.clip.cam2world[tracks.row]
        there = np.einsum("mij,mi->mj", poses[:, :3, :3], tracks.xyz[tracks.point] - poses[:, :3, 3])
        true = there[:, :2] / there[:, 2:] * camera.params[:2] + camera.params[2:4]
        distance = np.linalg.norm(tracks.uv - true, axis=1)
        np.testing.assert_allclose(distance, tracks.residual_px, atol=1e-3)
        assert np.median(distance[tracks.residual_px > 0]) < 0.25

    def test_a_hidden_point_is_not_observed(self, result: Result, tracks: Tracks) -> None:
        own = np.flatnonzero(np.diff(tracks.point, prepend=-1))
        seen_from, uv = tracks.row[own][tracks.point], np.rint(tracks.uv[own][tracks.point]).astype(int)
        hidden, checked = 0, 0
        for i in result.keyframe:
            for j in result.keyframe[result.keyframe != i]:
                chosen = (seen_from == i) & (tracks.row == j)
                _, visible = result.truth.flow(int(i), int(j))
                column, line = uv[chosen].T
                hidden, checked = hidden + int((~visible[line, column]).sum()), checked + int(chosen.sum())
        assert checked > 300
        assert hidden < 0.02 * checked

    def test_nothing_is_found_in_pictures_that_show_something_else(self, result: Result, tracks: Tracks) -> None:
        estimate = estimate_of(result.store, VIDEO)

        class Noise:
            def rgb(self, row: int) -> np.ndarray:
                return np.random.default_rng(row).integers(0, 255, (90, 160, 3), np.uint8)

            def luma(self, row: int) -> np.ndarray:
                return luma(self.rgb(row))

        found = tracks_of(estimate.poses, estimate.working, Noise(), 0)  # type: ignore[arg-type]
        assert len(found.point) < 0.05 * len(tracks.point)

    def test_a_wrong_depth_loses_its_observations(self, result: Result, tracks: Tracks) -> None:
        estimate = estimate_of(result.store, VIDEO)
        wrong = replace(estimate.poses, inverse_depth=estimate.poses.inverse_depth * np.float32(1.5))
        found = tracks_of(wrong, estimate.working, result.store.frames(VIDEO), 0)
        assert (found.residual_px < 3).all()
        assert len(found.point) < len(tracks.point)
