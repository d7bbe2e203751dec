"""Frames of the profile `reference`: no pixels in the store, the same pixels from the source."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from store_contract import OLD, VIDEO
from vipe_dag.config import FramesConfig
from vipe_dag.errors import SourceError
from vipe_dag.stages.frames import decode
from vipe_dag.store import VideoStore
from vipe_dag.video import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source of five pictures."""
    (tmp_path / "pictures").mkdir()
    for row in range(5):
        noise = np.random.default_rng(row).integers(0, 256, (80, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{row}.png")
    return tmp_path / "pictures"


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> VideoStore:
    """Its frames at half size, by reference."""
    store, config = VideoStore(tmp_path / "store"), FramesConfig(long_side=64, profile="reference")
    decoder = decode(open_source(str(folder)), config)
    with store.begin(VIDEO, "frames", OLD) as writer:
        for block in decoder:
            writer.append({"frame": block.index, "time": block.time})
        writer.attrs({**asdict(decoder.info), "profile": "reference"})
    return store


def test_rows_are_decoded_to_what_would_have_been_stored(store: VideoStore, folder: Path) -> None:
    (block,) = decode(open_source(str(folder)), FramesConfig(long_side=64))
    frames = store.frames(VIDEO)
    assert (len(frames), frames.width, frames.height) == (5, 64, 43)
    for row in (0, 4, 2):
        np.testing.assert_array_equal(frames.rgb(row), block.rgb[row])


def test_a_source_that_changed_is_refused(store: VideoStore, folder: Path) -> None:
    Image.new("RGB", (120, 80)).save(folder / "3.png")
    with pytest.raises(SourceError, match=r"pictures: its content changed since its frames were timed.*run it again"):
        store.frames(VIDEO)
