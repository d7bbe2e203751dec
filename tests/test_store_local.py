"""The store contract on a directory, and what only a directory has: plain paths, temporary files, other readers of Zarr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from store_contract import NEW, OLD, VIDEO, VideoStoreContract, motion, pixels, write_frames, write_keyframes
from vipe_dag.errors import StoreError
from vipe_dag.store import VideoStore
from vipe_dag.store.reader import RowCache


class TestLocalStore(VideoStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> VideoStore:
        return VideoStore(tmp_path / "store")


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return VideoStore(tmp_path / "store")


def test_a_file_url_and_a_path_are_one_store(tmp_path: Path) -> None:
    write_keyframes(VideoStore(f"file://{tmp_path}"), OLD, 1.0)
    assert motion(VideoStore(str(tmp_path))) == 1.0


def test_storage_options_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a local store takes no storage options, found anon"):
        VideoStore(tmp_path, {"anon": True})


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"")
    with pytest.raises(StoreError, match=r"video\.mp4: is a file; a store is a directory"):
        VideoStore(tmp_path / "video.mp4")


def test_a_damaged_shard_is_named_with_its_remedy_whoever_reads_it(store: VideoStore) -> None:
    write_frames(store, OLD, pixels(0))
    shard = Path(store.path(VIDEO, "frames"), "rgb/c/0/0/0/0")
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    shard.write_bytes(content)
    for read in (store.frames(VIDEO).rgb, store.rows(VIDEO, "frames", "rgb").row):
        with pytest.raises(StoreError, match=r"rows? 0.* cannot be read .*materialize the asset again"):
            read(0)


def test_a_generation_in_an_unknown_encoding_is_another_versions(store: VideoStore) -> None:
    write_frames(store, OLD, pixels(0))
    metadata = Path(store.path(VIDEO, "frames"), "zarr.json")
    metadata.write_text(metadata.read_text().replace("vipe_dag.jpegxl", "vipe_dag.other"))
    for read in (store.frames, lambda video: store.open(video, "frames"), lambda video: store.rows(video, "frames", "rgb")):
        with pytest.raises(StoreError, match=r"frames: written by another version of vipe-dag .*vipe_dag\.other.*materialize"):
            read(VIDEO)


def test_the_layout_is_the_documented_one(store: VideoStore) -> None:
    write_frames(store, OLD, pixels(0))
    folder = Path(store.root, VIDEO, "frames")
    generation, pointer = sorted(os.listdir(folder), key=lambda name: name.endswith(".json"))
    assert generation.startswith(f"{OLD}-")
    assert generation.endswith(".zarr")
    assert pointer == "_current.json"
    assert json.loads((folder / pointer).read_text())["generation"] == generation
    assert store.path(VIDEO, "frames") == str(folder / generation)
    shards = [path for path in (folder / generation / "rgb" / "c").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(folder / generation).as_posix() for path in shards) == [
        "rgb/c/0/0/0/0",
        "rgb/c/1/0/0/0",
    ]


def test_plain_xarray_and_zarr_read_a_generation_without_the_store(store: VideoStore) -> None:
    rgb = pixels(0)
    write_frames(store, OLD, rgb)
    dataset = xr.open_zarr(store.path(VIDEO, "frames"))
    np.testing.assert_array_equal(dataset["rgb"], rgb)
    assert set(dataset.coords) == {"frame", "time"}
    assert dataset.attrs["Conventions"] == "CF-1.12"
    assert dataset["time"].attrs["units"] == "s"
    array = zarr.open_group(store.path(VIDEO, "frames"), mode="r")["rgb"]
    assert isinstance(array, zarr.Array)
    assert (array.chunks, array.shards) == ((1, 4, 6, 3), (32, 4, 6, 3))


def test_the_image_codec_is_found_without_importing_this_package(store: VideoStore) -> None:
    write_frames(store, OLD, pixels(0))
    code = f"import zarr, sys; zarr.open_group({store.path(VIDEO, 'frames')!r}, mode='r')['rgb'][3]; print('vipe_dag.store' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_other_directories_in_the_root_are_not_videos(store: VideoStore) -> None:
    for name in ("_dagster", "photos", VIDEO):
        Path(store.root, name, "keyframes" if name == VIDEO else "x").mkdir(parents=True)
    assert store.videos() == [VIDEO]


def test_sweep_removes_abandoned_temporary_files(store: VideoStore) -> None:
    write_keyframes(store, OLD, 1.0)
    litter = Path(store.root, VIDEO, "keyframes", "_current.json.0a1b2c3d.tmp")
    litter.write_text("{")
    assert [p.fingerprint for p in store.generations(VIDEO, "keyframes")] == [OLD]
    swept = store.sweep(timedelta(0), now=datetime.now(UTC) + timedelta(hours=1))
    assert [s.key for s in swept] == [f"{VIDEO}/keyframes/{litter.name}"]
    assert not litter.exists()


def test_a_full_disk_keeps_the_old_pointer(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keyframes(store, OLD, 1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"street-0a1b2c3d, keyframes: the storage failed \(No space left on device\)"):
            write_keyframes(store, NEW, 2.0)
    assert motion(store) == 1.0
    assert sorted(p.name[:4] for p in Path(store.root, VIDEO, "keyframes").iterdir()) == ["_cur", "aaaa"]


class CountedReads:
    """Stands for a sharded array; remembers which rows were read together."""

    shape, dtype = (70, 2, 2), np.dtype(np.uint8)

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.reads.append((rows.start, rows.stop))
        return np.arange(rows.start, rows.stop, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)


def test_walking_reads_whole_shards_and_jumping_single_rows() -> None:
    array = CountedReads()
    cache = RowCache(array, 2**20)  # type: ignore[arg-type]
    assert [int(cache.row(row)[0, 0]) for row in range(40)] == list(range(40))
    assert array.reads == [(0, 32), (32, 64)]
    assert int(cache.row(69)[0, 0]) == 69
    assert array.reads[-1] == (69, 70)


def test_the_cache_holds_no_more_than_its_bound() -> None:
    array = CountedReads()
    cache = RowCache(array, 40)  # type: ignore[arg-type]
    for row in (*range(70), 3, 60, 4):
        assert int(cache.row(row)[0, 0]) == row
        assert cache.cached_bytes <= 40


def test_a_row_may_be_changed_without_harm_to_the_cache() -> None:
    cache = RowCache(CountedReads(), 2**20)  # type: ignore[arg-type]
    cache.row(5)[:] = 0
    assert int(cache.row(5)[0, 0]) == 5


class HeldReads(CountedReads):
    """Reads of rows from 32 on wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __getitem__(self, rows: slice) -> np.ndarray:
        if rows.start >= 32:
            self.begun.set()
            assert self.go_on.wait(60)
        return super().__getitem__(rows)


def test_rows_at_hand_do_not_wait_for_others_that_are_read() -> None:
    array = HeldReads()
    cache = RowCache(array, 2**20)  # type: ignore[arg-type]
    cache.row(0)
    with ThreadPoolExecutor() as threads:
        late = threads.submit(cache.row, 40)
        assert array.begun.wait(60)
        assert int(cache.row(0)[0, 0]) == 0
        array.go_on.set()
        assert int(late.result()[0, 0]) == 40


def test_a_row_that_two_threads_want_is_read_once() -> None:
    array = HeldReads()
    cache = RowCache(array, 2**20)  # type: ignore[arg-type]
    with ThreadPoolExecutor() as threads:
        wanted = [threads.submit(cache.row, 40) for _ in range(4)]
        assert array.begun.wait(60)
        array.go_on.set()
        assert [int(row.result()[0, 0]) for row in wanted] == [40] * 4
    assert array.reads == [(40, 41)]


class BrokenReads(CountedReads):
    """The first read fails."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = super().__getitem__(rows)
        if len(self.reads) == 1:
            raise OSError("lost")
        return found


def test_a_row_whose_read_failed_can_be_read_again() -> None:
    cache = RowCache(BrokenReads(), 2**20)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="lost"):
        cache.row(5)
    assert int(cache.row(5)[0, 0]) == 5


@pytest.mark.parametrize("module", ["vipe_dag", "vipe_dag.store", "vipe_dag.schema"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'cv2', 'zarr', 'xarray', 'dask'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
