"""A folder of pictures as a video: order, times, orientation, depth of samples, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from video_files import card, corners_of, number_on, numbers, refusal, write_pictures
from vipe_dag.video import NOMINAL_FPS, Clip, open_source


class TestPictureFolder:
    def test_is_read_in_natural_order(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["img1.png", "img2.png", "img10.png"])
        assert numbers(tmp_path) == [0, 1, 2]

    @pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "png", "tif", "tiff", "bmp", "webp"])
    def test_may_hold_any_common_kind(self, tmp_path: Path, ending: str) -> None:
        write_pictures(tmp_path, [f"{n}.{ending}" for n in range(3)])
        assert numbers(tmp_path) == [0, 1, 2]

    def test_without_times_has_nominal_ones_and_says_so(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
        source = open_source(str(tmp_path))
        stream = source.iterate()
        assert [frame.time for frame in stream] == [n / NOMINAL_FPS for n in range(3)]
        assert stream.flags == ("nominal_times",)
        assert source.probe().nominal_times

    def test_ignores_other_and_hidden_files(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["a.png", "b.png", ".c.png"])
        (tmp_path / "notes.txt").write_text("x")
        assert numbers(tmp_path) == [0, 1]

    def test_may_be_the_dataset_folder_above(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "walk" / "rgb", ["a.png", "b.png"])
        above, inside = open_source(str(tmp_path / "walk")), open_source(str(tmp_path / "walk" / "rgb"))
        assert above.name == inside.name == "walk"
        assert above.digest == inside.digest

    def test_applies_the_orientation_that_a_camera_noted(self, tmp_path: Path) -> None:
        from PIL import Image

        for name in ("a.jpg", "b.jpg"):
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(card(0)).save(tmp_path / name, exif=exif, quality=100, subsampling=0)
        source = open_source(str(tmp_path))
        frame = next(source.iterate())
        assert corners_of(frame.rgb) == ["blue", "red", "white", "green"]
        info = source.probe()
        assert (info.width, info.height, info.rotation) == (48, 64, 90)

    @pytest.mark.parametrize("kept", [{}, {"transparency": (255, 0, 0)}, {"gamma": 2.2}, {"icc_profile": b"none"}])
    def test_reads_a_png_as_pillow_does(self, tmp_path: Path, kept: dict[str, Any]) -> None:
        from PIL import Image

        for name in ("a.png", "b.png"):
            Image.fromarray(card(0)).save(tmp_path / name, **kept)
        assert np.array_equal(next(open_source(str(tmp_path)).iterate()).rgb, card(0))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["jpg", "tif"])
    def test_orients_as_pillow_does(self, tmp_path: Path, orientation: int, kind: str) -> None:
        from PIL import Image, ImageOps

        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a", "b"):
            Image.fromarray(card(5)).save(tmp_path / f"{name}.{kind}", exif=exif)
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a.{kind}")))
        np.testing.assert_array_equal(next(open_source(str(tmp_path)).iterate()).rgb, wanted)

    @pytest.mark.parametrize("kind", ["png", "tif"])
    @pytest.mark.parametrize("colour", [False, True])
    @pytest.mark.parametrize("bits", [10, 12, 16])
    def test_scales_deep_samples_by_one_factor(self, tmp_path: Path, kind: str, colour: bool, bits: int) -> None:
        import cv2

        ramp = np.linspace(0, (1 << bits) - 1, 64 * 48).round().astype(np.uint16).reshape(48, 64)
        picture = np.stack([ramp, ramp // 2, ramp // 4], axis=-1) if colour else ramp
        for name in ("a", "b"):
            cv2.imwrite(str(tmp_path / f"{name}.{kind}"), picture[..., ::-1] if colour else picture)
        rgb = next(open_source(str(tmp_path)).iterate()).rgb
        wanted = picture * (255 / ((1 << bits) - 1))
        np.testing.assert_allclose(rgb, wanted if colour else np.repeat(wanted[..., None], 3, axis=-1), atol=0.51)
        assert open_source(str(tmp_path)).probe().bit_depth == 16

    def test_takes_grey_palette_and_transparent_pictures(self, tmp_path: Path) -> None:
        from PIL import Image

        picture = Image.fromarray(card(3))
        for number, mode in enumerate(["L", "P", "RGBA", "1", "LA"]):
            picture.convert(mode).save(tmp_path / f"{number}.png")
        assert numbers(tmp_path) == [3] * 5

    def test_gives_clips(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, [f"{n}.png" for n in range(30)])
        assert numbers(tmp_path, Clip(0.2, 0.8, 4)) == [6, 10, 14, 18, 22]

    def test_reads_single_frames(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, [f"{n}.png" for n in range(5)])
        source = open_source(str(tmp_path))
        frames = list(source.iterate(size=(32, 24)))
        np.testing.assert_array_equal(source.reader((32, 24)).read(3, frames[3].time).rgb, frames[3].rgb)

    def test_refuses_a_folder_without_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        assert "no pictures in this folder" in refusal(tmp_path)

    def test_refuses_a_folder_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.implementations.local import LocalFileSystem

        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(LocalFileSystem, "ls", refuse)
        assert f"{tmp_path}: no permission to read it" in refusal(tmp_path)

    def test_refuses_one_picture(self, tmp_path: Path) -> None:
        assert "at least 2 frames" in refusal(write_pictures(tmp_path, ["a.png"]))

    def test_refuses_mixed_sizes_naming_both(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["a.png", "b.png"])
        write_pictures(tmp_path / "other", ["c.png"], size=(80, 48))
        shutil.move(tmp_path / "other" / "c.png", tmp_path / "c.png")
        assert "c.png: 80x48, but a.png is 64x48" in refusal(tmp_path)

    @pytest.mark.parametrize("kind", ["jpg", "png", "tif", "bmp"])
    def test_refuses_a_damaged_picture_naming_it(self, tmp_path: Path, kind: str) -> None:
        write_pictures(tmp_path, [f"{n}.{kind}" for n in range(3)])
        damaged = tmp_path / f"1.{kind}"
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
        assert f"1.{kind}" in refusal(tmp_path)

    def test_refuses_text_named_png(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["a.png", "b.png"])
        (tmp_path / "b.png").write_text("hello")
        assert "b.png: not a picture" in refusal(tmp_path)

    def test_the_digest_changes_with_content_names_and_times(self, tmp_path: Path) -> None:
        digests = set()
        for names, times in (("ab", None), ("ac", None), ("ab", "0 a.png\n1 b.png\n"), ("ab", "0 a.png\n2 b.png\n")):
            folder = write_pictures(tmp_path / str(len(digests)), [f"{name}.png" for name in names])
            if times:
                (folder / "rgb.txt").write_text(times)
            digests.add(open_source(str(folder)).digest)
        assert len(digests) == 4


class TestTimesFile:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Path:
        write_pictures(tmp_path / "walk" / "rgb", ["a.png", "b.png", "c.png"])
        (tmp_path / "walk" / "rgb.txt").write_text("# timestamp file\n10.5 rgb/c.png\n11.25 rgb/a.png\n\n12 rgb/b.png\n")
        return tmp_path / "walk"

    @pytest.mark.parametrize("inner", ["", "rgb"])
    def test_gives_order_and_times(self, dataset: Path, inner: str) -> None:
        stream = open_source(str(dataset / inner)).iterate()
        assert [(number_on(frame.rgb), frame.time) for frame in stream] == [(2, 10.5), (0, 11.25), (1, 12.0)]
        assert stream.flags == ()

    def test_may_lie_beside_the_pictures(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, ["a.png", "b.png"])
        (tmp_path / "rgb.txt").write_text("1 b.png\n2 a.png\n")
        assert numbers(tmp_path) == [1, 0]

    def test_has_no_say_over_other_folders(self, dataset: Path) -> None:
        write_pictures(dataset / "mask", ["a.png", "b.png"])
        assert open_source(str(dataset / "mask")).probe().nominal_times

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("nan rgb/a.png", "line 2: 'nan' is not a time"),
            ("soon rgb/a.png", "line 2: 'soon' is not a time"),
            ("0.5 rgb/a.png", "line 2: 0.5 s does not come after 1 s"),
            ("2 rgb/gone.png", "names 'gone.png', which is missing"),
            ("2 ../../secret.png", "line 2: expected `seconds file` with a picture inside the folder"),
            ("2 /etc/secret.png", "line 2: expected `seconds file` with a picture inside the folder"),
            ("2", "line 2: expected `seconds file`"),
        ],
    )
    def test_is_refused_with_the_line_when_wrong(self, dataset: Path, line: str, said: str) -> None:
        (dataset / "rgb.txt").write_text(f"1 rgb/b.png\n{line}\n3 rgb/c.png\n")
        assert said in refusal(dataset)


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("kitti_seq2", 51, (1241, 376)),
        ("euroc_v101_micro", 74, (752, 480)),
        ("fox_phone", 50, (540, 960)),
        ("davis_tennis", 70, (448, 256)),
    ],
)
def test_real_datasets_are_read_by_either_folder(real_clips: Path, name: str, frames: int, size: tuple[int, int]) -> None:
    for folder in (real_clips / name, real_clips / name / "rgb"):
        source = open_source(str(folder))
        info = source.probe()
        assert (info.frame_count, (info.width, info.height), source.name) == (frames, size, name)
