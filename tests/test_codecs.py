"""Codecs: pictures and depth come back bit-exact from inside shards, and are found by name."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from vipe_dag.codecs import HTJ2K_NAME, Htj2k, decode_htj2k, encode_htj2k, zarr_codecs
from vipe_dag.schema import ASSETS, SHARD_FRAMES, Compression

SMALL = st.integers(1, 9)


@given(height=SMALL, width=SMALL, seed=st.integers(0, 2**32 - 1))
def test_htj2k_is_lossless_for_any_picture(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(decode_htj2k(encode_htj2k(image)), image)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_flat_pictures_are_lossless(value: int) -> None:
    image = np.full((5, 7, 3), value, np.uint8)
    np.testing.assert_array_equal(decode_htj2k(encode_htj2k(image)), image)


@pytest.mark.parametrize(
    ("compression", "data"),
    [
        (Compression.IMAGE, np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)),
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


def test_a_stored_frame_is_a_plain_codestream_with_its_checksum() -> None:
    import imagecodecs

    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    store = MemoryStore()
    zarr.create_array(store, name="rgb", shape=(1, 6, 5, 3), chunks=(1, 6, 5, 3), dtype="uint8", **zarr_codecs(Compression.IMAGE))[0] = (
        image
    )
    stored = store._store_dict["rgb/c/0/0/0/0"].to_bytes()
    np.testing.assert_array_equal(imagecodecs.htj2k_decode(stored[:-4]), image)


def test_the_codec_is_an_entry_point_of_zarr() -> None:
    (found,) = entry_points(group="zarr.codecs", name=HTJ2K_NAME)
    assert found.load() is Htj2k


def test_the_codec_survives_its_metadata() -> None:
    assert Htj2k.from_dict(Htj2k().to_dict()) == Htj2k()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 4, 4, 3), "uint8"), ((1, 4, 4, 4), "uint8"), ((1, 4, 4, 3), "uint16"), ((4, 3), "uint8")]
)
def test_chunks_that_are_no_rgb_picture_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="needs uint8 chunks of one image"):
        zarr.create_array(MemoryStore(), shape=shape, chunks=shape, dtype=dtype, serializer=Htj2k())


def test_every_kind_of_variable_has_a_codec() -> None:
    used = {variable.compression for schema in ASSETS.values() for variable in schema.variables}
    assert used == set(Compression)
    assert all("compressors" in zarr_codecs(kind) for kind in Compression)
