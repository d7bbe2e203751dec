"""ViPE's files: a tree that follows its conventions becomes assets, one that does not is refused in a line, and an export comes back."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import Imath
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from clips import write_clip
from exported_clip import VIDEO, Result, make_result
from vipe_dag import cli
from vipe_dag.calibration import Calibration
from vipe_dag.errors import SourceError
from vipe_dag.evaluate.references import resize_nearest
from vipe_dag.export import export_video, tum
from vipe_dag.export.estimate import estimate_of
from vipe_dag.export.straight import Straight
from vipe_dag.export.vipe import lens_of
from vipe_dag.importing.vipe import import_video
from vipe_dag.mei import MAX_LENS_ERROR_PX, to_mei
from vipe_dag.store import VideoStore
from vipe_dag.vipe_layout import Layout
from vipe_kernels.cameras import project

COUNT, WIDTH, HEIGHT = 6, 160, 120


def exr(values: np.ndarray, channel: str = "Z") -> bytes:
    """As ViPE writes it: one HALF channel, through OpenEXR's older interface."""
    header = OpenEXR.Header(values.shape[1], values.shape[0])
    header["channels"] = {channel: Imath.Channel(Imath.PixelType(Imath.PixelType.HALF))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "depth.exr"
        file = OpenEXR.OutputFile(str(path), header)
        file.writePixels({channel: values.astype(np.float16).tobytes()})
        file.close()
        return path.read_bytes()


def depth_of(row: int) -> np.ndarray:
    depth = np.linspace(1, 5 + row, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.float16)
    depth[:4] = 0
    return depth


def poses() -> np.ndarray:
    found = np.tile(np.eye(4, dtype=np.float32), (COUNT, 1, 1))
    found[:, 0, 3] = np.arange(COUNT) / 10
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A run of ViPE's on a clip called walk."""
    root = tmp_path / "vipe_results"
    for name in ("rgb", "pose", "intrinsics", "depth", "mask", "vipe"):
        (root / name).mkdir(parents=True)
    write_clip(root / "rgb" / "walk.mp4", COUNT, WIDTH, HEIGHT)
    np.savez(root / "pose" / "walk.npz", data=poses(), inds=np.arange(COUNT))
    write_cameras(root, [140, 141, 80, 60], "PINHOLE")
    with zipfile.ZipFile(root / "depth" / "walk.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for row in range(COUNT):
            archive.writestr(f"{row:05d}.exr", exr(depth_of(row)))
    (root / "vipe" / "walk_info.pkl").write_bytes(pickle.dumps({"ba_residual": 0.0}))
    return root


def write_cameras(root: Path, values: list[float], name: str) -> None:
    data = np.tile(np.array(values, np.float32), (COUNT, 1))
    np.savez(root / "intrinsics" / "walk.npz", data=data, inds=np.arange(COUNT))
    (root / "intrinsics" / "walk_camera.txt").write_text("".join(f"{row}: {name}\n" for row in range(COUNT)))


def mask_of(row: int) -> np.ndarray:
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[10:40, 10 + row : 50] = 1
    numbers[60:, 100:] = 7
    return numbers


def write_masks(root: Path, rows: range = range(COUNT)) -> None:
    with zipfile.ZipFile(root / "mask" / "walk.zip", "w") as archive:
        for row in rows:
            picture = io.BytesIO()
            Image.fromarray(mask_of(row)).save(picture, format="PNG")
            archive.writestr(f"{row:05d}.png", picture.getvalue())
    (root / "mask" / "walk.txt").write_text("1: person\n7: dog: small\n")


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return VideoStore(tmp_path / "store")


class TestImport:
    def test_poses_camera_depth_and_pictures_arrive(self, tree: Path, store: VideoStore) -> None:
        video_id = import_video(store, tree, "walk")
        estimate = estimate_of(store, video_id)
        np.testing.assert_array_equal(estimate.poses.cam2world, poses())
        assert estimate.poses.tracked.all()
        np.testing.assert_array_equal(estimate.source.params, [140, 141, 80, 60, 0, 0, 0, 0, 0])
        assert store.frames(video_id).rgb(3).shape == (HEIGHT, WIDTH, 3)
        z, confidence, measured = store.depth(video_id, "aligned_depth").depth(2)
        np.testing.assert_array_equal(z[4:], depth_of(2)[4:])
        assert np.isnan(z[:4]).all()
        assert (confidence[:4] == 0).all()
        assert (confidence[4:] == 255).all()
        assert not measured.any()

    def test_generations_say_that_they_are_imported(self, tree: Path, store: VideoStore) -> None:
        video_id = import_video(store, tree, "walk")
        for asset in ("frames", "ba_poses", "aligned_depth"):
            assert store.open(video_id, asset).attrs["imported"]["format"] == "vipe"

    def test_masks_and_their_phrases_arrive_and_go_out_again(self, tree: Path, store: VideoStore, tmp_path: Path) -> None:
        write_masks(tree)
        video_id = import_video(store, tree, "walk")
        frames = store.open(video_id, "frames")
        np.testing.assert_array_equal(frames["instance"], [mask_of(row) for row in range(COUNT)])
        assert frames.attrs["instances"] == {"1": "person", "7": "dog: small"}
        layout = Layout(export_video(store, video_id, "vipe", tmp_path / "out").path, video_id)
        assert layout.phrases.read_text() == "1: person\n7: dog: small\n"
        with zipfile.ZipFile(layout.mask) as archive:
            assert archive.namelist() == [f"{row:05d}.png" for row in range(COUNT)]
            for row, name in enumerate(archive.namelist()):
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(archive.read(name)))), mask_of(row))

    def test_no_masks_are_made_up(self, tree: Path, store: VideoStore, tmp_path: Path) -> None:
        video_id = import_video(store, tree, "walk")
        assert "instance" not in store.open(video_id, "frames")
        assert not (export_video(store, video_id, "vipe", tmp_path / "out").path / "mask").exists()

    def test_again_writes_nothing(self, tree: Path, store: VideoStore) -> None:
        video_id = import_video(store, tree, "walk")
        before = store.current(video_id, "frames")
        assert import_video(store, tree, "walk") == video_id
        assert store.current(video_id, "frames") == before

    def test_a_wide_angle_lens_bends_rays_as_in_vipe(self, tree: Path, store: VideoStore) -> None:
        fx, fy, cx, cy, xi = 110.0, 110.0, 80.0, 60.0, 0.9
        write_cameras(tree, [fx, fy, cx, cy, xi], "MEI")
        camera = estimate_of(store, import_video(store, tree, "walk")).source
        points = np.random.default_rng(0).uniform([-0.9, -0.7, 0.6], [0.9, 0.7, 1], (200, 3))
        depth = points[:, 2] + xi * np.linalg.norm(points, axis=1)
        vipe = np.column_stack([fx * points[:, 0] / depth + cx, fy * points[:, 1] / depth + cy])
        ours = project(torch.from_numpy(points), torch.from_numpy(camera.params.copy()), camera.camera_model).numpy()
        shown = ((vipe >= 0) & (vipe < [WIDTH, HEIGHT])).all(1)
        assert shown.sum() > 100
        np.testing.assert_allclose(ours[shown], vipe[shown], atol=0.01)

    def test_a_run_without_depth_has_poses_alone(self, tree: Path, store: VideoStore) -> None:
        (tree / "depth" / "walk.zip").unlink()
        video_id = import_video(store, tree, "walk")
        assert store.current(video_id, "ba_poses") is not None
        assert store.current(video_id, "aligned_depth") is None

    def test_a_frame_without_a_pose_is_not_tracked(self, tree: Path, store: VideoStore, tmp_path: Path) -> None:
        kept = np.array([0, 1, 3, 4, 5])
        np.savez(tree / "pose" / "walk.npz", data=poses()[kept], inds=kept)
        np.savez(tree / "intrinsics" / "walk.npz", data=np.tile([140, 140, 80, 60], (5, 1)), inds=kept)
        video_id = import_video(store, tree, "walk")
        assert estimate_of(store, video_id).poses.tracked.tolist() == [True, True, False, True, True, True]
        path = export_video(store, video_id, "tum", tmp_path / "poses.txt").path
        np.testing.assert_allclose(tum.read(path)[1], poses()[kept], atol=1e-6)

    def test_every_format_takes_an_imported_video(self, tree: Path, store: VideoStore, tmp_path: Path) -> None:
        video_id = import_video(store, tree, "walk")
        for name in ("tum", "kitti", "colmap", "vipe"):
            assert export_video(store, video_id, name, tmp_path / name).path.exists()

    def test_the_pickle_is_never_opened(self, tree: Path, store: VideoStore) -> None:
        (tree / "vipe" / "walk_info.pkl").write_bytes(b"not a pickle")
        import_video(store, tree, "walk")


class TestBadTree:
    @pytest.mark.parametrize("name", ["intrinsics/walk.npz", "rgb/walk.mp4"])
    def test_a_missing_file_is_named(self, tree: Path, store: VideoStore, name: str) -> None:
        (tree / name).unlink()
        with pytest.raises(SourceError, match=f"{name}: is missing"):
            import_video(store, tree, "walk")
        assert store.videos() == []

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"data": poses()}, "expected an npz with the arrays data and inds"),
            ({"data": poses(), "inds": np.arange(COUNT)[::-1]}, "ascending"),
            ({"data": poses()[:, :3], "inds": np.arange(COUNT)}, "finite 4x4"),
            ({"data": poses() * np.nan, "inds": np.arange(COUNT)}, "finite 4x4"),
            ({"data": poses() * 2, "inds": np.arange(COUNT)}, "no rigid motion"),
            ({"data": poses()[:2], "inds": np.arange(2)}, "expected 4 numbers for each frame"),
        ],
    )
    def test_poses_that_are_none_are_refused(self, tree: Path, store: VideoStore, arrays: dict[str, np.ndarray], message: str) -> None:
        np.savez(tree / "pose" / "walk.npz", **arrays)
        with pytest.raises(SourceError, match=message):
            import_video(store, tree, "walk")
        assert store.videos() == []

    def test_a_file_that_is_no_npz_is_named(self, tree: Path, store: VideoStore) -> None:
        (tree / "pose" / "walk.npz").write_bytes(b"nothing")
        with pytest.raises(SourceError, match=r"pose/walk\.npz: expected an npz"):
            import_video(store, tree, "walk")

    def test_a_panorama_is_refused(self, tree: Path, store: VideoStore) -> None:
        write_cameras(tree, [0, 0, 0, 0], "PANORAMA")
        with pytest.raises(SourceError, match="PANORAMA cannot be imported"):
            import_video(store, tree, "walk")

    def test_a_zooming_camera_is_refused(self, tree: Path, store: VideoStore) -> None:
        np.savez(tree / "intrinsics" / "walk.npz", data=np.linspace([100, 100, 80, 60], [200, 200, 80, 60], COUNT), inds=np.arange(COUNT))
        with pytest.raises(SourceError, match="changes from frame to frame"):
            import_video(store, tree, "walk")

    def test_more_poses_than_frames_are_refused_and_nothing_is_kept(self, tree: Path, store: VideoStore) -> None:
        write_clip(tree / "rgb" / "walk.mp4", COUNT - 2, WIDTH, HEIGHT)
        with pytest.raises(SourceError, match="has 4 frames, but there is a pose of frame 5"):
            import_video(store, tree, "walk")
        assert store.videos() == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no picture", "not a readable EXR"),
            (exr(depth_of(0), channel="Y"), "expected one channel Z of 160x120"),
            (exr(depth_of(0)[:60]), "expected one channel Z of 160x120"),
        ],
    )
    def test_depth_that_is_none_is_named(self, tree: Path, store: VideoStore, content: bytes, message: str) -> None:
        with zipfile.ZipFile(tree / "depth" / "walk.zip", "w") as archive:
            archive.writestr("00003.exr", content)
        with pytest.raises(SourceError, match=f"00003.exr: {message}"):
            import_video(store, tree, "walk")

    def test_masks_that_are_none_are_named_and_nothing_is_kept(self, tree: Path, store: VideoStore) -> None:
        write_masks(tree, range(COUNT - 1))
        with pytest.raises(SourceError, match=r"00005.png: not a readable PNG .* remove it to import without masks"):
            import_video(store, tree, "walk")
        (tree / "mask" / "walk.zip").write_bytes(b"nothing")
        with pytest.raises(SourceError, match="not a readable zip"):
            import_video(store, tree, "walk")
        assert [name for name in store.videos() if store.current(name, "frames")] == []

    def test_the_command_goes_on_after_a_bad_video(self, tree: Path, store: VideoStore, capfd: pytest.CaptureFixture[str]) -> None:
        (tree / "pose" / "bad.npz").write_bytes(b"nothing")
        assert cli.main(["import", "vipe", str(tree), "--store", store.root]) == 1
        printed = capfd.readouterr()
        assert printed.out.startswith("walk-")
        assert "bad.npz: is missing" in printed.err

    def test_a_name_that_is_not_there_is_refused_with_those_that_are(
        self, tree: Path, store: VideoStore, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["import", "vipe", str(tree), "--store", store.root, "--name", "wlak"]) == 1
        assert "has no video wlak; there are: walk" in capfd.readouterr().err

    def test_a_store_that_cannot_be_written_is_one_line(self, tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
        if not Path("/proc/self").is_dir():
            pytest.skip("needs a folder in which even root cannot write")
        assert cli.main(["import", "vipe", str(tree), "--store", "/proc/self/store"]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert "the storage failed" in line
        assert "check address, credentials, permissions and space" in line

    def test_a_folder_that_is_no_tree_says_what_to_give(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["import", "vipe", str(tmp_path), "--store", str(tmp_path / "store")]) == 1
        assert "no pose/*.npz in it; give the folder" in capfd.readouterr().err


class TestRoundTrip:
    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, tmp_path_factory: pytest.TempPathFactory) -> Result:
        return make_result(tmp_path_factory.mktemp("video"), count=4)

    def test_everything_comes_back(self, result: Result, tmp_path: Path) -> None:
        out = export_video(result.store, VIDEO, "vipe", tmp_path / "out").path
        store = VideoStore(tmp_path / "store")
        video_id = import_video(store, out, VIDEO)
        ours, back = estimate_of(result.store, VIDEO), estimate_of(store, video_id)
        np.testing.assert_allclose(back.poses.cam2world, ours.poses.cam2world, atol=1e-6)
        np.testing.assert_allclose(back.source.params, ours.source.params, rtol=1e-6)
        np.testing.assert_allclose(back.time, ours.time - ours.time[0], atol=1e-4)
        depth = result.store.depth(VIDEO, "aligned_depth").depth(1)[0]
        size = ours.source.height, ours.source.width
        np.testing.assert_array_equal(store.depth(video_id, "aligned_depth").depth(1)[0], resize_nearest(depth, *size))

    def test_a_lens_that_vipe_does_not_know_is_straightened(self, tmp_path: Path) -> None:
        result = make_result(tmp_path, count=2, scene="room_barrel")
        written = export_video(result.store, VIDEO, "vipe", tmp_path / "out")
        (note,) = written.notes
        assert "pictures and depth are as a pinhole sees them" in note
        store = VideoStore(tmp_path / "store")
        back = estimate_of(store, import_video(store, written.path, VIDEO))
        ours, straight = estimate_of(result.store, VIDEO), Straight(result.clip.camera)
        np.testing.assert_allclose(back.poses.cam2world, ours.poses.cam2world, atol=1e-6)
        np.testing.assert_allclose(back.source.params, straight.camera.params, rtol=1e-6)
        shown = store.frames(back.video_id).rgb(1).astype(float)
        seen = straight.rgb(result.clip.rgb(1))
        assert np.median(np.abs(shown - seen)) < 8, "the film is lossy"
        size = straight.camera.height, straight.camera.width
        depth = straight.depth(resize_nearest(result.store.depth(VIDEO, "aligned_depth").depth(1)[0], *size))
        np.testing.assert_array_equal(store.depth(back.video_id, "aligned_depth").depth(1)[0], depth)

    def test_a_wide_lens_of_vipes_goes_out_as_it_came_in(self, tree: Path, store: VideoStore, tmp_path: Path) -> None:
        values = [100.0, 101.0, 80.0, 60.0, 0.4]
        write_cameras(tree, values, "MEI")
        video_id = import_video(store, tree, "walk")
        written = export_video(store, video_id, "vipe", tmp_path / "out")
        assert "written as Mei's camera" in written.notes[0]
        with np.load(written.path / "intrinsics" / f"{video_id}.npz") as file:
            np.testing.assert_allclose(file["data"], np.tile(values, (COUNT, 1)), rtol=1e-6)
        assert (written.path / "intrinsics" / f"{video_id}_camera.txt").read_text().splitlines()[0] == "0: MEI"

    def test_a_fisheye_that_is_nearly_meis_keeps_its_pixels(self, tmp_path: Path) -> None:
        result = make_result(tmp_path, count=2, scene="room_fisheye")
        store = VideoStore(tmp_path / "store")
        written = export_video(result.store, VIDEO, "vipe", tmp_path / "out")
        back = estimate_of(store, import_video(store, written.path, VIDEO)).source
        camera = result.clip.camera
        corners = torch.tensor([[0.0, 0, 1], [0.7, 0.4, 1], [-0.7, 0.2, 1], [0.3, -0.4, 1]], dtype=torch.float64)
        found, truth = (project(corners, torch.tensor(lens.params), "fisheye") for lens in (back, camera))
        assert (found - truth).abs().max() < 2 * MAX_LENS_ERROR_PX

    def test_a_fisheye_far_from_meis_is_straightened(self) -> None:
        bent = Calibration("fisheye", np.array([150, 150, 160, 90, 0.2, -0.3, 0.1, 0, 0]), 320, 180)
        assert to_mei(bent)[1] > MAX_LENS_ERROR_PX
        assert lens_of(bent).name == "PINHOLE"
