"""`vipe-dag run` killed at random moments: the store always opens, the next run goes on from there, and the result is
the undisturbed one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from vipe_dag.graph import STAGES
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import scene, write_mp4

KILLS = 10
SEED = 20
VIDEO = "room"
PATIENCE_SECONDS = 300.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mp4(scene("room", n_frames=24, width=160, height=120, fps=8.0), tmp_path_factory.mktemp("clips") / "room.mp4")


def start(clip: Path, root: Path) -> subprocess.Popen[bytes]:
    """A run in a session of its own, so that whatever it leaves can be ended."""
    command = [sys.executable, "-m", "vipe_dag", "run", str(clip), "--store", str(root), "--video-id", VIDEO]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(clip: Path, root: Path) -> float:
    """A whole run; returns its seconds."""
    began = time.monotonic()
    process = start(clip, root)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - began


def kill_after(seconds: float, clip: Path, root: Path) -> bool:
    """Starts a run and sends SIGKILL to it after that long; False when it was done before."""
    process = start(clip, root)
    try:
        process.wait(seconds)
        done = True
    except subprocess.TimeoutExpired:
        done = False
        process.kill()
        process.wait()
    finally:
        _end_session(process.pid)
        if process.stderr is not None:
            process.stderr.close()
    return not done


def _end_session(leader: int) -> None:
    """The helpers that mirror a step's output end by themselves a second after it; not to wait for them, they are ended here."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)


def load(root: Path) -> dict[str, xr.Dataset]:
    """Everything that the store shows, read to the last byte."""
    store = VideoStore(root)
    if VIDEO not in store.videos():
        return {}
    return {stage.name: store.open(VIDEO, stage.name).load() for stage in STAGES if store.current(VIDEO, stage.name) is not None}


def test_killed_at_random_moments_the_store_opens_and_a_rerun_completes(clip: Path, tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    longest = finish(clip, undisturbed)
    expected = load(undisturbed)
    assert list(expected) == [stage.name for stage in STAGES]

    moments = random.Random(SEED)
    kills = reached = 0
    while kills < KILLS:
        if kill_after(moments.uniform(0.05, 0.7) * longest, clip, disturbed):
            kills += 1
        seen = load(disturbed)
        assert list(seen) == list(expected)[: len(seen)]
        reached = max(reached, len(seen))
        if len(seen) == len(STAGES):
            shutil.rmtree(disturbed)
    assert reached > 0

    finish(clip, disturbed)
    found = load(disturbed)
    assert list(found) == list(expected)
    for name, dataset in expected.items():
        for variable in dataset.variables:
            np.testing.assert_array_equal(found[name][variable].values, dataset[variable].values, err_msg=f"{name}.{variable}")
