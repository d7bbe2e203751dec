"""Given cameras: the sidecar file, its faults, resizing, and what a photo's metadata suggests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_files import card, write_pictures, write_video
from vipe_dag.calibration import CAMERA_MODELS, Calibration, find_sidecar, load_calibration, metadata_calibration
from vipe_dag.errors import SourceError
from vipe_dag.video import SourceInfo, open_source

PLAIN = {"fx": 500.0, "fy": 510.0, "cx": 320.0, "cy": 240.0}
INFO = SourceInfo(width=640, height=480, codec="h264", container="mov", duration=1.0, fps=30.0, frame_count=30)


def parsed(**changes: object) -> Calibration:
    content = {key: value for key, value in (PLAIN | changes).items() if value is not ...}
    return Calibration.from_json(content, "cam.json", 640, 480)


class TestSidecar:
    def test_needs_only_focal_lengths_and_principal_point(self) -> None:
        camera = parsed()
        assert (camera.camera_model, camera.width, camera.height) == ("pinhole", 640, 480)
        np.testing.assert_array_equal(camera.params, [500, 510, 320, 240, 0, 0, 0, 0, 0])

    @pytest.mark.parametrize(
        ("words", "model"),
        [
            ({"model": "pinhole", "distortion_model": "opencv"}, "brown"),
            ({"model": "pinhole"}, "brown"),
            ({"model": "brown"}, "brown"),
            ({"model": "opencv"}, "brown"),
            ({"distortion_model": "radtan"}, "brown"),
            ({"model": "fisheye"}, "fisheye"),
            ({"model": "pinhole", "distortion_model": "equidistant"}, "fisheye"),
        ],
    )
    def test_names_the_lens_in_the_words_of_the_trade(self, words: dict, model: str) -> None:
        camera = parsed(distortion=[0.1, -0.2, 0.001, 0.002], **words)
        assert camera.camera_model == model
        np.testing.assert_array_equal(camera.params[4:], [0.1, -0.2, 0.001, 0.002, 0])

    def test_of_a_rectified_camera_is_a_pinhole(self) -> None:
        assert parsed(model="pinhole", distortion_model="none (rectified)", distortion=[]).camera_model == "pinhole"

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"fx": float("nan")}, "fx"),
            ({"fx": float("inf")}, "fx"),
            ({"fx": -500}, "fx"),
            ({"fy": 0}, "fy"),
            ({"fx": ...}, "fx is missing"),
            ({"cy": ...}, "cy is missing"),
            ({"fx": "wide"}, "fx"),
            ({"cx": 2000}, "principal point (2000, 240) lies far outside the 640x480 picture"),
            ({"fx": 0.8, "fy": 0.8}, "not those of a 640x480 picture in pixels"),
            ({"model": "spherical"}, "unknown camera model 'spherical'"),
            ({"distortion": [0.1, float("nan")]}, "distortion"),
            ({"distortion_model": "none", "distortion": [0.1]}, "contradicts"),
            ({"model": "fisheye", "distortion_model": "opencv", "distortion": [0.1]}, "contradicts"),
            ({"model": "fisheye", "distortion": [0.1, 0, 0, 0, 0.1]}, "fisheye takes 4"),
            ({"model": "brown", "distortion": [0.1, 0, 0, 0, 0, 0.3]}, "brown takes 5"),
            ({"distorsion": [0.1]}, "distorsion is not a known key"),
            ({"width": 0}, "width"),
        ],
    )
    def test_is_refused_with_the_fault(self, changes: dict, said: str) -> None:
        with pytest.raises(SourceError) as caught:
            parsed(**changes)
        assert said in str(caught.value)
        assert str(caught.value).startswith("cam.json: ")
        assert "\n" not in str(caught.value)

    def test_without_any_resolution_is_refused(self) -> None:
        with pytest.raises(SourceError, match="width and height are missing"):
            Calibration.from_json(PLAIN, "cam.json")


class TestScaling:
    cameras = st.builds(
        lambda model, f, cx, cy: Calibration(model, np.array([f, f * 1.1, cx, cy, 0, 0, 0, 0, 0.0]), 640, 480),
        st.sampled_from(CAMERA_MODELS),
        st.floats(100, 5000),
        st.floats(0, 639),
        st.floats(0, 479),
    )

    @given(camera=cameras, width=st.integers(16, 4000), height=st.integers(16, 4000))
    def test_moves_every_ray_to_the_same_place_of_the_picture(self, camera: Calibration, width: int, height: int) -> None:
        x, y = 0.3, -0.2
        fx, fy, cx, cy = camera.params[:4]
        gx, gy, dx, dy = camera.scaled(width, height).params[:4]
        assert (gx * x + dx + 0.5) / width == pytest.approx((fx * x + cx + 0.5) / 640)
        assert (gy * y + dy + 0.5) / height == pytest.approx((fy * y + cy + 0.5) / 480)

    @given(camera=cameras)
    def test_there_and_back_changes_nothing(self, camera: Calibration) -> None:
        np.testing.assert_allclose(camera.scaled(211, 97).scaled(640, 480).params, camera.params, rtol=1e-12, atol=1e-9)

    @given(camera=cameras)
    def test_json_round_trip_is_exact(self, camera: Calibration) -> None:
        again = Calibration.from_json(json.loads(json.dumps(camera.to_json())), "x")
        assert again.camera_model == camera.camera_model
        np.testing.assert_array_equal(again.params, camera.params)
        assert again.digest == camera.digest


class TestRecord:
    @pytest.mark.parametrize(
        ("model", "params"), [("mei", np.ones(9)), ("pinhole", np.ones(4)), ("pinhole", np.full(9, np.nan)), ("pinhole", np.zeros(9))]
    )
    def test_is_never_unusable(self, model: str, params: np.ndarray) -> None:
        with pytest.raises(SourceError):
            Calibration(model, params, 640, 480)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            parsed().params[0] = 1.0


class TestFinding:
    def test_beside_a_video(self, tmp_path: Path) -> None:
        video = write_video(tmp_path / "walk.mp4", 2)
        assert find_sidecar(str(video)) is None
        (tmp_path / "walk.intrinsics.json").write_text("{}")
        assert find_sidecar(str(video)) == str(tmp_path / "walk.intrinsics.json")

    @pytest.mark.parametrize("place", ["walk.intrinsics.json", "walk/rgb.intrinsics.json"])
    def test_beside_or_in_a_dataset_folder(self, tmp_path: Path, place: str) -> None:
        write_pictures(tmp_path / "walk" / "rgb", ["a.png", "b.png"])
        (tmp_path / place).write_text("{}")
        assert find_sidecar(str(tmp_path / "walk")) == str(tmp_path / place)

    def test_never_takes_the_reference_of_a_dataset(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "walk", ["a.png", "b.png"])
        (folder / "intrinsics.json").write_text(json.dumps(PLAIN))
        assert find_sidecar(str(folder)) is None

    def test_behind_a_url(self) -> None:
        import fsspec

        fs = fsspec.filesystem("memory")
        fs.pipe("/cams/walk.mp4", b"x")
        fs.pipe("/cams/walk.intrinsics.json", json.dumps(PLAIN).encode())
        found = find_sidecar("memory://cams/walk.mp4")
        assert found is not None
        assert load_calibration(found, INFO).params[0] == 500
        fs.rm("/cams", recursive=True)


class TestLoading:
    def write(self, path: Path, **changes: object) -> str:
        path.write_text(json.dumps(PLAIN | changes))
        return str(path)

    def test_refers_to_the_source_when_it_names_no_resolution(self, tmp_path: Path) -> None:
        camera = load_calibration(self.write(tmp_path / "c.json"), INFO)
        assert (camera.width, camera.height, camera.params[0]) == (640, 480, 500)

    def test_made_at_another_resolution_is_scaled(self, tmp_path: Path) -> None:
        camera = load_calibration(self.write(tmp_path / "c.json", width=1280, height=960), INFO)
        np.testing.assert_allclose(camera.params[:4], [250, 255, 159.75, 119.75])

    def test_of_another_aspect_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="made for 480x640, but the upright source is 640x480"):
            load_calibration(self.write(tmp_path / "c.json", width=480, height=640), INFO)

    @pytest.mark.parametrize(("text", "said"), [("fx: 3", "not JSON"), ("[1, 2]", "expected a JSON object"), ("", "not JSON")])
    def test_that_is_no_calibration_is_refused(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(SourceError, match=said):
            load_calibration(str(tmp_path / "c.json"), INFO)

    def test_with_nan_is_refused_naming_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"c\.json: fx = nan"):
            load_calibration(self.write(tmp_path / "c.json", fx=float("nan")), INFO)

    def test_missing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such file"):
            load_calibration(str(tmp_path / "gone.json"), INFO)

    @pytest.mark.parametrize(
        ("name", "model"),
        [("kitti_seq2", "pinhole"), ("euroc_v101_micro", "brown"), ("fox_phone", "brown"), ("7scenes_seq1000", "pinhole")],
    )
    def test_reads_the_files_of_real_datasets(self, real_clips: Path, name: str, model: str) -> None:
        source = open_source(str(real_clips / name))
        camera = load_calibration(str(real_clips / name / "intrinsics.json"), source.probe())
        assert camera.camera_model == model


class TestMetadata:
    def photos(self, folder: Path, *focals: int | None, taken: tuple[int, int] = (64, 48)) -> Path:
        from PIL import Image

        folder.mkdir()
        for number, focal in enumerate(focals):
            exif = Image.Exif()
            fields = exif.get_ifd(0x8769)
            if focal is not None:
                fields[0xA405] = focal
            fields[0xA002], fields[0xA003] = taken
            Image.fromarray(card(number)).save(folder / f"{number}.jpg", exif=exif)
        return folder

    def test_of_photos_gives_the_focal_length_by_the_diagonal(self, tmp_path: Path) -> None:
        camera = metadata_calibration(open_source(str(self.photos(tmp_path / "p", 26, 26, 26))))
        assert camera is not None
        assert camera.params[0] == camera.params[1] == pytest.approx(26 * 80 / np.hypot(36, 24))
        np.testing.assert_array_equal(camera.params[2:4], [31.5, 23.5])

    def test_that_disagrees_or_is_absent_gives_nothing(self, tmp_path: Path) -> None:
        assert metadata_calibration(open_source(str(self.photos(tmp_path / "zoomed", 26, 52, 26)))) is None
        assert metadata_calibration(open_source(str(self.photos(tmp_path / "none", None, None)))) is None
        assert metadata_calibration(open_source(str(self.photos(tmp_path / "zero", 0, 0)))) is None

    def test_of_cropped_photos_gives_nothing(self, tmp_path: Path) -> None:
        assert metadata_calibration(open_source(str(self.photos(tmp_path / "p", 26, 26, taken=(640, 360))))) is None

    def test_of_a_video_gives_nothing(self, tmp_path: Path) -> None:
        assert metadata_calibration(open_source(str(write_video(tmp_path / "v.mp4", 2)))) is None
