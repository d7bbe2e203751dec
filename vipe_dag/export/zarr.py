"""One Zarr v3 group with the current generation of each asset, in codecs that every reader of Zarr has: no JPEG XL, no pcodec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from vipe_dag.export import Exported
from vipe_dag.export.target import complete_folder
from vipe_dag.schema import ASSETS, SHARD_FRAMES
from vipe_dag.store import VideoStore
from vipe_dag.store.pointer import COMMIT


def export(store: VideoStore, video_id: str, out: Path) -> Exported:
    """Copy every asset that the video has into a group of its name, with consolidated metadata. Raises StoreError when it has none."""
    generations = {asset: pointer for asset in ASSETS if (pointer := store.current(video_id, asset))}
    if not generations:
        store.path(video_id, next(iter(ASSETS)))  # says what is missing: the video or its first asset
    with complete_folder(out) as folder:
        root = zarr.open_group(folder, mode="w", zarr_format=3)
        root.attrs.update({"video_id": video_id, "generations": {asset: pointer.generation for asset, pointer in generations.items()}})
        for asset, pointer in generations.items():
            _copy(store.group(video_id, asset, pointer.fingerprint), root.create_group(asset))
        zarr.consolidate_metadata(root.store, zarr_format=3)
    missing = [asset for asset in ASSETS if asset not in generations]
    return Exported(out, (f"not there, so not in it: {', '.join(missing)}",) if missing else ())


def _copy(source: zarr.Group, target: zarr.Group) -> None:
    target.attrs.update({name: value for name, value in source.attrs.items() if name != COMMIT})
    for name, array in source.arrays():
        whole = array.shards is None
        copied: zarr.Array[Any] = target.create_array(
            name,
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            fill_value=array.metadata.fill_value,
            dimension_names=array.metadata.dimension_names,  # type: ignore[union-attr]
            attributes=dict(array.attrs),
        )
        if whole:
            copied[...] = array[...]
            continue
        for start in range(0, array.shape[0], SHARD_FRAMES):
            copied[start : start + SHARD_FRAMES] = array[start : start + SHARD_FRAMES]
