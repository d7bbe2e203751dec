"""Single rows of a sharded array at the cost of reading and decoding them, where Zarr's own machinery takes longer.

It reads what the store's writer writes (`vipe_dag.codecs`): one chunk per row, the index of a shard at its end, see the sharding codec of
Zarr v3 (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed). Nothing of it stays open between two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import StoreError

if TYPE_CHECKING:
    import zarr

ReadPart = Callable[[str, int, int | None], bytes | None]
"""(key below the generation, start, end) to bytes; a negative start counts from the end of the object; None: there is no such object."""

WALKING = (1, 2)
"""Rows from the last asked for to this one that are walking, not jumping: who knows a frame already leaves it out."""
AHEAD_BYTES = 2 * 2**20
"""What to read at a time when many rows will be walked through: a request to a bucket costs as much time as a megabyte."""
_ABSENT = 2**64 - 1
_ENTRY = 16
_CHECKSUM = 4


@dataclass(frozen=True)
class OpenedGeneration:
    """A generation of which parts are read when asked for. `where` names it in errors."""

    group: zarr.Group
    read_part: ReadPart
    where: str

    def rows(self, variable: str, ahead_bytes: int = 0) -> RowReader:
        """Single rows of a per-frame image; `ahead_bytes` as in RowReader. Raises StoreError when there is no such variable."""
        from vipe_dag.store.reader import stored_array

        return RowReader(stored_array(self.group, variable), self.read_part, self.where, ahead_bytes)


class RowReader:
    """Rows of one array whose chunks are single rows. Indices of shards are kept (512 bytes each), decoded rows are not. Safe to use from
    several threads.

    ahead_bytes: for those who will want the rows that follow; a step forward then reads as much as this of what is stored of them, too.

    Raises StoreError for an array that another writer laid out or encoded.
    """

    def __init__(self, array: zarr.Array[Any], read_part: ReadPart, where: str, ahead_bytes: int = 0) -> None:
        self._read_part, self._where, self._ahead_bytes = read_part, where, ahead_bytes
        self._shape, self._dtype = tuple(array.shape), array.dtype
        if array.shards is None or array.chunks != (1, *self._shape[1:]) or array.shards[1:] != self._shape[1:]:
            raise StoreError(f"{where}: expected one chunk per frame in shards, found chunks {array.chunks}, shards {array.shards}")
        self._rows_per_shard = int(array.shards[0])
        self._fill: Any = array.fill_value
        metadata: Any = array.metadata
        self._key = metadata.encode_chunk_key
        self._name = array.basename
        self._decode = _decoder(metadata.codecs[0].codecs, where)
        self._indices: dict[int, NDArray[np.uint64] | None] = {}
        self._last = -1
        self._ahead = (-1, 0, b"")
        """Shard, where in it this begins, and what was read of it last."""

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W) or (T, H, W, 3)."""
        return self._shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row."""
        return int(np.prod(self._shape[1:])) * int(self._dtype.itemsize)

    def row(self, row: int) -> NDArray[Any]:
        """One row in the stored dtype, not to be written to. Raises IndexError outside 0..len-1, StoreError for damaged data."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard, place = divmod(row, self._rows_per_shard)
        if shard not in self._indices:
            self._indices[shard] = self._read_index(shard)
        index = self._indices[shard]
        if index is None or int(index[place, 0]) == _ABSENT:
            return np.full(self._shape[1:], self._fill, self._dtype)
        content = self._content(row, shard, index[place:].astype(np.int64))
        if len(content) != index[place, 1]:
            raise self._damaged(row, "the shard is shorter than its index says")
        try:
            return self._decode(content, self._dtype).reshape(self._shape[1:])
        except (ValueError, RuntimeError) as error:
            raise self._damaged(row, error) from error

    def _content(self, row: int, shard: int, index: NDArray[np.int64]) -> bytes:
        """What is stored of one row; index (n, 2): begin and length of it and of those that follow it in its shard."""
        walking, self._last = self._ahead_bytes > 0 and row - self._last in WALKING, row
        begin, length = (int(number) for number in index[0])
        known, offset, content = self._ahead
        if known == shard and offset <= begin and begin + length <= offset + len(content):
            return content[begin - offset : begin - offset + length]
        end = begin + length
        for follows, more in index[1:] if walking else ():
            if follows != end or end + more - begin > self._ahead_bytes:
                break
            end += int(more)
        content = self._read_part(self._object(shard), begin, end) or b""
        if walking:
            self._ahead = (shard, begin, content)
        return content[:length]

    def _object(self, shard: int) -> str:
        return f"{self._name}/{self._key((shard, *(0 for _ in self._shape[1:])))}"

    def _read_index(self, shard: int) -> NDArray[np.uint64] | None:
        size = self._rows_per_shard * _ENTRY + _CHECKSUM
        content = self._read_part(self._object(shard), -size, None)
        if content is None:
            return None
        if len(content) != size:
            raise self._damaged(shard * self._rows_per_shard, "the shard has no index")
        return np.frombuffer(content[:-_CHECKSUM], "<u8").reshape(-1, 2)

    def _damaged(self, row: int, reason: object) -> StoreError:
        return StoreError(f"{self._where}: row {row} of {self._name} cannot be read ({reason}); materialize the asset again")


def _decoder(codecs: Any, where: str) -> Callable[[bytes, np.dtype[Any]], NDArray[Any]]:
    """What undoes the codecs of a row; see `vipe_dag.codecs.zarr_codecs` for those that there are."""
    from zarr.codecs import BloscCodec, BytesCodec, ZstdCodec
    from zarr.codecs.numcodecs import Delta, PCodec

    from vipe_dag.codecs import JpegXl, decode_jpegxl

    match codecs:
        case [JpegXl()]:
            return lambda content, dtype: decode_jpegxl(content)
        case [PCodec()]:
            from numcodecs.pcodec import PCodec as Decoder

            pcodec = Decoder()
            return lambda content, dtype: np.frombuffer(pcodec.decode(content), dtype)
        case [Delta(), BytesCodec(), ZstdCodec()]:
            from numcodecs import zstd

            return lambda content, dtype: np.cumsum(np.frombuffer(zstd.decompress(content), dtype), dtype=dtype)
        case [BytesCodec(), BloscCodec()]:
            from numcodecs import blosc

            return lambda content, dtype: np.frombuffer(blosc.decompress(content), dtype)
        case _:
            names = ", ".join(type(codec).__name__ for codec in codecs)
            raise StoreError(f"{where}: its rows are encoded by {names}, which cannot be read singly; read it through VideoStore.open")
