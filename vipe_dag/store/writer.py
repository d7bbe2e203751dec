"""Writing one generation: blocks in, whole shards out, then all that is small, encoded in memory, at once; a commit is written last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from vipe_dag.codecs import zarr_codecs
from vipe_dag.errors import StoreError
from vipe_dag.schema import CONVENTIONS, RESERVED_ATTRIBUTES, SHARD_FRAMES, AssetSchema, Found, Variable, problems, value_problems
from vipe_dag.store.backend import Backend, storage_errors
from vipe_dag.store.pointer import COMMIT, ROOT, Pointer


class Generation:
    """An uncommitted generation. Get one from `VideoStore.begin`; it commits when the `with` block is left without an exception."""

    def __init__(self, backend: Backend, key: str, where: str, schema: AssetSchema, sizes: Mapping[str, int | None]) -> None:
        self._backend, self._key, self._where, self._schema = backend, key, where, schema
        self._sizes = {dim: size for dim, size in sizes.items() if size is not None}
        self._shards: dict[str, _ShardedArray] = {}
        self._rows: dict[str, list[NDArray[Any]]] = {}
        self._whole: dict[str, NDArray[Any]] = {}
        self._attrs: dict[str, Any] = {}
        self._checks: tuple[dict[str, Any], ...] = ()
        self._objects: dict[str, Buffer] = {}
        self._small = zarr.create_group(store=MemoryStore(self._objects), zarr_format=3)
        with storage_errors(where):
            self._group = zarr.create_group(store=backend.zarr(key, read_only=False), zarr_format=3)

    def append(self, block: Mapping[str, Any]) -> None:
        """Adds rows along `frame`: arrays by variable name, all of one length n >= 0. Images leave memory shard by shard.

        Raises StoreError for an unknown variable, another dtype, a shape that differs from earlier rows, or lengths that differ.
        """
        lengths: dict[str, int] = {}
        for name, values in block.items():
            variable = self._schema.variable(name, self._where)
            if variable.dims[0] != "frame":
                raise StoreError(f"{self._where}: {name} has no frame dimension {variable.dims}; write it with put()")
            if name in self._whole:
                raise StoreError(f"{self._where}: {name} was already put as a whole")
            rows = variable.cast(values, self._where)
            if rows.ndim != len(variable.dims):
                raise StoreError(f"{self._where}: {name} must have dimensions {variable.dims}, found shape {rows.shape}")
            lengths[name] = len(rows)
            with storage_errors(self._where):
                self._append_rows(variable, rows)
        if len(set(lengths.values())) > 1:
            raise StoreError(f"{self._where}: a block must have one length along frame, found {lengths}")

    def _append_rows(self, variable: Variable, rows: NDArray[Any]) -> None:
        if variable.sharded:
            if variable.name not in self._shards:
                self._shards[variable.name] = _ShardedArray(self._group, variable, rows.shape[1:], self._sizes.get("frame"), self._where)
            self._shards[variable.name].append(rows)
            return
        earlier = self._rows.setdefault(variable.name, [])
        if earlier and earlier[0].shape[1:] != rows.shape[1:]:
            raise StoreError(f"{self._where}: {variable.name} began with rows {earlier[0].shape[1:]}, found {rows.shape[1:]}")
        earlier.append(rows.copy())

    def put(self, name: str, values: Any) -> None:
        """Writes a whole variable. Raises StoreError when the variable is unknown, of another dtype, or already written."""
        variable = self._schema.variable(name, self._where)
        if name in self._whole or name in self._rows or name in self._shards:
            raise StoreError(f"{self._where}: {name} was already written")
        if variable.constant is not None:
            raise StoreError(f"{self._where}: the store writes {name} itself")
        array = variable.cast(values, self._where)
        if variable.sharded:
            self.append({name: array})
        else:
            self._whole[name] = array.copy()

    def attrs(self, values: Mapping[str, Any]) -> None:
        """Adds attributes of the asset: text, numbers, booleans, lists and dictionaries of them. Later values replace earlier ones.

        A number that is not finite is stored as the text NaN, Infinity or -Infinity, which `float` reads. Raises StoreError for other
        types and for names that the store itself writes.
        """
        taken = RESERVED_ATTRIBUTES.intersection(values)
        if taken:
            raise StoreError(f"{self._where}: the store writes the attributes {', '.join(sorted(taken))} itself; choose another name")
        self._attrs |= {name: _json_value(value, f"{self._where}: attribute {name}") for name, value in values.items()}

    def checks(self, outcomes: Iterable[Mapping[str, Any]]) -> None:
        """The outcomes of checks, kept with the generation and in its pointer; each a JSON dictionary. Replaces earlier ones."""
        self._checks = tuple(_json_value(dict(outcome), f"{self._where}: check") for outcome in outcomes)

    def finish(self) -> tuple[int, tuple[dict[str, Any], ...]]:
        """Validates against the schema, flushes and makes the data durable; returns stored bytes and checks.

        Raises StoreError listing all faults.
        """
        for variable in self._schema.variables:
            if variable.constant is not None:
                self._whole[variable.name] = variable.cast(variable.constant, self._where)
        small = {**self._whole, **{name: np.concatenate(rows) for name, rows in self._rows.items() if rows}}
        found = {name: self._found(name, array.shape) for name, array in small.items()}
        found |= {name: self._found(name, sharded.shape) for name, sharded in self._shards.items()}
        faults = problems(self._schema, found, self._attrs)
        faults += [
            f"{dim}: expected the announced {size}, found {facts.shape[facts.dims.index(dim)]} in {name}"
            for dim, size in self._sizes.items()
            for name, facts in found.items()
            if dim in facts.dims and len(facts.shape) == len(facts.dims) and facts.shape[facts.dims.index(dim)] != size
        ]
        if not faults:
            faults = value_problems(small)
        if faults:
            raise StoreError(f"{self._where}: not committed, the data breaks the schema:\n  " + "\n  ".join(faults))
        with storage_errors(self._where):
            for sharded in self._shards.values():
                sharded.close()
            for name, array in small.items():
                self._encode(self._schema.variable(name, self._where), array)
            self._backend.write({f"{self._key}/{name}": content.to_bytes() for name, content in self._objects.items() if name != ROOT})
            self._backend.sync(self._key)
            return sum(size for size, _ in self._backend.objects(self._key).values()), self._checks

    def mark_complete(self, pointer: Pointer) -> None:
        """The last write of a generation: attributes with its commit record, and consolidated metadata."""
        coordinates = {"coordinates": "time"} if "time" in self._small else {}
        described = {"Conventions": CONVENTIONS, "video_id": pointer.video_id, "asset": pointer.asset, **coordinates}
        self._small.attrs.put({**described, **self._attrs, COMMIT: pointer.model_dump(mode="json")})
        with storage_errors(self._where):
            for name in self._shards:
                content = self._backend.read(f"{self._key}/{name}/{ROOT}")
                if content is None:
                    raise StoreError(f"{self._where}: {name} was removed while it was written; run again")
                self._objects[f"{name}/{ROOT}"] = default_buffer_prototype().buffer.from_bytes(content)
            zarr.consolidate_metadata(self._small.store, zarr_format=3)
            root = self._objects[ROOT].to_bytes()
            self._backend.update(f"{self._key}/{ROOT}", lambda _: root)

    def _found(self, name: str, shape: tuple[int, ...]) -> Found:
        variable = self._schema.variable(name, self._where)
        return Found(variable.dims, shape, variable.dtype)

    def _encode(self, variable: Variable, array: NDArray[Any]) -> None:
        target = self._small.create_array(
            variable.name,
            shape=array.shape,
            dtype=variable.dtype,
            chunks=tuple(max(1, size) for size in array.shape),
            fill_value=variable.fill_value,
            dimension_names=variable.dims,
            attributes=variable.attributes(),
            **zarr_codecs(variable.compression),
        )
        target[...] = array


class _ShardedArray:
    """One image per frame, written a whole shard at a time; grows with the data when the number of frames is not known beforehand."""

    def __init__(self, group: zarr.Group, variable: Variable, image: tuple[int, ...], frames: int | None, where: str) -> None:
        if min(image, default=1) < 1:
            raise StoreError(f"{where}: {variable.name} must have pixels, found rows of shape {image}")
        self._name, self._where, self._frames = variable.name, where, frames
        self._buffer = np.empty((SHARD_FRAMES, *image), variable.dtype)
        self._buffered = self._written = 0
        self._array = group.create_array(
            variable.name,
            shape=(frames or 0, *image),
            chunks=(1, *image),
            shards=(SHARD_FRAMES, *image),
            dtype=variable.dtype,
            fill_value=variable.fill_value,
            dimension_names=variable.dims,
            attributes=variable.attributes(),
            config={"write_empty_chunks": True},  # looking for empty ones takes a quarter of the time of writing
            **zarr_codecs(variable.compression),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """What was appended so far."""
        return (self._written + self._buffered, *self._buffer.shape[1:])

    def append(self, rows: NDArray[Any]) -> None:
        if rows.shape[1:] != self._buffer.shape[1:]:
            raise StoreError(f"{self._where}: {self._name} began with rows {self._buffer.shape[1:]}, found {rows.shape[1:]}")
        total = self.shape[0] + len(rows)
        if self._frames is not None and total > self._frames:
            raise StoreError(f"{self._where}: {self._name} was announced with {self._frames} frames, found {total} or more")
        taken = 0
        while taken < len(rows):
            step = min(len(rows) - taken, SHARD_FRAMES - self._buffered)
            self._buffer[self._buffered : self._buffered + step] = rows[taken : taken + step]
            self._buffered += step
            taken += step
            if self._buffered == SHARD_FRAMES:
                self._flush()

    def close(self) -> None:
        """Writes the last, shorter shard."""
        if self._buffered:
            self._flush()

    def _flush(self) -> None:
        if self._written % SHARD_FRAMES:
            raise AssertionError(f"{self._name}: a shard must start at a multiple of {SHARD_FRAMES}, not at {self._written}")
        end = self._written + self._buffered
        if end > self._array.shape[0]:
            self._array.resize((end, *self._array.shape[1:]))
        self._array[self._written : end] = self._buffer[: self._buffered]
        self._written, self._buffered = end, 0


def _json_value(value: Any, where: str) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return _json_value(value.tolist(), where)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json_value(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_value(item, where) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    raise StoreError(f"{where}: expected text, numbers, booleans, lists or dictionaries, found {type(value).__name__}")
