"""Reading one generation: lazy xarray, and row by row with a bounded cache."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

import vipe_dag.codecs  # noqa: F401  registers the image codec, also where the package runs without being installed
from vipe_dag.errors import SourceError, StoreError
from vipe_dag.schema import COORDINATES, SHARD_FRAMES, asset_schema
from vipe_dag.sequence import FrameSequence, luma
from vipe_dag.store.rows import AHEAD_BYTES, WALKING

if TYPE_CHECKING:
    import xarray as xr

    from vipe_dag.store.rows import OpenedGeneration

CACHE_BYTES = 64 * 2**20
"""Default bound of the decoded rows that one sequence keeps."""
_AHEAD_BYTES = 8 * 2**20
"""Most that is read ahead at a time: rows are held several times over while they are decoded."""
MAX_PIXELS = 2**28
"""Bound on the pictures of a source whose digest shows that an earlier pass accepted it."""


def open_dataset(store: Any, asset: str, chunks: Mapping[str, int] | None) -> xr.Dataset:
    """A committed generation as lazy xarray: images as dask arrays of `chunks` (None: lazy without dask), nothing masked or scaled."""
    import xarray as xr  # brings pandas, which reading row by row does not need

    dataset = xr.open_zarr(
        store,
        chunks=None,
        consolidated=True,
        zarr_format=3,
        mask_and_scale=False,
        decode_times=False,
        decode_timedelta=False,
    )
    dataset = dataset.set_coords([name for name in COORDINATES if name in dataset.variables])
    if "param" in dataset.coords:
        dataset = dataset.assign_coords(param=("param", dataset["param"].values.astype(object), dataset["param"].attrs))
    if chunks is None:
        return dataset
    images = [v.name for v in asset_schema(asset).variables if v.sharded and v.name in dataset.variables]
    return dataset.assign({name: dataset[name].chunk(chunks) for name in images})


class RowCache:
    """Rows of one sharded array. Walking forward reads a shard at a time, jumping reads single frames; the least recently used go first.

    cache_bytes bounds the decoded rows kept. Safe to use from several threads.
    """

    def __init__(self, array: zarr.Array[Any], cache_bytes: int) -> None:
        self._array, self._limit = array, cache_bytes
        self._row_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
        self._rows: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._loading: dict[int, Future[None]] = {}
        self._last = -1
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def cached_bytes(self) -> int:
        return len(self._rows) * self._row_bytes

    def row(self, row: int) -> NDArray[Any]:
        """A copy of one row. Raises IndexError outside 0..len-1, StoreError for damaged data."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        with self._lock:
            end = self._shard_end(row) if row - self._last in WALKING else row + 1
            self._last = row
        while True:
            with self._lock:
                if row in self._rows:
                    self._rows.move_to_end(row)
                    return self._rows[row].copy()
                pending = self._loading.get(row)
                if pending is None:
                    mine = Future[None]()
                    wanted = list(itertools.takewhile(lambda r: r not in self._rows and r not in self._loading, range(row, end)))
                    self._loading.update(dict.fromkeys(wanted, mine))
            if pending is None:
                return self._load(row, wanted[-1] + 1, mine)
            pending.result()

    def _shard_end(self, row: int) -> int:
        """Where to stop reading ahead from a row: the end of its shard, the end of the array, or what is read at a time."""
        room = max(1, min(self._limit, _AHEAD_BYTES) // self._row_bytes)
        return min((row // SHARD_FRAMES + 1) * SHARD_FRAMES, len(self), row + room)

    def _load(self, start: int, end: int, done: Future[None]) -> NDArray[Any]:
        """Read rows without holding up those who ask for others, keep them, and tell who waits for one of them; a copy of the first."""
        try:
            block = self._read(start, end)
            with self._lock:
                for offset in reversed(range(end - start)):
                    self._rows[start + offset] = block[offset].copy()
                while len(self._rows) > 1 and self.cached_bytes > self._limit:
                    self._rows.popitem(last=False)
            return block[0].copy()
        finally:
            with self._lock:
                for row in range(start, end):
                    del self._loading[row]
            done.set_result(None)

    def _read(self, start: int, end: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array[start:end])
        except (ValueError, RuntimeError) as error:
            rows = f"{self._array.store_path}: rows {start} to {end - 1}"
            raise StoreError(f"{rows} cannot be read ({error}); materialize the asset again") from error


class StoredFrames:
    """FrameSequence over the pixels of a `frames` generation of profile jxl. cache_bytes is for colours; luma is not kept."""

    def __init__(self, opened: OpenedGeneration, cache_bytes: int = CACHE_BYTES) -> None:
        group = opened.group
        self._rgb = RowCache(stored_array(group, "rgb"), cache_bytes)
        self._luma = opened.rows("luma", AHEAD_BYTES) if "luma" in group else None
        self._shape = stored_array(group, "rgb").shape
        self._frame = np.asarray(stored_array(group, "frame")[:], np.int64)
        self._time = np.asarray(stored_array(group, "time")[:], np.float64)

    @property
    def frame(self) -> NDArray[np.int64]:
        return self._frame

    @property
    def time(self) -> NDArray[np.float64]:
        return self._time

    @property
    def height(self) -> int:
        return int(self._shape[1])

    @property
    def width(self) -> int:
        return int(self._shape[2])

    def __len__(self) -> int:
        return int(self._shape[0])

    def rgb(self, row: int) -> NDArray[np.uint8]:
        return self._rgb.row(row)

    def luma(self, row: int) -> NDArray[np.uint8]:
        return luma(self.rgb(row)) if self._luma is None else self._luma.row(row)


def decoded_frames(group: zarr.Group) -> FrameSequence:
    """FrameSequence of a `frames` generation of profile reference. Raises SourceError when the source is gone or its content changed."""
    from vipe_dag.config import FramesConfig
    from vipe_dag.stages.frames import DecodedFrames
    from vipe_dag.video import open_source

    uri, digest = str(group.attrs["source_uri"]), group.attrs["source_digest"]
    source = open_source(uri)
    if source.digest != digest:
        raise SourceError(f"{uri}: its content changed since its frames were timed (digest {digest}, found {source.digest}); run it again")
    return DecodedFrames(
        source,
        FramesConfig(profile="reference", max_pixels=MAX_PIXELS),
        np.asarray(stored_array(group, "frame")[:], np.int64),
        np.asarray(stored_array(group, "time")[:], np.float64),
        int(str(group.attrs["width"])),
        int(str(group.attrs["height"])),
    )


class StoredDepth:
    """DepthSequence over a `dense_depth` or `aligned_depth` generation; cache_bytes is shared by its three arrays."""

    def __init__(self, group: zarr.Group, cache_bytes: int = CACHE_BYTES) -> None:
        self._z_depth, self._confidence, self._measured = (
            RowCache(stored_array(group, name), cache_bytes * share // 4)
            for name, share in (("z_depth", 2), ("confidence", 1), ("measured", 1))
        )

    def __len__(self) -> int:
        return len(self._z_depth)

    def depth(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        return self._z_depth.row(row).astype(np.float32), self._confidence.row(row), self._measured.row(row)


def stored_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a generation. Raises StoreError when the group has none of that name."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store}: expected an array {name}, found {sorted(group.keys())}")
    return array
