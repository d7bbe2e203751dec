"""Stored videos as a torch Dataset: what a sample holds, which frames there are, workers, the cache of decoded frames, bad input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stored_clip import FINGERPRINT, VIDEO, second_generation, store_clip
from vipe_dag import VideoDataset, synthetic
from vipe_dag.dataset import Sample
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip

FRAMES = 6
SECOND = "second-0a1b2c3d"
LOST = np.arange(FRAMES) != 2


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return synthetic.scene("room", n_frames=FRAMES, width=64, height=36, supersample=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, clip: SyntheticClip) -> Path:
    """Two videos; the second has a frame without a pose."""
    folder = tmp_path_factory.mktemp("dataset")
    store_clip(VideoStore(folder), clip)
    store_clip(VideoStore(folder), clip, video_id=SECOND, tracked=LOST)
    return folder


def assert_same(one: Sample, other: Sample) -> None:
    for name in Sample._fields:
        first, second = torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name))
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


class TestSample:
    def test_it_holds_what_is_stored(self, root: Path, clip: SyntheticClip) -> None:
        rgb, depth, cam2world, K, mask, camera, *_ = VideoDataset(root, VIDEO)[3]
        np.testing.assert_array_equal(rgb.permute(1, 2, 0).numpy(), clip.frames().rgb(3))
        np.testing.assert_array_equal(depth.numpy(), clip.truth(3)[0].astype(np.float16).astype(np.float32))
        np.testing.assert_allclose(cam2world.numpy(), clip.cam2world[3], rtol=1e-6)
        fx, fy, cx, cy = clip.camera.params[:4]
        np.testing.assert_allclose(K.numpy(), [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], rtol=1e-6)
        np.testing.assert_allclose(camera.numpy(), clip.camera.params, rtol=1e-6)
        assert mask.all()
        assert (rgb.dtype, depth.dtype, cam2world.dtype, K.dtype, mask.dtype) == (torch.uint8, *[torch.float32] * 3, torch.bool)

    def test_it_says_where_it_comes_from(self, root: Path, clip: SyntheticClip) -> None:
        frames = VideoDataset(root)
        sample = frames[FRAMES + 2]
        assert (frames.videos[sample.video], sample.frame, sample.segment) == (SECOND, 3, 0)
        assert sample.time == pytest.approx(clip.time[3])

    def test_points_lie_where_k_and_pose_say(self, root: Path, clip: SyntheticClip) -> None:
        """A pixel's depth, carried into the world and seen from another frame, gives that frame's depth: conventions fit together."""
        first, second = VideoDataset(root, VIDEO)[0], VideoDataset(root, VIDEO)[1]
        v, u = np.mgrid[4:32:4, 4:60:4]
        pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
        local = pixels @ np.linalg.inv(first.K.numpy()).T * first.depth.numpy()[v, u].reshape(-1, 1)
        world = local @ first.cam2world.numpy()[:3, :3].T + first.cam2world.numpy()[:3, 3]
        seen = (world - second.cam2world.numpy()[:3, 3]) @ second.cam2world.numpy()[:3, :3]
        projected = seen @ second.K.numpy().T
        column, row = np.rint(projected[:, :2] / projected[:, 2:]).astype(int).T
        inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 36)
        error = np.abs(second.depth.numpy()[row[inside], column[inside]] / seen[inside, 2] - 1)
        assert np.median(error) < 0.01

    def test_shrinking_keeps_the_picture_and_moves_the_camera_with_it(self, root: Path, clip: SyntheticClip) -> None:
        small = VideoDataset(root, VIDEO, max_side=32)
        sample = small[0]
        assert small.sizes == ((18, 32),)
        assert sample.rgb.shape == (3, 18, 32)
        halves = clip.frames().rgb(0).reshape(18, 2, 32, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(sample.rgb.permute(1, 2, 0).numpy(), halves, atol=1)
        np.testing.assert_allclose(sample.camera.numpy(), clip.camera.scaled(32, 18).params, rtol=1e-6)
        assert np.isin(sample.depth.numpy(), clip.truth(0)[0].astype(np.float16).astype(np.float32)).all()  # no surfaces are mixed

    def test_pictures_are_never_enlarged(self, root: Path) -> None:
        assert VideoDataset(root, VIDEO, max_side=4096).sizes == ((36, 64),)

    def test_the_mask_asks_for_known_confident_and_measured_depth(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store = VideoStore(tmp_path)
        store_clip(store, clip)
        depth = np.ones((FRAMES, 36, 64), np.float16)
        confidence, measured = np.full(depth.shape, 200, np.uint8), np.ones(depth.shape, bool)
        depth[:, 0, 0], depth[:, 0, 1], confidence[:, 0, 2], measured[:, 0, 3] = np.nan, np.inf, 99, False
        with store.begin(VIDEO, "dense_depth", FINGERPRINT) as w:
            w.append({"z_depth": depth, "confidence": confidence, "measured": measured})
            w.attrs({"scale_source": "arbitrary", "flags": []})

        def refused(**options: object) -> list[int]:
            mask = VideoDataset(tmp_path, depth="dense_depth", **options)[0].mask  # type: ignore[arg-type]
            return torch.nonzero(~mask[0]).flatten().tolist()

        assert refused() == [0, 1]
        assert refused(min_confidence=100) == [0, 1, 2]
        assert refused(measured_only=True) == [0, 1, 3]


class TestFrames:
    def test_frames_without_a_pose_are_left_out_unless_wanted(self, root: Path) -> None:
        assert [sample.frame for sample in map(VideoDataset(root, SECOND).__getitem__, range(FRAMES - 1))] == [0, 1, 3, 4, 5]
        assert len(VideoDataset(root, SECOND, tracked_only=False)) == FRAMES

    def test_all_videos_with_depth_are_taken_when_none_is_named(self, root: Path) -> None:
        frames = VideoDataset(root)
        assert frames.videos == (VIDEO, SECOND)
        np.testing.assert_array_equal(frames.video_of, [0] * FRAMES + [1] * (FRAMES - 1))
        assert frames.camera_models == ("pinhole", "pinhole")

    def test_indices_count_from_the_end_and_stop_there(self, root: Path) -> None:
        frames = VideoDataset(root)
        assert_same(frames[-1], frames[len(frames) - 1])
        for outside in (len(frames), -len(frames) - 1):
            with pytest.raises(IndexError, match=f"of {len(frames)}"):
                frames[outside]

    def test_results_that_come_later_are_not_seen(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store = VideoStore(tmp_path)
        store_clip(store, clip)
        frames = VideoDataset(tmp_path)
        moved = clip.cam2world.copy()
        moved[:, :3, 3] += 1
        second_generation(store, moved)
        np.testing.assert_allclose(frames[0].cam2world.numpy(), clip.cam2world[0], rtol=1e-6)
        np.testing.assert_allclose(VideoDataset(tmp_path)[0].cam2world.numpy(), moved[0], rtol=1e-6)


class TestWorkers:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_workers_give_what_the_main_process_gives(self, root: Path, method: str) -> None:
        frames = VideoDataset(root, max_side=32)
        alone = [frames[index] for index in range(len(frames))]  # opened before the workers start
        loader = DataLoader(frames, batch_size=None, num_workers=2, multiprocessing_context=method)
        for one, other in zip(alone, loader, strict=True):
            assert_same(one, Sample(*other))

    def test_samples_of_one_size_are_stacked_field_by_field(self, root: Path) -> None:
        batch = next(iter(DataLoader(VideoDataset(root), batch_size=4)))
        assert isinstance(batch, Sample)
        assert batch.rgb.shape == (4, 3, 36, 64)
        assert batch.frame.tolist() == [0, 1, 2, 3]

    def test_nothing_open_is_pickled(self, root: Path) -> None:
        frames = VideoDataset(root)
        fresh = len(pickle.dumps(frames))
        frames[0], frames[-1]
        assert len(pickle.dumps(frames)) == fresh
        assert_same(pickle.loads(pickle.dumps(frames))[4], frames[4])

    def test_the_package_is_imported_without_torch(self) -> None:
        program = "import sys, vipe_dag; assert 'VideoDataset' in dir(vipe_dag); print('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


class TestCache:
    def test_a_cached_sample_is_the_same(self, root: Path, tmp_path: Path) -> None:
        plain = VideoDataset(root, max_side=32, min_confidence=9)
        for _ in range(2):
            cached = VideoDataset(root, max_side=32, min_confidence=9, cache=tmp_path / "cache")
            for index in range(len(plain)):
                assert_same(cached[index], plain[index])

    def test_a_cached_sample_needs_no_decoding(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = VideoDataset(root, VIDEO, cache=tmp_path)[1]
        monkeypatch.setattr("vipe_dag.store.rows.RowReader.row", lambda *_: pytest.fail("was decoded"))
        assert_same(VideoDataset(root, VIDEO, cache=tmp_path)[1], wanted)

    def test_another_size_is_another_file(self, root: Path, tmp_path: Path) -> None:
        for side in (16, 32):
            assert VideoDataset(root, VIDEO, max_side=side, cache=tmp_path)[0].rgb.shape[-1] == side
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_record_that_was_not_finished_is_made_again(self, root: Path, tmp_path: Path) -> None:
        wanted = VideoDataset(root, VIDEO, cache=tmp_path)[0]
        (file,) = tmp_path.iterdir()
        os.truncate(file, file.stat().st_size // 2)
        assert_same(VideoDataset(root, VIDEO, cache=tmp_path)[0], wanted)

    def test_a_folder_that_cannot_be_one_is_named(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="the cache of samples failed"):
            VideoDataset(root, VIDEO, cache=tmp_path / "file")[0]


class TestBadInput:
    def test_an_unknown_video_is_named_with_the_nearest(self, root: Path) -> None:
        with pytest.raises(StoreError, match=f"no video 'room-0a1b2c3e'.*{VIDEO}"):
            VideoDataset(root, "room-0a1b2c3e")

    def test_a_missing_asset_is_named(self, root: Path) -> None:
        with pytest.raises(StoreError, match=f"{VIDEO} has no dense_depth.*run the video until dense_depth"):
            VideoDataset(root, VIDEO, depth="dense_depth")

    def test_a_store_without_depth_says_how_to_make_some(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no video has aligned_depth; make some"):
            VideoDataset(tmp_path)

    def test_no_tracked_frame_is_an_error(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store_clip(VideoStore(tmp_path), clip, tracked=np.zeros(FRAMES, bool))
        with pytest.raises(StoreError, match="has a tracked frame"):
            VideoDataset(tmp_path)

    def test_no_chosen_video_is_an_error(self, root: Path) -> None:
        with pytest.raises(StoreError, match="no video was chosen"):
            VideoDataset(root, [])

    @pytest.mark.parametrize("options", [{"max_side": 0}, {"min_confidence": 256}])
    def test_values_out_of_bounds_are_named(self, root: Path, options: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=next(iter(options))):
            VideoDataset(root, **options)  # type: ignore[arg-type]

    def test_a_damaged_shard_is_named(self, tmp_path: Path, clip: SyntheticClip) -> None:
        store_clip(VideoStore(tmp_path), clip)
        shard = Path(VideoStore(tmp_path).path(VIDEO, "frames"), "rgb/c/0/0/0/0")
        content = bytearray(shard.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        shard.write_bytes(content)
        with pytest.raises(StoreError, match=f"{VIDEO}, frames: row 0 of rgb cannot be read.*materialize"):
            VideoDataset(tmp_path)[0]
