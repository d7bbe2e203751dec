"""What a video file becomes: every frame, upright, at the time that the container gives it."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_files import CORNERS, card, corners_of, number_on, write_pictures, write_sound, write_video
from vipe_dag.errors import ConfigError, SourceError
from vipe_dag.video import Clip, Limits, open_source

FLAT = {"crf": "1"}
CONTAINERS = {
    "mp4 with B-frames": ("a.mp4", {"codec": "libx264", "options": {"bf": "3", "g": "8"}}),
    "mov, HEVC": ("a.mov", {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3"}}),
    "mkv": ("a.mkv", {"codec": "libx264"}),
    "webm, VP9": ("a.webm", {"codec": "libvpx-vp9", "options": {"lag-in-frames": "4", "auto-alt-ref": "1"}}),
    "avi, MPEG-4 with B-frames": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "avi, H.264 with B-frames": ("a.avi", {"codec": "libx264", "options": {"bf": "3"}}),
    "mpeg-ts": ("a.ts", {"codec": "libx264"}),
    "motion jpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "FFV1": ("a.mkv", {"codec": "ffv1"}),
    "bare H.264": ("a.h264", {"codec": "libx264", "options": {"bf": "2"}, "format": "h264"}),
}


LONG = {
    "closed groups": ("l.mp4", {"options": {"bf": "3", "g": "10"}}),
    "open groups": ("l.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3:keyint=10:open-gop=1"}}),
    "one key frame": ("l.mp4", {"options": {"g": "999"}}),
    "VP9": ("l.mp4", {"codec": "libvpx-vp9", "options": {"g": "20"}}),
    "fragmented": ("l.mp4", {"options": {"g": "10"}, "faststart": False, "muxing": {"movflags": "frag_keyframe+empty_moov"}}),
    "matroska": ("l.mkv", {"options": {"g": "10"}}),
}


@pytest.fixture(params=CONTAINERS, ids=list(CONTAINERS))
def any_video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, how = CONTAINERS[request.param]
    return write_video(tmp_path / name, 20, fps=25, **how)


def frames_of(path: Path, clip: Clip | None = None, **how: object) -> list:
    return list(open_source(str(path)).iterate(clip or Clip(), **how))


def numbers(frames: list) -> list[int]:
    return [number_on(frame.rgb) for frame in frames]


class TestEveryContainer:
    def test_gives_all_frames_in_the_order_of_presentation(self, any_video: Path) -> None:
        frames = frames_of(any_video)
        assert numbers(frames) == list(range(20))
        assert [frame.index for frame in frames] == list(range(20))

    def test_gives_times_one_period_apart(self, any_video: Path) -> None:
        times = np.array([frame.time for frame in frames_of(any_video)])
        np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-9)

    def test_is_not_called_truncated_or_damaged(self, any_video: Path) -> None:
        stream = open_source(str(any_video)).iterate()
        assert len(list(stream)) == 20
        assert stream.truncated is False
        assert stream.flags == (("nominal_times",) if any_video.suffix == ".h264" else ())

    def test_frames_can_be_read_in_any_order(self, any_video: Path) -> None:
        frames = frames_of(any_video)
        reader = open_source(str(any_video)).reader()
        for row in (0, 1, 5, 4, 19, 7, 7, 0, 12):
            again = reader.read(frames[row].index, frames[row].time)
            np.testing.assert_array_equal(again.rgb, frames[row].rgb)
        reader.close()


class TestTimes:
    def test_of_a_variable_rate_are_those_of_the_container(self, tmp_path: Path) -> None:
        times_ms = [0, 33, 67, 100, 500, 520, 521, 900, 1000, 1033]
        path = write_video(tmp_path / "v.mkv", 10, times_ms=times_ms)
        assert [frame.time for frame in frames_of(path)] == [ms / 1000 for ms in times_ms]

    def test_start_where_the_container_says(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.mkv", 5, times_ms=[2000, 2040, 2080, 2120, 2160])
        assert frames_of(path)[0].time == 2.0

    @given(gaps=st.lists(st.integers(1, 400), min_size=1, max_size=12))
    def test_are_strictly_increasing_and_exact(self, tmp_path_factory: pytest.TempPathFactory, gaps: list[int]) -> None:
        times_ms = [0, *np.cumsum(gaps).tolist()]
        path = write_video(tmp_path_factory.mktemp("v") / "v.mkv", len(times_ms), times_ms=times_ms, options={"preset": "ultrafast"})
        assert [frame.time for frame in frames_of(path)] == [ms / 1000 for ms in times_ms]


class TestUpright:
    UPRIGHT = ("red", "green", "blue", "white")

    @pytest.mark.parametrize(
        ("rotation", "mirrored", "corners"),
        [
            (0, False, ["red", "green", "blue", "white"]),
            (90, False, ["green", "white", "red", "blue"]),
            (180, False, ["white", "blue", "green", "red"]),
            (-90, False, ["blue", "red", "white", "green"]),
            (0, True, ["green", "red", "white", "blue"]),
        ],
    )
    def test_the_display_matrix_turns_the_picture(self, tmp_path: Path, rotation: int, mirrored: bool, corners: list[str]) -> None:
        path = write_video(tmp_path / "phone.mp4", 3, rotation=rotation, mirrored=mirrored, options=FLAT)
        source = open_source(str(path))
        frame = next(source.iterate())
        assert corners_of(frame.rgb) == corners
        info = source.probe()
        assert (info.rotation, info.mirrored) == (-rotation % 360, mirrored)
        assert frame.rgb.shape == (info.height, info.width, 3)

    def test_a_mirrored_turn_is_undone_in_the_order_that_ffmpeg_gives(self, tmp_path: Path) -> None:
        import av
        from av.sidedata.sidedata import Type

        path = write_video(tmp_path / "phone.mp4", 3, rotation=90, mirrored=True, options=FLAT)
        with av.open(str(path)) as container:
            matrix = np.frombuffer(bytes(next(container.decode(video=0)).side_data[Type.DISPLAYMATRIX]), dtype=np.int32)
        a, b, c, d = (int(np.sign(value)) for value in matrix[[0, 1, 3, 4]])
        stored = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])  # red, green, blue, white
        shown = np.stack([a * stored[:, 0] + c * stored[:, 1], b * stored[:, 0] + d * stored[:, 1]], axis=1)
        order = np.lexsort((shown[:, 0], shown[:, 1]))
        assert corners_of(frames_of(path)[0].rgb) == [list(CORNERS)[i] for i in order]

    def test_portrait_stays_portrait(self, tmp_path: Path) -> None:
        info = open_source(str(write_video(tmp_path / "v.mp4", 3, size=(48, 64)))).probe()
        assert (info.width, info.height) == (48, 64)

    def test_pixels_that_are_not_square_become_square(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "dv.mkv", 3, size=(72, 48), pixel_aspect=Fraction(4, 3))
        info = open_source(str(path)).probe()
        assert (info.width, info.height, info.pixel_aspect) == (96, 48, pytest.approx(4 / 3))
        assert numbers(frames_of(path)) == [0, 1, 2]


class TestPixels:
    @pytest.mark.parametrize(
        ("name", "codec", "pix_fmt", "size", "bits"),
        [
            ("odd.mkv", "ffv1", "yuv444p", (65, 47), 8),
            ("ten.mp4", "libx265", "yuv420p10le", (64, 48), 10),
            ("grey.mkv", "ffv1", "gray", (64, 48), 8),
            ("sixteen.mkv", "ffv1", "gray16le", (64, 48), 16),
            ("colour.mkv", "libx264rgb", "rgb24", (64, 48), 8),
            ("animation.gif", "gif", "rgb8", (64, 48), 8),
        ],
    )
    def test_odd_sizes_depths_and_grey_become_8_bit_rgb(
        self, tmp_path: Path, name: str, codec: str, pix_fmt: str, size: tuple[int, int], bits: int
    ) -> None:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        path = write_video(tmp_path / name, 5, codec=codec, pix_fmt=pix_fmt, size=size, options=options)
        frames = frames_of(path)
        assert numbers(frames) == list(range(5))
        assert all(frame.rgb.shape == (size[1], size[0], 3) and frame.rgb.dtype == np.uint8 for frame in frames)
        assert open_source(str(path)).probe().bit_depth == bits

    def test_keep_their_colours(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.mkv", 2, codec="ffv1", pix_fmt="yuv444p")
        np.testing.assert_allclose(frames_of(path)[0].rgb.astype(int), card(0), atol=4)

    def test_are_area_averages_when_reduced(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.mkv", 2, codec="ffv1", pix_fmt="gray")
        full, half = frames_of(path)[1].rgb, frames_of(path, size=(32, 24))[1].rgb
        averages = full.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(half, averages, atol=0.51)

    def test_are_left_out_when_not_wanted(self, tmp_path: Path) -> None:
        frames = frames_of(write_video(tmp_path / "v.mp4", 4), pixels=False)
        assert [frame.rgb.shape for frame in frames] == [(0, 0, 3)] * 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """A file and all its frames."""
    path = write_video(tmp_path_factory.mktemp("clip") / "v.mkv", 40, fps=10, options={"g": "7"})
    return path, frames_of(path)


class TestClip:
    @given(
        start=st.none() | st.floats(0, 3.9),
        length=st.none() | st.floats(0.3, 5),
        stride=st.integers(1, 7),
    )
    def test_equals_slicing_the_whole(self, whole: tuple[Path, list], start: float | None, length: float | None, stride: int) -> None:
        path, frames = whole
        end = None if length is None else (start or 0.0) + length
        wanted = [f for f in frames if f.time >= (start or 0.0) and (end is None or f.time < end)][::stride]
        clip = Clip(start, end, stride)
        if len(wanted) < 2:
            with pytest.raises(SourceError, match="at least 2 frames"):
                frames_of(path, clip)
            return
        found = frames_of(path, clip)
        assert [(f.index, f.time) for f in found] == [(f.index, f.time) for f in wanted]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one.rgb, other.rgb)

    @pytest.mark.parametrize("kind", LONG, ids=list(LONG))
    def test_late_in_a_long_video_is_numbered_as_by_a_full_pass(self, tmp_path: Path, kind: str) -> None:
        name, how = LONG[kind]
        path = write_video(tmp_path / name, 130, fps=10, **how)
        frames = frames_of(path)
        for clip in (Clip(5.0, 6.0), Clip(7.35, None, 3), Clip(12.7)):
            seconds = [round(frame.time - frames[0].time, 9) for frame in frames]
            inside = [clip.start <= s and (clip.end is None or s < clip.end) for s in seconds]
            wanted = [frame for frame, taken in zip(frames, inside, strict=True) if taken][:: clip.stride]
            stream = open_source(str(path)).iterate(clip)
            found = list(stream)
            assert stream.flags == ()
            assert [(f.index, f.time) for f in found] == [(f.index, f.time) for f in wanted]
            assert numbers(found) == [f.index for f in wanted]

    def test_late_in_a_long_video_is_not_decoded_from_the_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from vipe_dag.video import decoding

        path = write_video(tmp_path / "l.mp4", 200, fps=10, options={"g": "10"})
        decoded = []
        monkeypatch.setattr(decoding, "_decoded", lambda *args, real=decoding._decoded: decoded.append(args) or real(*args))
        assert [frame.index for frame in frames_of(path, Clip(18.0, 18.5))] == [180, 181, 182, 183, 184]
        assert len(decoded) < 80

    def test_in_the_part_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        whole = write_video(tmp_path / "l.mp4", 130, fps=10, options={"qp": "1", "g": "10"}).read_bytes()
        path = tmp_path / "cut.mp4"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match="at least 2 frames are needed"):
            frames_of(path, Clip(12.0))

    def test_counts_seconds_from_the_first_frame(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.mkv", 5, times_ms=[10_000, 10_100, 10_200, 10_300, 10_400])
        assert [frame.index for frame in frames_of(path, Clip(0.1, 0.3))] == [1, 2]

    @pytest.mark.parametrize(
        "bad", [{"start": -1.0}, {"start": float("nan")}, {"end": 0.0}, {"start": 2.0, "end": 1.0}, {"end": float("inf")}, {"stride": 0}]
    )
    def test_refuses_what_selects_nothing(self, bad: dict) -> None:
        with pytest.raises(ConfigError, match=r"--(start|end|stride)"):
            Clip(**bad)


class TestCutOff:
    @pytest.fixture
    def full(self, tmp_path: Path) -> bytes:
        return write_video(tmp_path / "full.mp4", 60, options={"qp": "1", "bf": "2", "g": "10"}).read_bytes()

    @pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
    def test_an_mp4_with_its_index_in_front_gives_the_frames_it_has(self, tmp_path: Path, full: bytes, share: float) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes(full[: int(len(full) * share)])
        stream = open_source(str(path)).iterate()
        found = numbers(list(stream))
        assert 5 < len(found) < 60
        assert found[:-4] == list(range(len(found)))[:-4]
        assert stream.truncated
        assert stream.flags == ("truncated",)

    def test_the_last_packet_missing_is_noticed(self, tmp_path: Path, full: bytes) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes(full[:-5])
        stream = open_source(str(path)).iterate()
        assert len(list(stream)) == 59
        assert stream.truncated

    def test_a_matroska_that_ends_early_is_noticed(self, tmp_path: Path) -> None:
        content = write_video(tmp_path / "full.mkv", 60, options={"qp": "1"}).read_bytes()
        path = tmp_path / "cut.mkv"
        path.write_bytes(content[: len(content) // 2])
        stream = open_source(str(path)).iterate()
        assert 5 < len(list(stream)) < 60
        assert stream.truncated

    def test_a_clip_that_ends_before_the_damage_is_whole(self, tmp_path: Path, full: bytes) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes(full[: int(len(full) * 0.8)])
        stream = open_source(str(path)).iterate(Clip(end=0.5))
        assert len(list(stream)) == 12 + 1
        assert not stream.truncated

    def test_an_mp4_without_its_index_says_so(self, tmp_path: Path) -> None:
        content = write_video(tmp_path / "full.mp4", 60, faststart=False).read_bytes()
        path = tmp_path / "cut.mp4"
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=r"cut\.mp4: its index \(moov\) is missing"):
            open_source(str(path)).probe()

    def test_sound_longer_than_the_pictures_is_not_a_cut(self, tmp_path: Path) -> None:
        stream = open_source(str(write_video(tmp_path / "v.mkv", 12, sound=True))).iterate()
        assert len(list(stream)) == 12
        assert not stream.truncated

    def test_damage_in_the_middle_costs_frames_and_is_flagged(self, tmp_path: Path) -> None:
        import av

        whole = write_video(tmp_path / "full.mp4", 60, options={"qp": "1", "g": "10"})
        with av.open(str(whole)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        content = bytearray(whole.read_bytes())
        content[packets[30].pos : packets[30].pos + packets[30].size] = bytes(packets[30].size)
        path = tmp_path / "holed.mp4"
        path.write_bytes(content)
        stream = open_source(str(path)).iterate()
        times = [frame.time for frame in stream]
        assert 50 <= len(times) < 60
        assert np.all(np.diff(times) > 0)
        assert stream.flags == ("damaged",)


class TestRefused:
    """One line each: the file, the fact, the remedy."""

    def refusal(self, path: Path, **how: object) -> str:
        with pytest.raises(SourceError) as caught:
            frames_of(path, **how)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "no such file" in self.refusal(tmp_path / "nothing.mp4")

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        assert "empty" in self.refusal(tmp_path / "empty.mp4")

    def test_text_named_mp4(self, tmp_path: Path) -> None:
        (tmp_path / "notes.mp4").write_text("dear diary\n" * 50)
        assert "text file" in self.refusal(tmp_path / "notes.mp4")

    def test_noise(self, tmp_path: Path) -> None:
        (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
        assert "not a video" in self.refusal(tmp_path / "noise.mp4")

    def test_sound_only(self, tmp_path: Path) -> None:
        assert "no video stream" in self.refusal(write_sound(tmp_path / "song.mp4"))

    def test_sound_with_a_cover_picture(self, tmp_path: Path) -> None:
        assert "no video stream (only a cover picture and audio)" in self.refusal(write_sound(tmp_path / "song.m4a", cover=True))

    def test_one_frame(self, tmp_path: Path) -> None:
        assert "at least 2 frames" in self.refusal(write_video(tmp_path / "still.mp4", 1))

    def test_one_picture(self, tmp_path: Path) -> None:
        from PIL import Image

        Image.fromarray(card(0)).save(tmp_path / "photo.jpg")
        assert "one picture" in self.refusal(tmp_path / "photo.jpg")

    def test_a_playlist_that_names_another_file(self, tmp_path: Path) -> None:
        write_video(tmp_path / "other.ts", 5)
        (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/other.ts\n#EXT-X-ENDLIST\n")
        assert "text file" in self.refusal(tmp_path / "list.mp4")

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.implementations.local import LocalFileSystem

        path = write_video(tmp_path / "secret.mp4", 3)

        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(LocalFileSystem, "open", refuse)
        assert "no permission" in self.refusal(path)

    def test_more_pixels_than_allowed(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "big.mp4", 3, size=(320, 240))
        assert "320x240 pixels exceed frames.max_pixels" in self.refusal(path, limits=Limits(max_pixels=10_000))

    def test_more_frames_than_allowed(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "long.mp4", 10)
        assert "frames.max_frames = 5" in self.refusal(path, limits=Limits(max_frames=5))

    def test_more_seconds_than_allowed(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "long.mkv", 3, times_ms=[0, 100, 50_000])
        assert "frames.max_seconds = 10" in self.refusal(path, limits=Limits(max_seconds=10.0))

    @pytest.mark.parametrize("name", ["slow.mp4", "slow"])
    def test_decoding_that_takes_longer_than_allowed(self, tmp_path: Path, name: str) -> None:
        path = write_video(tmp_path / name, 3) if "." in name else write_pictures(tmp_path / name, ["a.png", "b.png"])
        assert "decoding took more than 0 s; select a part" in self.refusal(path, limits=Limits(max_decoding_s=0.0))

    def test_time_that_is_spent_on_the_frames_is_not_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("vipe_dag.video.records.time", SimpleNamespace(monotonic=lambda: now[0]))
        for _ in open_source(str(write_video(tmp_path / "v.mp4", 5))).iterate(limits=Limits(max_decoding_s=1.0)):
            now[0] += 100.0

    def test_a_picture_that_changes_its_form(self, tmp_path: Path) -> None:
        parts = [write_video(tmp_path / f"{n}.h264", 5, size=size, format="h264") for n, size in enumerate([(64, 48), (48, 64)])]
        path = tmp_path / "joined.h264"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert "changes from 64x48 to 48x64" in self.refusal(path)


class TestIdentity:
    def test_the_digest_is_of_the_content_not_the_name(self, tmp_path: Path) -> None:
        one = write_video(tmp_path / "one.mp4", 3)
        (tmp_path / "two.mp4").write_bytes(one.read_bytes())
        other = write_video(tmp_path / "other.mp4", 4)
        digests = [open_source(str(path)).digest for path in (one, tmp_path / "two.mp4", other)]
        assert digests[0] == digests[1] != digests[2]

    def test_a_relative_path_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_video(tmp_path / "v.mp4", 3)
        monkeypatch.chdir(tmp_path)
        assert open_source("v.mp4").uri == str(path)


def test_importing_the_records_loads_no_decoder() -> None:
    code = "import sys, vipe_dag.video, vipe_dag.calibration; print([m for m in 'av cv2 torch PIL dagster'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "frames", "end"), [("dog-example.mp4", 122, 121 / 29.97), ("cosmos-example.mp4", 81, 5.0)])
def test_real_clips_are_read_whole(real_clips: Path, name: str, frames: int, end: float) -> None:
    found = frames_of(real_clips / "clips" / name, size=(160, 90))
    assert len(found) == frames
    assert found[-1].time == pytest.approx(end, abs=1e-6)
