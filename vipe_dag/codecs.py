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
from zarr.codecs import BloscCodec, ZstdCodec
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

JPEGXL_NAME = "vipe_dag.jpegxl"


@dataclass(frozen=True)
class JpegXl(ArrayBytesCodec):
    """Lossless JPEG XL of one uint8 RGB frame: a chunk (1, H, W, 3) or (H, W, 3) becomes one plain codestream, bit-exact.

    effort 1 (fastest) to 9 (smallest) only changes speed and size. Any JPEG XL decoder reads the stored bytes. HTJ2K decodes in half
    the time, but imagecodecs 2026.3 drops the errors of its decoder, and side by side in threads it sometimes returned other pixels.
    """

    effort: int = 1
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, JPEGXL_NAME)
        return cls(**configuration)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JSON]:
        return {"name": JPEGXL_NAME, "configuration": {"effort": self.effort}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError unless chunks are one uint8 RGB image."""
        chunk = tuple(chunk_grid.chunk_shape)
        if dtype.to_native_dtype() != np.uint8 or len(chunk) < 3 or chunk[-1] != 3 or math.prod(chunk[:-3]) != 1:
            raise ValueError(f"{JPEGXL_NAME} needs uint8 chunks of one image (..., H, W, 3), found {dtype.to_native_dtype()} {chunk}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        image = np.ascontiguousarray(chunk_data.as_numpy_array()).reshape(chunk_spec.shape[-3:])
        return chunk_spec.prototype.buffer.from_bytes(await asyncio.to_thread(encode_jpegxl, image, self.effort))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        image = await asyncio.to_thread(decode_jpegxl, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(image.reshape(chunk_spec.shape))


def encode_jpegxl(image: NDArray[np.uint8], effort: int) -> bytes:
    """(H, W, 3) uint8 to a lossless JPEG XL codestream. One thread: zarr encodes the frames of a shard side by side."""
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(image, lossless=True, effort=effort, numthreads=1))


def decode_jpegxl(data: bytes) -> NDArray[np.uint8]:
    """A codestream of `encode_jpegxl` to (H, W, 3) uint8."""
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def zarr_codecs(compression: Compression) -> dict[str, Any]:
    """The codec arguments of zarr's create_array for a kind of variable."""
    if compression is Compression.IMAGE:
        return {"serializer": JpegXl(), "compressors": None}
    if compression is Compression.LUMA:
        from zarr.codecs.numcodecs import Delta

        return {"filters": Delta(dtype="u1"), "compressors": ZstdCodec(level=1)}
    if compression is Compression.DEPTH:
        from zarr.codecs.numcodecs import PCodec

        return {"serializer": PCodec(level=8), "compressors": None}
    if compression is Compression.MASK:
        return {"compressors": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")}
    return {"compressors": ZstdCodec(level=3)}


register_codec(JPEGXL_NAME, JpegXl)
