"""Questions about all videos of a store: the catalogue as a table, one video, poses of all of them, a function over many of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.fleet.catalogue import pool_key
from vipe_dag.fleet.columns import schema
from vipe_dag.fleet.merged import Versions, scan, shard_versions
from vipe_dag.fleet.rows import PER_FRAME, PER_VIDEO
from vipe_dag.operations import load_operations
from vipe_dag.results import PARAM_NAMES
from vipe_dag.schema import FIXED_SIZES, nearest
from vipe_dag.store import VideoStore, open_video

if TYPE_CHECKING:
    import dask.array as da
    import dask.bag as db
    import pandas as pd
    import pyarrow.compute as pc
    import xarray as xr

    Where: TypeAlias = pc.Expression | list[tuple[str, str, Any]] | None

PARTITION_VIDEOS = 32
"""Videos in one task of `Fleet.map`."""


def open_fleet(root: str | Path | VideoStore) -> Fleet:
    """All videos of a store. Reads nothing yet but `operations.yaml`, which says how many shards there are."""
    store = root if isinstance(root, VideoStore) else VideoStore(root)
    return Fleet(store, load_operations(store.root).fleet.shards)


class Fleet:
    """A store with many videos. What is about all of them comes from the catalogue, which a run of a shard leaves behind, and raises
    StoreError, saying how to write it, where there is none. `video` needs no catalogue.
    """

    def __init__(self, store: VideoStore, shards: int) -> None:
        self.store, self.shards = store, shards

    def __repr__(self) -> str:
        return f"Fleet({self.store.root!r}, shards={self.shards})"

    def video(self, video_id: str) -> xr.DataTree:
        """One video, lazy: see vipe_dag.open_video."""
        return open_video(self.store, video_id)

    @cached_property
    def catalogue(self) -> pd.DataFrame:
        """The whole catalogue, a row per video, as it was at the first look: see docs/fleet.md for the columns."""
        return self.select()

    def select(self, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """Some columns of those videos for which `where` holds, in no particular order; nothing else is read or decoded.

        where: an expression of pyarrow.compute, or a list of (column, operator, value) that all hold, the operator one of
        = == != < > <= >= in, not in. Raises ConfigError for a column that does not exist.
        """
        import pyarrow.parquet as pq

        conditions = where if isinstance(where, list) else []
        for name in (*(columns or ()), *(column for column, _, _ in conditions)):
            if name not in schema().names:
                raise ConfigError(f"the catalogue has no column {name!r}{nearest(name, schema().names)}")
        condition = pq.filters_to_expression(conditions) if conditions else None if isinstance(where, list) else where
        return scan(self.store, self._versions(), columns, condition).to_pandas()

    def pooled(self) -> xr.Dataset:
        """Poses of every frame of every video that has them, lazy: dimension `row` goes through the frames of video after video.

        Per row cam2world, time, tracked and so on, as in ba_poses; `video_index` is the position on the dimension `video`, which has
        video_id, first_row, rows, params. One dask chunk per shard, read inside the task: no store is opened before a value is asked for.
        """
        import xarray as xr

        table = self.select(["video_id", "pool", "pool_start", "pool_rows"], [("pool_rows", ">", 0)])
        table = table.sort_values(["pool", "pool_start"], kind="stable").reset_index(drop=True)
        pools = tuple(table["pool"].unique())
        sizes = {
            "row": tuple(int(rows) for rows in table.groupby("pool", sort=True)["pool_rows"].sum()),
            "video": tuple(int(videos) for videos in table.groupby("pool", sort=True)["video_id"].count()),
        }
        rows = table["pool_rows"].to_numpy(np.int64)
        variables: dict[str, Any] = {
            name: (("row", *dims), self._lazy(name, dtype, sizes["row"], dims, pools)) for name, (dtype, dims) in PER_FRAME.items()
        }
        variables |= {
            name: (("video", *dims), self._lazy(name, dtype, sizes["video"], dims, pools)) for name, (dtype, dims) in PER_VIDEO.items()
        }
        variables["video_index"] = (("row",), _repeated(rows, sizes))
        variables["rows"], variables["first_row"] = (("video",), rows), (("video",), np.cumsum(rows) - rows)
        labels = {"video_id": ("video", table["video_id"].to_numpy(object)), "param": ("param", np.array(PARAM_NAMES, object))}
        return xr.Dataset(variables, coords=labels, attrs={"store": self.store.root})

    def map(self, function: Callable[[xr.DataTree], Any], video_ids: Sequence[str] | None = None) -> db.Bag:
        """A dask bag of function(video) over videos, all that are done when none is named. Each is opened inside its task."""
        import dask.bag as db

        if video_ids is None:
            video_ids = self.select(["video_id"], [("status", "=", "done")])["video_id"].tolist()
        return db.from_sequence(list(video_ids), partition_size=PARTITION_VIDEOS).map(_applied, store=self.store, function=function)

    def _versions(self) -> Versions:
        versions, remedy = shard_versions(self.store, self.shards), f"write it with `vipe-dag fleet catalogue --store {self.store.root}`"
        if not versions:
            raise StoreError(f"{self.store.root}: has no catalogue for {self.shards} shards; {remedy}")
        if len(versions) < self.shards:
            lacks = self.shards - len(versions)
            warnings.warn(f"{self.store.root}: the catalogue lacks {lacks} of {self.shards} shards; {remedy}", stacklevel=3)
        return versions

    def _lazy(self, name: str, dtype: str, lengths: tuple[int, ...], dims: tuple[str, ...], pools: tuple[str, ...]) -> da.Array:
        import dask.array as da

        inner = tuple(FIXED_SIZES[dim] for dim in dims)
        if not pools:
            return da.zeros((0, *inner), dtype=dtype)
        return da.map_blocks(
            _load,
            store=self.store,
            pools=pools,
            variable=name,
            chunks=(lengths, *((extent,) for extent in inner)),
            dtype=np.dtype(dtype),
            meta=np.empty((0,) * (1 + len(inner)), dtype),
        )


def _load(store: VideoStore, pools: tuple[str, ...], variable: str, block_id: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One pooled array of one shard, whole. Runs in a task."""
    import zarr

    name = pools[block_id[0]]
    try:
        group = zarr.open_group(store.backend.zarr(pool_key(name), read_only=True), mode="r", zarr_format=3, use_consolidated=True)
    except (ValueError, FileNotFoundError) as error:
        raise StoreError(f"{store.backend.url(pool_key(name))}: is gone, the catalogue was written anew; open the fleet again") from error
    array: Any = group[variable]
    return np.asarray(array[...])


def _repeated(rows: np.ndarray[Any, np.dtype[np.int64]], sizes: dict[str, tuple[int, ...]]) -> da.Array:
    """For each row the number of its video, one block per shard."""
    import dask.array as da

    ends = np.cumsum(sizes["video"])
    parts = [(int(end) - videos, rows[int(end) - videos : int(end)]) for end, videos in zip(ends, sizes["video"], strict=True)]
    blocks = [
        da.from_delayed(_numbers(first, lengths), shape=(length,), dtype=np.int64)
        for (first, lengths), length in zip(parts, sizes["row"], strict=True)
    ]
    return da.concatenate(blocks) if blocks else da.zeros(0, dtype=np.int64)


def _numbers(first: int, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    from dask.delayed import delayed

    return delayed(np.repeat, pure=True)(np.arange(first, first + len(lengths)), lengths)


def _applied(video_id: str, store: VideoStore, function: Callable[[xr.DataTree], Any]) -> Any:
    return function(open_video(store, video_id))
