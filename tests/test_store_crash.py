"""A process killed at any change of the file system leaves the old state readable; nobody reads a mix; a rerun completes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

if not hasattr(os, "fork"):
    pytest.skip("kills forked processes", allow_module_level=True)

from crash_writer import FRAMES, write
from store_contract import NEW, OLD, VIDEO, pixels
from vipe_dag.store import VideoStore

LONG_AFTER = timedelta(hours=1)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One store per file operation of a writer, killed just before it."""
    base = tmp_path_factory.mktemp("crashed")
    script = Path(__file__).with_name("crash_writer.py")
    subprocess.run([sys.executable, str(script), str(base)], check=True, timeout=300)
    return sorted(path for path in base.iterdir() if path.name != "before")[:-1]


def content(store: VideoStore) -> str:
    """The fingerprint whose pixels a reader sees; fails on a mix."""
    dataset, current = store.open(VIDEO, "frames"), store.current(VIDEO, "frames")
    assert current is not None
    rgb = pixels(int(current.fingerprint[0], 16), FRAMES)
    np.testing.assert_array_equal(dataset["rgb"], rgb)
    np.testing.assert_array_equal(dataset["time"], np.arange(FRAMES) / 15.0)
    np.testing.assert_array_equal(store.frames(VIDEO).rgb(FRAMES - 1), rgb[-1])
    return current.fingerprint


def test_every_write_was_tried(crashed: list[Path]) -> None:
    assert len(crashed) > 30


def test_the_old_state_is_readable_until_the_pointer_flips(crashed: list[Path]) -> None:
    seen = [content(VideoStore(root)) for root in crashed]
    assert seen == [OLD] * len(crashed)


def test_a_half_written_generation_is_never_offered(crashed: list[Path]) -> None:
    for root in crashed:
        store = VideoStore(root)
        offered = [pointer.fingerprint for pointer in store.generations(VIDEO, "frames")]
        assert offered[0] == OLD
        if NEW in offered:
            np.testing.assert_array_equal(store.open(VIDEO, "frames", NEW)["rgb"], pixels(int(NEW[0], 16), FRAMES))


def test_a_rerun_completes_and_sweeping_leaves_no_litter(crashed: list[Path]) -> None:
    for root in crashed:
        store = VideoStore(root)
        if store.point(VIDEO, "frames", NEW) is None:
            write(root, NEW)
        assert content(store) == NEW
        store.sweep(timedelta(0), now=datetime.now(UTC) + LONG_AFTER)
        complete = {pointer.generation for pointer in store.generations(VIDEO, "frames")}
        assert {path.name for path in (root / VIDEO / "frames").iterdir()} == complete | {"_current.json"}
        assert not list(root.rglob("*.partial"))
        assert content(store) == NEW
