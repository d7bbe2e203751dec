"""The first stage: blocks of frames at working resolution, and the same frames on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_files import number_on, write_pictures, write_video
from vipe_dag.config import FramesConfig
from vipe_dag.errors import SourceError
from vipe_dag.results import FrameBlock
from vipe_dag.stages import frames
from vipe_dag.stages.frames import BLOCK_FRAMES, DecodedFrames, decode
from vipe_dag.video import Clip, open_source
from vipe_dag.video.picture import resized, working_size


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("frames") / "walk.mp4", 70, size=(160, 96), rotation=90, options={"g": "12", "bf": "3"})


class TestDecode:
    def test_gives_blocks_of_at_most_32_frames(self, video: Path) -> None:
        blocks = list(decode(open_source(str(video)), FramesConfig()))
        assert [len(block.index) for block in blocks] == [32, 32, 6]
        assert max(len(block.rgb) for block in blocks) <= BLOCK_FRAMES
        np.testing.assert_array_equal(np.concatenate([block.index for block in blocks]), np.arange(70))
        np.testing.assert_allclose(np.concatenate([block.time for block in blocks]), np.arange(70) / 25)
        assert {(block.index.dtype, block.time.dtype, block.rgb.dtype) for block in blocks} == {
            (np.dtype("int64"), np.dtype("float64"), np.dtype("uint8"))
        }

    def test_blocks_made_ahead_are_the_same_in_the_same_order(self, video: Path) -> None:
        source = open_source(str(video))
        plain, ahead = list(decode(source, FramesConfig())), list(frames.ahead(decode(source, FramesConfig())))
        assert [block.index.tolist() for block in ahead] == [block.index.tolist() for block in plain]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(plain, ahead, strict=True))

    def test_an_error_ahead_comes_after_the_blocks_before_it(self) -> None:
        def broken() -> Iterator[FrameBlock]:
            yield FrameBlock(np.arange(1), np.zeros(1), np.zeros((1, 2, 2, 3), np.uint8))
            raise SourceError("cut off")

        blocks = frames.ahead(broken())
        assert len(next(blocks).index) == 1
        with pytest.raises(SourceError, match="cut off"):
            next(blocks)

    def test_reduces_the_longer_side(self, video: Path) -> None:
        decoder = decode(open_source(str(video)), FramesConfig(long_side=80))
        assert next(iter(decoder)).rgb.shape == (32, 80, 48, 3)

    def test_does_not_enlarge(self, video: Path) -> None:
        assert next(iter(decode(open_source(str(video)), FramesConfig(long_side=640)))).rgb.shape == (32, 160, 96, 3)

    def test_tells_afterwards_what_it_saw(self, video: Path) -> None:
        source = open_source(str(video))
        decoder = decode(source, FramesConfig(long_side=80))
        with pytest.raises(RuntimeError, match="after the last block"):
            _ = decoder.info
        list(decoder)
        info = decoder.info
        assert (info.width, info.height, info.source_width, info.source_height, info.rotation) == (48, 80, 96, 160, 270)
        assert (info.codec, info.container, info.fps_nominal, info.declared_frame_count) == ("h264", "mov", 25.0, 70)
        assert (info.source_uri, info.source_digest) == (source.uri, source.digest)
        assert (info.truncated, info.flags) == (False, ())

    def test_flags_a_video_that_was_cut_off(self, video: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes(video.read_bytes()[:-2000])
        decoder = decode(open_source(str(path)), FramesConfig())
        assert 2 <= sum(len(block.index) for block in decoder) < 70
        assert decoder.info.truncated
        assert decoder.info.flags == ("truncated",)

    def test_takes_the_clip(self, video: Path) -> None:
        (block,) = decode(open_source(str(video)), FramesConfig(), Clip(1.0, 2.0, 5))
        assert block.index.tolist() == [25, 30, 35, 40, 45]

    def test_keeps_no_pixels_under_the_profile_reference(self, video: Path) -> None:
        decoder = decode(open_source(str(video)), FramesConfig(profile="reference"))
        blocks = list(decoder)
        assert sum(len(block.index) for block in blocks) == 70
        assert blocks[0].rgb.shape == (32, 0, 0, 3)
        assert (decoder.info.width, decoder.info.height) == (96, 160)

    @pytest.mark.parametrize(("field", "value"), [("max_pixels", 4096), ("max_frames", 20), ("max_seconds", 0.5)])
    def test_stops_at_the_limits_of_the_configuration(self, video: Path, field: str, value: float) -> None:
        with pytest.raises(SourceError, match=f"frames.{field} = "):
            list(decode(open_source(str(video)), FramesConfig(**{field: value})))

    def test_is_the_same_every_time(self, video: Path) -> None:
        one, other = (np.concatenate([b.rgb for b in decode(open_source(str(video)), FramesConfig(long_side=64))]) for _ in range(2))
        np.testing.assert_array_equal(one, other)


class TestDecodedFrames:
    def sequence(self, path: Path, config: FramesConfig, clip: Clip | None = None) -> tuple[np.ndarray, DecodedFrames]:
        blocks = list(decode(open_source(str(path)), config, clip))
        index, time, rgb = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("index", "time", "rgb"))
        return rgb, DecodedFrames(open_source(str(path)), config, index, time, rgb.shape[2], rgb.shape[1])

    @given(rows=st.lists(st.integers(0, 69), min_size=1, max_size=12))
    def test_gives_exactly_the_frames_of_the_pass(self, video: Path, rows: list[int]) -> None:
        rgb, sequence = self.sequence(video, FramesConfig(long_side=80))
        assert (len(sequence), sequence.height, sequence.width) == (70, 80, 48)
        for row in rows:
            np.testing.assert_array_equal(sequence.rgb(row), rgb[row])
        sequence.close()

    def test_follows_clip_and_stride(self, video: Path) -> None:
        rgb, sequence = self.sequence(video, FramesConfig(), Clip(0.4, 2.4, 7))
        assert sequence.frame.tolist() == list(range(10, 60, 7))
        for row in reversed(range(len(sequence))):
            np.testing.assert_array_equal(sequence.rgb(row), rgb[row])

    def test_reads_picture_folders(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, [f"{n}.png" for n in range(6)], size=(64, 48))
        _, sequence = self.sequence(tmp_path, FramesConfig())
        assert [number_on(sequence.rgb(row)) for row in (4, 0, 5)] == [4, 0, 5]

    def test_keeps_few_frames(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(frames, "CACHED_FRAMES", 4)
        _, sequence = self.sequence(video, FramesConfig(long_side=64))
        for row in range(20):
            sequence.rgb(row)
        assert len(sequence._cache) == 4

    def test_refuses_rows_that_are_not_there(self, video: Path) -> None:
        _, sequence = self.sequence(video, FramesConfig(long_side=64))
        for row in (-1, 70):
            with pytest.raises(IndexError):
                sequence.rgb(row)

    def test_notices_that_the_source_changed(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.mp4", 10, fps=25)
        _, sequence = self.sequence(path, FramesConfig())
        write_video(path, 10, fps=7)
        with pytest.raises(SourceError, match="the file changed"):
            sequence.rgb(5)


class TestWorkingSize:
    @given(width=st.integers(1, 10_000), height=st.integers(1, 10_000), long_side=st.integers(64, 8192))
    def test_never_enlarges_and_keeps_the_aspect_to_the_pixel(self, width: int, height: int, long_side: int) -> None:
        w, h = working_size(width, height, long_side)
        assert max(w, h) == min(long_side, max(width, height))
        scale = max(w, h) / max(width, height)
        assert abs(w - width * scale) <= 0.5 or w == 1
        assert abs(h - height * scale) <= 0.5 or h == 1

    @pytest.mark.parametrize(("size", "working"), [((1280, 720), (640, 360)), ((1241, 376), (640, 194)), ((540, 960), (360, 640))])
    def test_of_common_sources(self, size: tuple[int, int], working: tuple[int, int]) -> None:
        assert working_size(*size, 640) == working


@pytest.mark.parametrize(("width", "height"), [(50, 30), (67, 41), (99, 31), (150, 90)])
def test_resizing_moves_pixel_centres_by_the_half_pixel_rule(width: int, height: int) -> None:
    x, y = np.meshgrid(np.arange(100.0), np.arange(60.0))
    ramp = np.stack([2 * x + 10, 3 * y + 10, np.zeros_like(x)], axis=-1)
    small = resized(ramp.round().astype(np.uint8), width, height).astype(float)[1:-1, 1:-1]
    u, v = np.meshgrid(np.arange(1, width - 1), np.arange(1, height - 1))
    np.testing.assert_allclose(small[..., 0], 2 * ((u + 0.5) * 100 / width - 0.5) + 10, atol=1.01)
    np.testing.assert_allclose(small[..., 1], 3 * ((v + 0.5) * 60 / height - 0.5) + 10, atol=1.51)
