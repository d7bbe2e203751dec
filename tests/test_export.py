"""Exports: what every format promises about its target, and what trajectories and clouds hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from exported_clip import VIDEO, Result, make_result
from vipe_dag import cli
from vipe_dag.errors import ConfigError, EstimationError, SourceError, StoreError
from vipe_dag.evaluate.references import read_reference
from vipe_dag.export import FORMATS, export_video
from vipe_dag.export.cloud import Thinning
from vipe_dag.export.mp4 import coloured
from vipe_dag.store import VideoStore
from vipe_dag.video import open_source

ALL_POINTS = Thinning(every=1, stride=2, voxel=0)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("pictures"), count=4, scene="room_barrel", as_pictures=True)


@pytest.fixture
def lossy(tmp_path: Path) -> Result:
    """Frame 1 has no pose, and the last two frames are a segment of their own."""
    tracked, segment = np.array([1, 0, 1, 1, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1])
    return make_result(tmp_path, tracked=tracked, segment=segment)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """No frame has a pose."""
    return make_result(tmp_path_factory.mktemp("lost"), tracked=np.zeros(6, bool))


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    table = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "u1")]))
    assert f"element vertex {len(table)}\n".encode() in header
    return table["xyz"], table["rgb"]


KILLED = """
import os, sys
from pathlib import Path
from vipe_dag.export import export_video
from vipe_dag.store import VideoStore
Path.replace = lambda *_: os.kill(os.getpid(), 9)  # the step that makes an export appear
export_video(VideoStore(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4])
"""


@pytest.mark.parametrize("name", ["tum", "zarr"])
def test_a_killed_export_leaves_nothing_under_its_name_and_goes_a_day_later(result: Result, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, result.store.root, VIDEO, name, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    os.utime(left, (0, 0))
    export_video(result.store, VIDEO, name, out)
    assert list(tmp_path.iterdir()) == [out]


class TestEveryFormat:
    @pytest.mark.parametrize("name", FORMATS)
    def test_keeps_what_exists(self, result: Result, tmp_path: Path, name: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(SourceError, match="exists already"):
            export_video(result.store, VIDEO, name, tmp_path / "out")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]

    @pytest.mark.parametrize("name", FORMATS)
    def test_names_a_folder_that_is_missing(self, result: Result, tmp_path: Path, name: str) -> None:
        with pytest.raises(SourceError, match="create it first"):
            export_video(result.store, VIDEO, name, tmp_path / "no" / "out")

    @pytest.mark.parametrize("name", FORMATS)
    def test_says_which_videos_there_are(self, result: Result, tmp_path: Path, name: str) -> None:
        with pytest.raises(StoreError, match=f"no video 'rom'.*{VIDEO}"):
            export_video(result.store, "rom", name, tmp_path / "out")

    @pytest.mark.parametrize("name", FORMATS)
    def test_says_which_asset_is_missing_and_leaves_nothing(self, result: Result, tmp_path: Path, name: str) -> None:
        store = VideoStore(tmp_path / "store")
        store.register(result.store.source(VIDEO))
        with pytest.raises(StoreError, match="run the video until frames"):
            export_video(store, VIDEO, name, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    @pytest.mark.parametrize("name", FORMATS)
    def test_that_cannot_be_written_says_so(self, result: Result, name: str) -> None:
        if not Path("/proc/self").is_dir():
            pytest.skip("needs a folder in which even root cannot write")
        with pytest.raises(SourceError, match="cannot be written"):
            export_video(result.store, VIDEO, name, Path("/proc/self/out"))

    @pytest.mark.parametrize("name", ["ply", "nerfstudio", "vipe", "rerun", "mp4"])
    def test_with_depth_says_that_it_is_not_there_yet_and_leaves_nothing(self, result: Result, tmp_path: Path, name: str) -> None:
        shutil.copytree(result.store.root, tmp_path / "store")
        (tmp_path / "store" / VIDEO / "aligned_depth" / "_current.json").unlink()
        with pytest.raises(StoreError, match="run the video until aligned_depth"):
            export_video(VideoStore(tmp_path / "store"), VIDEO, name, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    @pytest.mark.parametrize("name", ["tum", "kitti", "ply", "nerfstudio", "colmap", "vipe", "rerun"])
    def test_of_cameras_has_nothing_to_write_where_none_was_found(self, lost: Result, tmp_path: Path, name: str) -> None:
        with pytest.raises((SourceError, EstimationError), match=r"no frame .*(has a pose|tracked)|6 of 6 frames have no pose") as caught:
            export_video(lost.store, VIDEO, name, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("video", "out", "said"),
        [
            ("rom", "out", f"no video 'rom'.*{VIDEO}"),
            (VIDEO, "there", "there: exists already; choose another name"),
            (VIDEO, "no/out", "the folder .* does not exist; create it first"),
            (VIDEO, "there/out", "the folder .* does not exist; create it first"),
        ],
    )
    def test_is_refused_in_one_line(
        self, result: Result, tmp_path: Path, video: str, out: str, said: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "there").write_text("mine")
        for name in FORMATS:
            assert cli.main(["export", name, video, str(tmp_path / out), "--store", result.store.root]) == 1
            printed = capfd.readouterr()
            (line,) = printed.err.splitlines()
            assert re.search(said, line)
            assert not printed.out

    def test_is_one_of_those_that_exist(self, result: Result, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no export format 'nerfstudo'; did you mean nerfstudio"):
            export_video(result.store, VIDEO, "nerfstudo", tmp_path / "out")

    def test_is_a_command(self, result: Result, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for name in FORMATS:
            assert cli.main(["export", name, VIDEO, str(tmp_path / name), "--store", result.store.root]) == 0
            assert capfd.readouterr().out == f"{tmp_path / name}\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FORMATS)


class TestSource:
    @pytest.mark.parametrize("name", ["nerfstudio"])
    def test_a_changed_video_is_refused_and_nothing_is_left(self, tmp_path: Path, name: str) -> None:
        result = make_result(tmp_path, count=2)
        with (tmp_path / "room.mp4").open("ab") as file:
            file.write(b"more")
        with pytest.raises(SourceError, match="its content changed since the poses were computed"):
            export_video(result.store, VIDEO, name, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["room.mp4", "store"]


class TestKitti:
    def test_is_a_reference_to_evaluate_against(self, result: Result, tmp_path: Path) -> None:
        path = export_video(result.store, VIDEO, "kitti", tmp_path / "poses.txt").path
        np.testing.assert_allclose(read_reference(path).cam2world, result.clip.cam2world, atol=1e-12)

    def test_a_lost_frame_is_not_invented(self, lossy: Result, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"1 of 6 frames have no pose \(row 1 first\).*export tum instead"):
            export_video(lossy.store, VIDEO, "kitti", tmp_path / "poses.txt")


class TestPly:
    def test_points_lie_on_the_surfaces(self, result: Result, tmp_path: Path) -> None:
        xyz, rgb = read_ply(export_video(result.store, VIDEO, "ply", tmp_path / "room.ply", thinning=ALL_POINTS).path)
        truth = result.truth
        assert len(xyz) == len(truth) * (truth.camera.height // 2) * (truth.camera.width // 2)
        camera, pose = truth.camera, truth.cam2world[3]
        piece = slice(3 * len(xyz) // 6, 4 * len(xyz) // 6)
        there = (xyz[piece] - pose[:3, 3]) @ pose[:3, :3]
        u, v = (there[:, axis] / there[:, 2] * camera.params[axis] + camera.params[2 + axis] for axis in (0, 1))
        rows, columns = np.mgrid[: camera.height : 2, : camera.width : 2]
        np.testing.assert_allclose(u, columns.ravel(), atol=1e-3)
        np.testing.assert_allclose(v, rows.ravel(), atol=1e-3)
        np.testing.assert_allclose(there[:, 2], truth.truth(3)[0][::2, ::2].ravel(), rtol=1e-3)
        assert np.array_equal(rgb[piece], result.store.frames(VIDEO).rgb(3)[::2, ::2].reshape(-1, 3))

    def test_a_voxel_holds_one_point(self, result: Result, tmp_path: Path) -> None:
        coarse = Thinning(every=1, voxel=0.05)
        xyz, _ = read_ply(export_video(result.store, VIDEO, "ply", tmp_path / "room.ply", thinning=coarse).path)
        every, _ = read_ply(export_video(result.store, VIDEO, "ply", tmp_path / "all.ply", thinning=ALL_POINTS).path)
        depths = np.concatenate([result.truth.truth(row)[0][::4, ::4].ravel() for row in range(6)])
        edge = 0.05 * np.median(depths.astype(np.float16))
        assert len(xyz) == pytest.approx(len(np.unique(np.floor(every / edge), axis=0)), rel=0.02)

    def test_nothing_left_says_what_to_lower(self, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        blind = np.full((90, 160), np.nan, np.float32), np.zeros((90, 160), np.uint8), np.zeros((90, 160), bool)
        monkeypatch.setattr("vipe_dag.store.reader.StoredDepth.depth", lambda self, row: blind)
        with pytest.raises(EstimationError, match="no depth passes the filters; lower --min-confidence"):
            export_video(result.store, VIDEO, "ply", tmp_path / "room.ply", thinning=ALL_POINTS)
        assert list(tmp_path.iterdir()) == []

    def test_only_one_segment_is_in_it_and_the_other_is_mentioned(self, lossy: Result, tmp_path: Path) -> None:
        first = export_video(lossy.store, VIDEO, "ply", tmp_path / "first.ply", thinning=ALL_POINTS)
        assert "1 of 6 frames have no pose and are left out" in first.notes
        assert first.notes[-1].startswith("segment 0 of 0, 1")
        second = export_video(lossy.store, VIDEO, "ply", tmp_path / "second.ply", thinning=ALL_POINTS, segment=1)
        assert len(read_ply(first.path)[0]) * 2 == len(read_ply(second.path)[0]) * 3
        with pytest.raises(SourceError, match="no segment 7 with poses; there are: 0, 1"):
            export_video(lossy.store, VIDEO, "ply", tmp_path / "third.ply", segment=7)

    @pytest.mark.parametrize("wrong", [{"every": 0}, {"stride": 0}, {"min_confidence": 256}, {"voxel": -0.1}])
    def test_filters_have_bounds(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="expected"):
            Thinning(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def out(of_pictures: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_video(of_pictures.store, VIDEO, "nerfstudio", tmp_path_factory.mktemp("ns") / "out", thinning=ALL_POINTS).path


class TestNerfstudio:
    def test_the_camera_is_that_of_the_source(self, of_pictures: Result, out: Path) -> None:
        content, camera = json.loads((out / "transforms.json").read_text()), of_pictures.clip.camera
        assert (content["camera_model"], content["w"], content["h"]) == ("OPENCV", camera.width, camera.height)

    def test_pictures_are_the_originals(self, of_pictures: Result, out: Path, tmp_path: Path) -> None:
        def digests(folder: Path) -> dict[str, str]:
            return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

        assert digests(out / "images") == digests(Path(of_pictures.source.uri))
        named = [frame["file_path"] for frame in json.loads((out / "transforms.json").read_text())["frames"]]
        assert named == [f"images/photo{row}.jpg" for row in range(4)]

    def test_the_cloud_is_in_the_world_of_the_poses(self, of_pictures: Result, out: Path, tmp_path: Path) -> None:
        cloud = json.loads((out / "transforms.json").read_text())["ply_file_path"]
        alone = export_video(of_pictures.store, VIDEO, "ply", tmp_path / "room.ply", thinning=ALL_POINTS).path
        assert (out / cloud).read_bytes() == alone.read_bytes()


class TestMp4:
    def test_shows_frames_and_depth_at_their_times(self, result: Result, tmp_path: Path) -> None:
        path = export_video(result.store, VIDEO, "mp4", tmp_path / "room.mp4").path
        shown, frames = list(open_source(str(path)).iterate()), result.store.frames(VIDEO)
        np.testing.assert_allclose([frame.time for frame in shown], frames.time - frames.time[0], atol=1e-4)
        assert shown[0].rgb.shape == (frames.height, 2 * frames.width, 3)
        left = shown[3].rgb[:, : frames.width].astype(float)
        assert np.abs(left - frames.rgb(3)).mean() < 6

    def test_near_is_warm_far_is_cold_and_unknown_is_black(self) -> None:
        near, far, unknown = coloured(np.array([[1.0, 10.0, np.nan]], np.float32), (0.05, 1.05))[0].astype(int)
        assert near[0] > near[2]
        assert far[2] > far[0]
        assert not unknown.any()


class TestZarr:
    def test_every_array_is_the_same_and_needs_no_codec_of_ours(self, result: Result, tmp_path: Path) -> None:
        out = export_video(result.store, VIDEO, "zarr", tmp_path / "room.zarr").path
        written = out.joinpath("zarr.json").read_text()
        assert json.loads(written)["consolidated_metadata"]
        assert "jpegxl" not in written
        assert "pcodec" not in written
        with xr.open_datatree(out, engine="zarr", mask_and_scale=False, decode_times=False, chunks=None) as tree:
            for asset in ("frames", "ba_poses", "aligned_depth"):
                ours = result.store.open(VIDEO, asset)
                assert set(tree[asset].variables) == set(ours.variables)
                for name in ours.data_vars:
                    np.testing.assert_array_equal(tree[asset][name].values, ours[name].values)
            assert tree["ba_poses"].attrs["camera_model"] == "pinhole"
            assert tree.attrs["generations"]["frames"] == result.store.current(VIDEO, "frames").generation

    def test_says_what_is_not_in_it(self, result: Result, tmp_path: Path) -> None:
        (note,) = export_video(result.store, VIDEO, "zarr", tmp_path / "room.zarr").notes
        assert note == "not there, so not in it: keyframes, intrinsics, dense_depth"


class TestPictures:
    def test_frames_of_a_video_are_those_of_the_source(self, result: Result, tmp_path: Path) -> None:
        out = export_video(result.store, VIDEO, "nerfstudio", tmp_path / "out", thinning=ALL_POINTS, encoding="png").path
        decoded = list(result.source.iterate())
        for frame in decoded:
            written = np.asarray(Image.open(out / "images" / f"frame_{frame.index:06d}.png"))
            assert np.array_equal(written, frame.rgb)

    def test_a_picture_that_lies_on_its_side_is_written_upright(self, tmp_path: Path) -> None:
        result = make_result(tmp_path, count=2, as_pictures=True, turned=True)
        out = export_video(result.store, VIDEO, "nerfstudio", tmp_path / "out", thinning=ALL_POINTS).path
        for row in range(2):
            assert np.array_equal(np.asarray(Image.open(out / "images" / f"photo{row}.png")), result.clip.rgb(row))
