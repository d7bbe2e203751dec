"""The catalogue of a shard: one Parquet file with a row per video, and one Zarr group with the poses of all of them.

The file names the group that belongs to it, so replacing the file in one step replaces both: readers see the old state or the new one.
"""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from vipe_dag.config import PipelineConfig
from vipe_dag.fleet.columns import schema
from vipe_dag.fleet.journal import FOLDER, read_journal
from vipe_dag.fleet.rows import PER_FRAME, PER_VIDEO, Arrays, Known, read_records, read_row, unreadable_row
from vipe_dag.fleet.shards import Shard
from vipe_dag.graph import STAGES, code_version
from vipe_dag.results import PARAM_NAMES
from vipe_dag.stale import Targets
from vipe_dag.store.backend import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

    from vipe_dag.store import VideoStore
    from vipe_dag.video import SourceRecord

CODES = b"vipe_dag.code_versions"
"""Metadata of a file: JSON of `code_versions` of the configuration that `behind` was decided under."""
PASSED = b"vipe_dag.passed_over"
"""Metadata of a file: JSON list of names below the root that belong to the shard, but have no source."""
READERS = 8
"""Videos looked at together; nearly all of it is waiting for storage."""
POOL_CHUNK_ROWS = 65_536
POOL_AGE_SECONDS = 3600.0
"""A replaced group stays that long, for readers that saw the file before."""


def file_key(shard: Shard) -> str:
    """The key in the store of the Parquet file of a shard."""
    return f"_{FOLDER}/{shard.name}.parquet"


def pool_key(name: str) -> str:
    """The key in the store of a group of pooled arrays."""
    return f"_{FOLDER}/{name}"


def write_catalogue(store: VideoStore, shard: Shard, video_ids: Sequence[str], config: PipelineConfig) -> int:
    """Writes the catalogue of a shard anew from what its videos are now; returns the number of rows."""
    records, unreadable = read_records(store, video_ids)
    known = list(_read(store, shard, records, unreadable, config))
    rows = [found.row | {"shard": shard.number} for found in known]
    pooled = [found.arrays for found in known if found.arrays is not None]
    pool = _write_pool(store, shard, pooled) if pooled else None
    start = 0
    for row, found in zip(rows, known, strict=True):
        if found.arrays is not None:
            row |= {"pool": pool, "pool_start": start}
            start += row["pool_rows"]
    earlier = _pool_of(store, shard)
    passed = [video_id for video_id in video_ids if video_id not in records and video_id not in unreadable]
    write_file(store, shard, table_of(rows), config, passed)
    _remove_pools(store, shard, keep={pool, earlier})
    return len(rows)


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table of the schema of a catalogue."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema())


def write_file(store: VideoStore, shard: Shard, table: pa.Table, config: PipelineConfig, passed: Sequence[str] = ()) -> None:
    """Replaces the Parquet file of a shard in one step. config: under which `behind` was decided; passed: names that are no videos."""
    write_parquet(store, file_key(shard), table, {CODES: json.dumps(code_versions(config)), PASSED: json.dumps(list(passed))})


def write_parquet(store: VideoStore, key: str, table: pa.Table, metadata: Mapping[bytes, str]) -> None:
    """Replaces a Parquet file in one step. Dictionaries would make these columns larger and slower: nearly all their values differ."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(dict(metadata)), content, compression="zstd", use_dictionary=False)
    with storage_errors(store.root):
        store.backend.update(key, lambda _: content.getvalue())


def code_versions(config: PipelineConfig) -> dict[str, str]:
    """Per stage what decides its result apart from its inputs."""
    return {stage.name: code_version(stage.name, config) for stage in STAGES}


def codes_of(table: pa.Table) -> dict[str, str]:
    """The `code_versions` that a file was written under."""
    found: dict[str, str] = json.loads((table.schema.metadata or {}).get(CODES, b"{}"))
    return found


def passed_over(table: pa.Table) -> list[str]:
    """The names that are no videos, when the file was written."""
    names: list[str] = json.loads((table.schema.metadata or {}).get(PASSED, b"[]"))
    return names


def _read(
    store: VideoStore, shard: Shard, records: Mapping[str, SourceRecord], unreadable: Mapping[str, str], config: PipelineConfig
) -> Iterator[Known]:
    failures = read_journal(store, shard).failures
    wanted = Targets().of(records, config)
    for video_id, reason in unreadable.items():
        yield unreadable_row(video_id, reason, failures.get(video_id))
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(
            lambda record: read_row(store, record, wanted[record.video_id], failures.get(record.video_id)), records.values()
        )


def _write_pool(store: VideoStore, shard: Shard, pooled: Sequence[Arrays]) -> str:
    """All poses of a shard behind one another, in chunks of POOL_CHUNK_ROWS; returns the group's name."""
    import zarr

    name = f"{shard.name}-{secrets.token_hex(4)}.zarr"
    with storage_errors(store.root):
        group = zarr.create_group(store.backend.zarr(pool_key(name), read_only=False), zarr_format=3)
        for variable, (dtype, dims) in {**PER_FRAME, **PER_VIDEO}.items():
            per_video = variable in PER_VIDEO
            parts = [arrays[variable][None] if per_video else arrays[variable] for arrays in pooled]
            whole = np.concatenate(parts).astype(dtype, copy=False)
            array = group.create_array(
                variable,
                shape=whole.shape,
                chunks=(min(len(whole), POOL_CHUNK_ROWS), *whole.shape[1:]),
                dtype=dtype,
                dimension_names=("video" if per_video else "row", *dims),
            )
            array[...] = whole
        group.attrs.put({"param": list(PARAM_NAMES)})
        zarr.consolidate_metadata(group.store, zarr_format=3)
        store.backend.sync(pool_key(name))
    return name


def _pool_of(store: VideoStore, shard: Shard) -> str | None:
    """The group that the present file names."""
    table = read_file(store, shard, ["pool"])
    return None if table is None else next((name for name in table["pool"].to_pylist() if name), None)


def read_file(store: VideoStore, shard: Shard, columns: list[str]) -> pa.Table | None:
    """Columns of a shard's file, with its metadata; None when there is none, or it is not readable and has to be written anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage_errors(store.root):
        content = store.backend.read(file_key(shard))
    if content is None:
        return None
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        return file.read(columns).replace_schema_metadata(file.schema_arrow.metadata)
    except (pa.ArrowException, OSError):
        return None


def _remove_pools(store: VideoStore, shard: Shard, keep: set[str | None]) -> None:
    """Groups of the shard that no file names any more, when they are old enough."""
    limit = time.time() - POOL_AGE_SECONDS
    with storage_errors(store.root):
        for name in store.backend.children(f"_{FOLDER}"):
            if not (name.startswith(f"{shard.name}-") and name.endswith(".zarr")) or name in keep:
                continue
            if all(written < limit for _, written in store.backend.objects(pool_key(name)).values()):
                store.backend.remove(pool_key(name))
