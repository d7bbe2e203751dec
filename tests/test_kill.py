"""`vipe-dag run` killed at random moments: the store always opens, the next run goes on from there, and the result is
the undisturbed one.

Runs are forked from a process that has imported everything, and all stages but the first take no time: what is left, and is hit by the
kills, is the writing of the store and of Dagster's book. A moment is a share of the files of a video and a little time, so that
the kills spread over all stages on a machine of any speed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
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
LATER_SECONDS = 0.3
"""At most, after the file that a kill waits for: until the next file, Dagster writes its book."""
HALF = (".partial", ".tmp")
"""How the names of files end that are still written to."""
PATIENCE_SECONDS = 300.0
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


def finish(processes: ForkServerContext, clip: Path, root: Path) -> None:
    """A whole run."""
    process = start(processes, clip, root)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0, root.with_suffix(".log").read_text()


def kill_at(files: int, later: float, processes: ForkServerContext, clip: Path, root: Path) -> bool:
    """Starts a run and sends SIGKILL to it that many seconds after the store has so many files; False when it was done before."""
    process = start(processes, clip, root)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while written(root) < files and process.exitcode is None:
        assert time.monotonic() < deadline, root.with_suffix(".log").read_text()
        time.sleep(0.002)
    process.join(later)
    killed = process.exitcode is None
    process.kill()
    process.join()
    _end_session(process)
    return killed


def written(root: Path) -> int:
    """How many files of the video there are. What several attempts at a result wrote counts once, so that an attempt is progress
    from where it goes further than those before it."""
    found = set()
    for folder, _, names in os.walk(root / VIDEO):
        stage, _, *within = *Path(folder).relative_to(root / VIDEO).parts, "", ""
        found |= {(stage, *within, name) for name in names if not name.endswith(HALF)}
    return len(found)


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
    finish(processes, clip, undisturbed)
    expected, files = load(undisturbed), written(undisturbed)
    assert list(expected) == [stage.name for stage in STAGES]

    moments = random.Random(SEED)
    kills, reached = 0, set()
    for number in range(KILLS):
        share = (number + moments.random()) / KILLS
        kills += kill_at(int(share * files), moments.uniform(0, LATER_SECONDS), processes, clip, disturbed)
        seen = load(disturbed)
        assert list(seen) == list(expected)[: len(seen)]
        reached.add(len(seen))
    assert kills > KILLS // 2
    assert len(reached) > 3, "the kills hit different stages"

    finish(processes, clip, disturbed)
    found = load(disturbed)
    assert list(found) == list(expected)
    for name, dataset in expected.items():
        for variable in dataset.variables:
            np.testing.assert_array_equal(found[name][variable].values, dataset[variable].values, err_msg=f"{name}.{variable}")
