"""`vipe-dag run` killed at random moments: the store always opens, the next run goes on from there, and the result is
the undisturbed one.

Runs are forked from a process that has imported everything, and all stages but the first take no time: what is left, and is hit by the
kills, is the writing of the store and of Dagster's book.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import quick_stages
from clips import write_clip
from vipe_dag import cli
from vipe_dag.graph import STAGES
from vipe_dag.store import VideoStore

KILLS = 10
SEED = 20
VIDEO = "slide"
FRAMES = 40
"""Two shards of each image array."""
PATIENCE_SECONDS = 120.0
IMPORTED = [
    "alembic.command",
    "assets_defs.launch",
    "cv2",
    "dagster._core.execution.execute_in_process",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.sqlite_storage",
    "dask.array",
    "imagecodecs",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch",
    "vipe_dag.cli.commands",
    "vipe_dag.plots",
    "vipe_dag.stage_runs",
    "vipe_dag.video",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "slide.mp4", FRAMES)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Where runs come from: the first process waits for the imports, the others start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    first = context.Process(target=int)
    first.start()
    first.join(PATIENCE_SECONDS)
    yield context
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def run(clip: Path, root: Path, log: Path) -> None:
    """What a run does in its own process, in a session of its own, so that whatever it leaves can be ended."""
    os.setsid()
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_stages.install(monkeypatch)
        os._exit(cli.main(["run", str(clip), "--store", str(root), "--video-id", VIDEO]))


def start(processes: ForkServerContext, clip: Path, root: Path) -> ForkServerProcess:
    process = processes.Process(target=run, args=(clip, root, root.with_suffix(".log")))
    process.start()
    return process


def finish(processes: ForkServerContext, clip: Path, root: Path) -> float:
    """A whole run; returns its seconds."""
    began = time.monotonic()
    process = start(processes, clip, root)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0, root.with_suffix(".log").read_text()
    return time.monotonic() - began


def kill_after(seconds: float, processes: ForkServerContext, clip: Path, root: Path) -> bool:
    """Starts a run and sends SIGKILL to it after that long; False when it was done before."""
    process = start(processes, clip, root)
    process.join(seconds)
    killed = process.exitcode is None
    process.kill()
    process.join()
    _end_session(process)
    return killed


def _end_session(leader: ForkServerProcess) -> None:
    """The helpers that mirror a step's output end by themselves a second after it; not to wait for them, they are ended here."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid or 0, signal.SIGTERM)


def load(root: Path) -> dict[str, xr.Dataset]:
    """Everything that the store shows, read to the last byte."""
    store = VideoStore(root)
    if VIDEO not in store.videos():
        return {}
    return {stage.name: store.open(VIDEO, stage.name).load() for stage in STAGES if store.current(VIDEO, stage.name) is not None}


def test_killed_at_random_moments_the_store_opens_and_a_rerun_completes(clip: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    longest = finish(processes, clip, undisturbed)
    expected = load(undisturbed)
    assert list(expected) == [stage.name for stage in STAGES]

    moments = random.Random(SEED)
    kills, reached = 0, set()
    while kills < KILLS:
        if kill_after(moments.uniform(0.02, 0.98) * longest, processes, clip, disturbed):
            kills += 1
        seen = load(disturbed)
        assert list(seen) == list(expected)[: len(seen)]
        reached.add(len(seen))
        if len(seen) == len(STAGES):
            shutil.rmtree(disturbed)
    assert len(reached) > 2, "the kills hit different stages"

    finish(processes, clip, disturbed)
    found = load(disturbed)
    assert list(found) == list(expected)
    for name, dataset in expected.items():
        for variable in dataset.variables:
            np.testing.assert_array_equal(found[name][variable].values, dataset[variable].values, err_msg=f"{name}.{variable}")
