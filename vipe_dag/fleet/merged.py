"""The catalogue as one table. Files of many shards are also kept merged, so that a question opens tens of files and not thousands.

A merged file is derived: it says for each shard which version of the shard's own file its rows come from, and rows of any other version
are passed over for the shard's own file. So it may be late, damaged or gone, and costs time only; a shard's own file is the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vipe_dag.fleet.catalogue import READERS, file_key, write_parquet
from vipe_dag.fleet.columns import schema
from vipe_dag.fleet.journal import FOLDER
from vipe_dag.fleet.shards import Shard, all_shards
from vipe_dag.store.backend import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from vipe_dag.store import VideoStore

Versions = Mapping[Shard, str]
"""Of shards that have a file, a text that changes when the file is replaced."""

MERGED = f"_{FOLDER}/_merged"
"""Below the catalogue, by a name that readers of a folder of Parquet files pass over: they would see rows twice."""
SHARDS = 64
"""In one merged file: some 15,000 rows at a million videos in 4,096 shards, which are written in half a second."""
LOOSE = 8
"""Shards that are not in their merged file as they are now, from which on it is written anew. Each costs a question a file."""
VERSIONS = b"vipe_dag.versions"
"""Metadata of a merged file: JSON of the versions of the files that it was made of, by the shard's number."""


def shard_versions(store: VideoStore, count: int) -> dict[Shard, str]:
    """The shards that have a file, in order, from one listing."""
    with storage_errors(store.root):
        found = store.backend.versions(f"_{FOLDER}")
    return {shard: found[name] for shard in all_shards(count) if (name := f"{shard.name}.parquet") in found}


def scan(store: VideoStore, versions: Versions, columns: Sequence[str] | None, condition: pc.Expression | None) -> pa.Table:
    """Columns of the rows of all those shards for which the condition holds; shards that are merged come first."""
    import pyarrow as pa

    with storage_errors(store.root):
        present = set(store.backend.children(MERGED))
    groups = [(key, mine) for key, mine in _grouped(versions).items() if key.rpartition("/")[2] in present]
    with ThreadPoolExecutor(READERS) as pool:
        files = [file for file in pool.map(lambda group: _Merged.open(store, *group), groups) if file is not None]
        tables = list(pool.map(lambda file: file.rows(columns, condition), files))
    merged = {shard for file in files for shard in file.current}
    loose = [shard for shard in versions if shard not in merged]
    return pa.concat_tables([*tables, *([_own_rows(store, loose, columns, condition)] if loose else [])])


def merge(store: VideoStore, shards: Sequence[Shard]) -> None:
    """Writes the merged files that these shards of one division belong to anew, where LOOSE or more are not in them as they are now."""
    keys = {_key(shard) for shard in shards}
    for key, versions in _grouped(shard_versions(store, shards[0].count)).items():
        if key in keys:
            _merge(store, key, versions)


def _merge(store: VideoStore, key: str, versions: Versions) -> None:
    import pyarrow as pa

    file = _Merged.open(store, key, versions)
    kept = {} if file is None else {shard: versions[shard] for shard in file.current}
    if len(versions) - len(kept) < LOOSE:
        return
    tables = [] if file is None else [file.rows(None, None)]
    for shard in versions:
        if shard not in kept:
            try:
                tables.append(_own_rows(store, [shard], None, None))
            except (pa.ArrowException, OSError):  # replaced by the next run of the shard, or damaged: said to those who ask
                continue
            kept[shard] = versions[shard]
    labels = json.dumps({str(shard.number): version for shard, version in kept.items()})
    write_parquet(store, key, pa.concat_tables(tables), {VERSIONS: labels})


class _Merged:
    """An open merged file: replaced meanwhile, it stays what it was. current: shards whose own file is the one that was merged."""

    def __init__(self, fragment: ds.ParquetFileFragment, current: list[Shard], late: list[int]) -> None:
        self._fragment, self.current, self._late = fragment, current, late

    @classmethod
    def open(cls, store: VideoStore, key: str, versions: Versions) -> _Merged | None:
        """None when there is none, or none that can be read."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        filesystem, path = store.backend.arrow(key)
        try:
            fragment = ds.ParquetFileFormat().make_fragment(filesystem.open_input_file(path))
            labels: dict[str, str] = json.loads((fragment.metadata.metadata or {}).get(VERSIONS, b"{}"))
        except (pa.ArrowException, OSError):
            return None
        current = [shard for shard, version in versions.items() if labels.get(str(shard.number)) == version]
        return cls(fragment, current, sorted({int(number) for number in labels} - {shard.number for shard in current}))

    def rows(self, columns: Sequence[str] | None, condition: pc.Expression | None) -> pa.Table:
        """Of the shards that are current."""
        import pyarrow.compute as pc

        if self._late:
            present = ~pc.field("shard").isin(self._late)
            condition = present if condition is None else condition & present
        return self._fragment.to_table(schema=schema(), columns=list(columns) if columns else None, filter=condition)


def _own_rows(store: VideoStore, shards: Sequence[Shard], columns: Sequence[str] | None, condition: pc.Expression | None) -> pa.Table:
    """From the shards' own files."""
    import pyarrow.dataset as ds

    filesystem, _ = store.backend.arrow("")
    paths = [store.backend.arrow(file_key(shard))[1] for shard in shards]
    files = ds.FileSystemDataset.from_paths(paths, schema=schema(), format=ds.ParquetFileFormat(), filesystem=filesystem)
    return files.to_table(columns=list(columns) if columns else None, filter=condition)


def _key(shard: Shard) -> str:
    first = shard.number - shard.number % SHARDS
    last, digits = min(first + SHARDS, shard.count) - 1, len(str(shard.count - 1))
    return f"{MERGED}/{first:0{digits}d}-{last:0{digits}d}-of-{shard.count}.parquet"


def _grouped(versions: Versions) -> dict[str, dict[Shard, str]]:
    """By the merged file that they belong to."""
    found: dict[str, dict[Shard, str]] = {}
    for shard, version in versions.items():
        found.setdefault(_key(shard), {})[shard] = version
    return found
