"""Codecs: pictures and depth come back bit-exact from inside shards, and are found by name."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from vipe_dag.codecs import JPEGXL_NAME, JpegXl, decode_jpegxl, encode_jpegxl, zarr_codecs
from vipe_dag.schema import ASSETS, SHARD_FRAMES, Compression

SMALL = st.integers(1, 9)


@given(height=SMALL, width=SMALL, effort=st.sampled_from([1, 3]), seed=st.integers(0, 2**32 - 1))
def test_jpeg_xl_is_lossless_for_any_picture(height: int, width: int, effort: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(decode_jpegxl(encode_jpegxl(image, effort)), image)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_flat_pictures_are_lossless(value: int) -> None:
    image = np.full((5, 7, 3), value, np.uint8)
    np.testing.assert_array_equal(decode_jpegxl(encode_jpegxl(image, 1)), image)


@pytest.mark.parametrize(
    ("compression", "data"),
    [
        (Compression.IMAGE, np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)),
        (Compression.LUMA, np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)),
        (Compression.DEPTH, np.random.default_rng(0).normal(size=(40, 6, 5)).astype(np.float16)),
        (Compression.DEPTH, np.array([np.nan, np.inf, -np.inf, -0.0, 6e-8, 65504], np.float16).reshape(1, 2, 3)),
        (Compression.MASK, np.random.default_rng(0).integers(0, 2, (40, 6, 5)).astype(bool)),
        (Compression.MASK, np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)),
    ],
)
def test_shards_come_back_bit_exact(compression: Compression, data: np.ndarray) -> None:
    image = data.shape[1:]
    array = zarr.create_array(
        MemoryStore(), shape=data.shape, chunks=(1, *image), shards=(SHARD_FRAMES, *image), dtype=data.dtype, **zarr_codecs(compression)
    )
    array[:] = data
    assert np.asarray(array[:]).tobytes() == data.tobytes()


def test_a_stored_frame_is_a_plain_jpeg_xl_codestream() -> None:
    import imagecodecs

    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    store = MemoryStore()
    zarr.create_array(store, name="rgb", shape=(1, 6, 5, 3), chunks=(1, 6, 5, 3), dtype="uint8", **zarr_codecs(Compression.IMAGE))[0] = (
        image
    )
    stored = store._store_dict["rgb/c/0/0/0/0"].to_bytes()
    np.testing.assert_array_equal(imagecodecs.jpegxl_decode(stored), image)


def test_the_codec_is_an_entry_point_of_zarr() -> None:
    (found,) = entry_points(group="zarr.codecs", name=JPEGXL_NAME)
    assert found.load() is JpegXl


def test_the_codec_survives_its_metadata() -> None:
    assert JpegXl.from_dict(JpegXl(effort=3).to_dict()) == JpegXl(effort=3)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 4, 4, 3), "uint8"), ((1, 4, 4, 4), "uint8"), ((1, 4, 4, 3), "uint16"), ((4, 3), "uint8")]
)
def test_chunks_that_are_no_rgb_picture_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="needs uint8 chunks of one image"):
        zarr.create_array(MemoryStore(), shape=shape, chunks=shape, dtype=dtype, serializer=JpegXl())


def test_every_kind_of_variable_has_a_codec() -> None:
    used = {variable.compression for schema in ASSETS.values() for variable in schema.variables}
    assert used == set(Compression)
    assert all("compressors" in zarr_codecs(kind) for kind in Compression)
