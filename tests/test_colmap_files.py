"""COLMAP's files as assets: a model by hand or by COLMAP arrives, one that cannot is refused in a line, an export comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from exported_clip import VIDEO, make_result
from vipe_dag import cli
from vipe_dag.colmap_layout import CAMERAS
from vipe_dag.errors import SourceError
from vipe_dag.export import export_video, tum
from vipe_dag.export.estimate import estimate_of
from vipe_dag.importing import colmap
from vipe_dag.importing.colmap import calibration_of, import_video
from vipe_dag.importing.colmap_model import Camera
from vipe_dag.store import VideoStore
from vipe_kernels.cameras import project

pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")

WIDTH, HEIGHT, COUNT = 160, 120, 4
FOCAL, CENTRE = 150.0, (80.5, 60.5)
POINTS = np.array([[0.2, -0.1, 4.0], [-0.5, 0.3, 5.0], [0.4, 0.4, 3.0]])


def world2cam(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of the picture of that number."""
    return Rotation.from_euler("y", 3 * number, degrees=True).as_matrix(), np.array([-0.1 * number, 0.02 * number, 0.0])


def cam2world(number: int) -> np.ndarray:
    rotation, translation = world2cam(number)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ translation
    return pose


def write_model(folder: Path, numbers: list[int], camera: str | None = None, names: str = "shot{}.png") -> Path:
    """A text model by hand: the pictures of these numbers, each of which sees all POINTS a fifth of a pixel too far right."""
    folder.mkdir(parents=True, exist_ok=True)
    lens = camera or f"SIMPLE_PINHOLE {WIDTH} {HEIGHT} {FOCAL} {CENTRE[0]} {CENTRE[1]}"
    (folder / "cameras.txt").write_text(f"# a comment\n7 {lens}\n")
    lines, tracks = ["# IMAGE_ID, QW, ..."], {}
    for number in numbers:
        rotation, translation = world2cam(number)
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        lines.append(f"{number + 1} {w} {x} {y} {z} {' '.join(map(str, translation))} 7 {names.format(number)}")
        seen = POINTS @ rotation.T + translation
        uv = seen[:, :2] / seen[:, 2:] * FOCAL + CENTRE + [0.2, 0]
        lines.append("3.5 4.5 -1 " + " ".join(f"{u} {v} {10 * k + 5}" for k, (u, v) in enumerate(uv)))
        tracks[number + 1] = range(1, 1 + len(POINTS))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    track = " ".join(f"{number + 1} {{}}" for number in numbers)
    points = [f"{10 * k + 5} {x} {y} {z} 9 8 7 0.2 {track.replace('{}', str(k + 1))}\n" for k, (x, y, z) in enumerate(POINTS)]
    (folder / "points3D.txt").write_text("".join(points))
    return folder


def write_images(folder: Path, size: tuple[int, int] = (WIDTH, HEIGHT), count: int = COUNT) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((size[1], size[0], 3), 40 * number, np.uint8)).save(folder / f"shot{number}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A reconstruction of the pictures 0, 1 and 3 of four."""
    write_images(tmp_path / "garden" / "images")
    write_model(tmp_path / "garden" / "sparse" / "0", [0, 1, 3])
    return tmp_path / "garden"


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return VideoStore(tmp_path / "store")


def points_in(store: VideoStore, video_id: str) -> np.ndarray:
    """World positions of the stored points of keyframes, for a pinhole."""
    estimate = estimate_of(store, video_id)
    poses, params = estimate.poses, estimate.working.params
    found = []
    for k, row in enumerate(poses.keyframe):
        uv, z = poses.point_uv[k][poses.valid[k]], 1 / poses.inverse_depth[k][poses.valid[k]]
        rays = np.column_stack([(uv - params[2:4]) / params[:2], np.ones(len(uv))])
        found.append((rays * z[:, None]) @ poses.cam2world[row, :3, :3].T + poses.cam2world[row, :3, 3])
    return np.concatenate(found)


class TestImport:
    def test_poses_camera_and_pictures_arrive(self, root: Path, store: VideoStore) -> None:
        video_id = import_video(store, root)
        estimate = estimate_of(store, video_id)
        assert video_id.startswith("garden-")
        assert estimate.poses.tracked.tolist() == [True, True, False, True]
        np.testing.assert_allclose(estimate.poses.cam2world[[0, 1, 3]], [cam2world(number) for number in (0, 1, 3)], atol=1e-12)
        np.testing.assert_allclose(estimate.source.params, [FOCAL, FOCAL, 80, 60, 0, 0, 0, 0, 0], atol=1e-12)
        assert estimate.poses.camera_model == "pinhole"
        assert store.frames(video_id).rgb(2).tolist() == np.full((HEIGHT, WIDTH, 3), 80).tolist()

    def test_points_keep_their_place_and_say_how_far_they_were_seen_from_it(self, root: Path, store: VideoStore) -> None:
        video_id = import_video(store, root)
        found, poses = points_in(store, video_id), estimate_of(store, video_id).poses
        np.testing.assert_allclose(np.sort(found, axis=0), np.sort(POINTS, axis=0), atol=1e-5)
        assert poses.keyframe.tolist() == [1]
        np.testing.assert_allclose(poses.residual_px[poses.valid], 0.2, atol=1e-4)
        np.testing.assert_allclose(poses.frame_residual_px, [0.2, 0.2, np.nan, 0.2], atol=1e-4)

    def test_binary_says_the_same_as_text(self, root: Path, store: VideoStore, tmp_path: Path) -> None:
        binary = tmp_path / "binary"
        binary.mkdir()
        pycolmap.Reconstruction(root / "sparse" / "0").write_binary(binary)
        text, again = import_video(store, root), VideoStore(tmp_path / "other")
        video_id = import_video(again, binary, root / "images")
        assert video_id == text
        ours, theirs = estimate_of(store, text), estimate_of(again, video_id)
        np.testing.assert_allclose(theirs.poses.cam2world, ours.poses.cam2world, atol=1e-12)
        np.testing.assert_array_equal(theirs.source.params, ours.source.params)
        np.testing.assert_allclose(points_in(again, video_id), points_in(store, text), atol=1e-6)

    def test_generations_say_that_they_are_imported(self, root: Path, store: VideoStore) -> None:
        video_id = import_video(store, root)
        for asset in ("frames", "ba_poses"):
            said = store.open(video_id, asset).attrs["imported"]
            assert said == {"format": "colmap", "origin": str(root), "models": 1, "camera": "SIMPLE_PINHOLE"}

    def test_again_writes_nothing_and_another_model_does(self, root: Path, store: VideoStore) -> None:
        video_id = import_video(store, root)
        before = store.current(video_id, "ba_poses")
        assert import_video(store, root) == video_id
        assert store.current(video_id, "ba_poses") == before
        write_model(root / "sparse" / "0", [0, 1, 2, 3])
        assert import_video(store, root) == video_id
        assert store.current(video_id, "ba_poses") != before

    def test_each_model_is_a_segment_and_a_picture_belongs_to_the_larger_one(self, root: Path, store: VideoStore) -> None:
        write_model(root / "sparse" / "10", [2, 3])
        poses = estimate_of(store, import_video(store, root)).poses
        assert poses.tracked.all()
        assert poses.segment.tolist() == [0, 0, 1, 0]
        assert len(poses.parallax) == 2

    def test_a_model_without_points_has_poses_alone(self, root: Path, store: VideoStore) -> None:
        (root / "sparse" / "0" / "points3D.txt").write_text("")
        poses = estimate_of(store, import_video(store, root)).poses
        assert poses.tracked.sum() == 3
        assert len(poses.keyframe) == 0

    def test_large_pictures_are_stored_smaller_and_the_camera_stays(
        self, root: Path, store: VideoStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(colmap, "LONG_SIDE", 80)
        video_id = import_video(store, root)
        estimate = estimate_of(store, video_id)
        assert (estimate.working.width, store.frames(video_id).width) == (80, 80)
        np.testing.assert_allclose(estimate.source.params[:4], [FOCAL, FOCAL, 80, 60], atol=1e-9)
        np.testing.assert_allclose(np.sort(points_in(store, video_id), axis=0), np.sort(POINTS, axis=0), atol=1e-5)
        np.testing.assert_allclose(estimate.poses.frame_residual_px[0], 0.1, atol=1e-4)

    def test_pictures_of_another_size_than_colmap_saw_scale_the_camera(self, root: Path, store: VideoStore, tmp_path: Path) -> None:
        write_images(tmp_path / "half", (WIDTH // 2, HEIGHT // 2))
        params = estimate_of(store, import_video(store, root, tmp_path / "half")).source.params
        np.testing.assert_allclose(params[:4], [FOCAL / 2, FOCAL / 2, 39.75, 29.75], atol=1e-9)

    def test_pictures_in_a_folder_below_are_found(self, root: Path, store: VideoStore) -> None:
        (root / "images").rename(root / "front")
        (root / "images").mkdir()
        (root / "front").rename(root / "images" / "front")
        write_model(root / "sparse" / "0", [0, 1, 3], names="front/shot{}.png")
        assert estimate_of(store, import_video(store, root)).poses.tracked.sum() == 3

    def test_the_command_prints_the_id_and_exports_take_it(
        self, root: Path, store: VideoStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["import", "colmap", str(root), "--store", store.root]) == 0
        video_id = capfd.readouterr().out.strip()
        path = export_video(store, video_id, "tum", tmp_path / "poses.txt").path
        np.testing.assert_allclose(tum.read(path)[1], [cam2world(number) for number in (0, 1, 3)], atol=1e-8)
        export_video(store, video_id, "colmap", tmp_path / "again")
        assert len(pycolmap.Reconstruction(tmp_path / "again" / "sparse" / "0").images) == 3


class TestCamera:
    @pytest.mark.parametrize("model", [name for name, form in CAMERAS.items() if form.ours])
    def test_a_model_that_has_an_equal_here_bends_rays_as_in_colmap(self, model: str) -> None:
        form = CAMERAS[model]
        values = {"f": 300.0, "fx": 300.0, "fy": 310.0, "cx": 320.0, "cy": 240.0, "k1": -0.04, "k2": 0.008, "p1": 1e-3, "p2": -5e-4}
        values |= {"k3": 1e-3, "k4": -2e-4} if form.ours == "fisheye" else {"k3": 1e-3}
        extra = {"p1", "p2"} if form.ours == "fisheye" else set()
        params = [0.0 if name in extra else values.get(name, 0.0) for name in form.names]
        ours = calibration_of(Camera(model, 640, 480, tuple(params)), "model")
        theirs = pycolmap.Camera(model=model, width=640, height=480, params=params)
        rays = np.column_stack([np.random.default_rng(0).uniform(-0.6, 0.6, (20, 2)), np.ones(20)])
        seen = project(torch.from_numpy(rays), torch.from_numpy(ours.params.copy()), ours.camera_model).numpy()
        np.testing.assert_allclose(seen + 0.5, [theirs.img_from_cam(ray) for ray in rays], atol=1e-9)

    @pytest.mark.parametrize("model", CAMERAS)
    def test_the_table_is_that_of_colmap(self, model: str) -> None:
        assert int(pycolmap.CameraModelId.__members__[model]) == CAMERAS[model].number
        camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId.__members__[model], 300, 640, 480)
        assert len(camera.params) == len(CAMERAS[model].names)

    @pytest.mark.parametrize(
        ("lens", "said"),
        [
            ("FOV 160 120 150 150 80 60 0.9", "cameras of the model FOV have no equal here; undistort the images with COLMAP"),
            ("FULL_OPENCV 160 120 150 150 80 60 0 0 0 0 0 0.5 0 0", "the camera FULL_OPENCV has k4 0.5, which no camera here has"),
            ("THIN_PRISM_FISHEYE 160 120 150 150 80 60 0 0 0.1 0 0 0 0 0", "THIN_PRISM_FISHEYE has p1 0.1"),
            ("PINHOLE 160 120 -150 150 80 60", "focal lengths must be positive"),
        ],
    )
    def test_one_that_has_none_is_refused_with_the_remedy(self, root: Path, store: VideoStore, lens: str, said: str) -> None:
        write_model(root / "sparse" / "0", [0, 1], lens)
        with pytest.raises(SourceError, match=said) as caught:
            import_video(store, root)
        assert "\n" not in str(caught.value)
        assert store.videos() == []


class TestBadModel:
    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            (
                "cameras.txt",
                "7 PINHOLE 160\n",
                r"cameras\.txt, line 1: expected CAMERA_ID MODEL .*, found '7 PINHOLE 160'",
            ),
            ("cameras.txt", "7 LENS 160 120 1 2 3\n", "line 1: the camera model LENS is not known here"),
            ("cameras.txt", "7 PINHOLE 160 120 1 2 3\n", "expected fx fy cx cy of PINHOLE, found 3 parameters"),
            ("cameras.txt", "8 SIMPLE_PINHOLE 160 120 150 80 60\n", r"shot0\.png has camera 7, which cameras\.txt does not"),
            ("images.txt", "", "the model has no images with a pose"),
            ("images.txt", "1 1 0 0 0 0 0 7 shot0.png\n\n", r"images\.txt, line 1: expected IMAGE_ID QW"),
            ("images.txt", "1 0 0 0 0 0 0 0 7 shot0.png\n\n", "line 1: the quaternion is zero"),
            ("images.txt", "1 1 0 0 0 nan 0 0 7 shot0.png\n\n", "line 1: holds numbers that are not finite"),
            ("images.txt", "1 1 0 0 0 0 0 0 7 shot0.png\n1 2 3 4\n", "line 2: expected X Y POINT3D_ID"),
            ("images.txt", "1 1 0 0 0 0 0 0 7 shot9.png\n\n", r"images: lacks 1 images of the model, as shot9\.png; name .* --images"),
            ("images.txt", "1 1 0 0 0 0 0 0 7 a/shot0.png\n\n2 1 0 0 0 0 0 0 7 b/shot1.png\n", r"several folders \(a, b\)"),
            ("points3D.txt", "5 1 2\n", r"points3D\.txt, line 1: expected POINT3D_ID X Y Z"),
        ],
    )
    def test_text_that_is_none_is_named_by_its_line(self, root: Path, store: VideoStore, file: str, content: str, said: str) -> None:
        (root / "sparse" / "0" / file).write_text(content)
        with pytest.raises(SourceError, match=said) as caught:
            import_video(store, root)
        assert "\n" not in str(caught.value)
        assert store.videos() == []

    @pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
    def test_a_binary_file_that_ends_early_is_named(self, root: Path, store: VideoStore, name: str) -> None:
        folder = root / "sparse" / "0"
        pycolmap.Reconstruction(folder).write_binary(folder)
        path = folder / f"{name}.bin"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(SourceError, match=rf"{name}\.bin: ends in the middle"):
            import_video(store, root)

    @pytest.mark.parametrize("other", ["SIMPLE_PINHOLE 160 120 170 80.5 60.5", "SIMPLE_RADIAL 160 120 150 80.5 60.5 0"])
    def test_cameras_that_differ_are_refused(self, root: Path, store: VideoStore, other: str) -> None:
        write_model(root / "sparse" / "1", [2], other)
        with pytest.raises(SourceError, match=r"2 cameras that differ, but a video has one; give COLMAP --ImageReader\.single_camera 1"):
            import_video(store, root)

    def test_pictures_of_another_shape_are_refused(self, root: Path, store: VideoStore, tmp_path: Path) -> None:
        write_images(tmp_path / "wide", (200, 100))
        with pytest.raises(SourceError, match="the pictures are 200x100 upright, the camera of the model 160x120"):
            import_video(store, root, tmp_path / "wide")

    def test_a_folder_without_a_model_says_what_to_give(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["import", "colmap", str(tmp_path / "none"), "--store", str(tmp_path / "store")]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert "no COLMAP model in it; give the folder with cameras and images (.bin or .txt)" in line

    def test_a_store_that_cannot_be_written_is_one_line(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        if not Path("/proc/self").is_dir():
            pytest.skip("needs a folder in which even root cannot write")
        assert cli.main(["import", "colmap", str(root), "--store", "/proc/self/store"]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert "the storage failed" in line
        assert "check address, credentials, permissions and space" in line

    def test_missing_pictures_say_how_to_name_them(self, root: Path, store: VideoStore) -> None:
        (root / "images").rename(root / "photos")
        with pytest.raises(SourceError, match=r"images: no such folder; name the one with the images of the model by --images"):
            import_video(store, root)
        assert import_video(store, root, root / "photos")


class TestRoundTrip:
    @pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
    @pytest.mark.parametrize("scene", ["room", "room_barrel", "room_fisheye"])
    def test_an_export_comes_back(self, tmp_path: Path, scene: str, text: bool) -> None:
        result = make_result(tmp_path, count=4, scene=scene, as_pictures=True)
        out = export_video(result.store, VIDEO, "colmap", tmp_path / "out", text=text).path
        store = VideoStore(tmp_path / "imported")
        ours, back = estimate_of(result.store, VIDEO), estimate_of(store, import_video(store, out))
        np.testing.assert_allclose(back.poses.cam2world, ours.poses.cam2world, atol=1e-6)
        np.testing.assert_allclose(back.source.params, ours.source.params, atol=1e-6)
        assert back.source.camera_model == ours.source.camera_model

    def test_segments_and_points_come_back(self, tmp_path: Path) -> None:
        result = make_result(tmp_path, count=8, segment=np.array([0, 0, 0, 0, 1, 1, 1, 1]))
        out = export_video(result.store, VIDEO, "colmap", tmp_path / "out").path
        store = VideoStore(tmp_path / "imported")
        video_id = import_video(store, out)
        assert estimate_of(store, video_id).poses.segment.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        models = [pycolmap.Reconstruction(out / "sparse" / str(number)) for number in (0, 1)]
        written = np.array([point.xyz for model in models for point in model.points3D.values()])
        found = points_in(store, video_id)
        assert len(found) == len(written)
        np.testing.assert_allclose(np.sort(found, axis=0), np.sort(written, axis=0), atol=1e-4)
