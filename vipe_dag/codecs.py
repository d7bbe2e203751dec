"""How arrays become bytes: one lossless image codec of our own, and the codec of each kind of variable named in `vipe_dag.schema`."""

from __future__ import annotations

import asyncio
import math
import warnings
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.errors import ZarrUserWarning
from zarr.registry import register_codec

from vipe_dag.schema import Compression

# Both are said on every use and both are chosen: docs/store.md tells other readers of Zarr which codec they need, and that
# consolidated metadata only saves them requests.
for _choice in ("Numcodecs codecs are not in the Zarr version 3", "Consolidated metadata is currently not part"):
    warnings.filterwarnings("ignore", message=_choice, category=ZarrUserWarning)

HTJ2K_NAME = "vipe_dag.htj2k"
_RESOLUTIONS = 3
"""More make a picture 1 % smaller and a fifth slower to decode."""


@dataclass(frozen=True)
class Htj2k(ArrayBytesCodec):
    """Lossless High-Throughput JPEG 2000 (ISO/IEC 15444-15) of one uint8 RGB frame: a chunk (1, H, W, 3) or (H, W, 3) becomes one plain
    codestream, bit-exact.

    It decodes twice as fast as JPEG XL of the same size. Its decoder may take damaged bytes for a picture, so a checksum belongs behind it.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        parse_named_configuration(data, HTJ2K_NAME, require_configuration=False)
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        return {"name": HTJ2K_NAME}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError unless chunks are one uint8 RGB image."""
        chunk = tuple(chunk_grid.chunk_shape)
        if dtype.to_native_dtype() != np.uint8 or len(chunk) < 3 or chunk[-1] != 3 or math.prod(chunk[:-3]) != 1:
            raise ValueError(f"{HTJ2K_NAME} needs uint8 chunks of one image (..., H, W, 3), found {dtype.to_native_dtype()} {chunk}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        image = np.ascontiguousarray(chunk_data.as_numpy_array()).reshape(chunk_spec.shape[-3:])
        return chunk_spec.prototype.buffer.from_bytes(await asyncio.to_thread(encode_htj2k, image))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        image = await asyncio.to_thread(decode_htj2k, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(image.reshape(chunk_spec.shape))


def encode_htj2k(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 to a lossless HTJ2K codestream. One thread: zarr encodes the frames of a shard side by side."""
    import imagecodecs

    return bytes(imagecodecs.htj2k_encode(image, reversible=True, resolutions=_RESOLUTIONS))


def decode_htj2k(data: bytes) -> NDArray[np.uint8]:
    """A codestream of `encode_htj2k` to (H, W, 3) uint8."""
    import imagecodecs

    return np.asarray(imagecodecs.htj2k_decode(data))


def zarr_codecs(compression: Compression) -> dict[str, Any]:
    """The `serializer` and `compressors` arguments of zarr's create_array for a kind of variable."""
    if compression is Compression.IMAGE:
        return {"serializer": Htj2k(), "compressors": Crc32cCodec()}
    if compression is Compression.DEPTH:
        from zarr.codecs.numcodecs import PCodec

        return {"serializer": PCodec(level=8), "compressors": None}
    if compression is Compression.MASK:
        return {"compressors": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")}
    return {"compressors": ZstdCodec(level=3)}


register_codec(HTJ2K_NAME, Htj2k)
