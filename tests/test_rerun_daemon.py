"""Rematerialisation through a live daemon: a change is computed, going back is not, and a daemon that was away catches up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import pytest

import platform_worlds
import quick_stages
from assets_defs.assets import GPU_POOL
from assets_defs.instance import adopt, open_instance, unfinished_runs
from platform_worlds import ALL, World, clip_in
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.pipeline import run_video, states
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE, ROOT_VARIABLE

PATIENCE_SECONDS = 900.0
QUIET_SECONDS = 3.0
"""Several ticks: what would be requested too often shows."""
HOME = "telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 1}}\n"
BELOW_POSES = ("ba_poses", "dense_depth", "aligned_depth")


def start_daemon(place: World) -> subprocess.Popen[bytes]:
    """The daemon in a process group of its own, with everything that it starts."""
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment |= {ROOT_VARIABLE: str(place.root), HOME_VARIABLE: str(place.root / "_dagster"), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "quick_definitions", "--log-level", "warning"]
    with (place.root.parent / "daemon.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the daemon and to all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def daemon(place: World) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon, ended with everything that it started."""
    process = start_daemon(place)
    try:
        yield process
        assert process.poll() is None, "the daemon ended by itself"
    finally:
        kill_all(process)


def wait(place: World, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, (place.root.parent / "daemon.log").read_text()[-4000:]
        time.sleep(0.2)


def settled(place: World, config: PipelineConfig) -> bool:
    """Every stage is as wanted, and no run is open."""
    return set(states(place.store, "a", config).values()) == {"current"} and not unfinished_runs(place.instance)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    platform_worlds.hurry(monkeypatch)
    quick_stages.install(monkeypatch)
    root = tmp_path / "store"
    (root / "_dagster").mkdir(parents=True)
    (root / "_dagster" / "dagster.yaml").write_text(HOME)
    with open_instance(root / "_dagster") as instance:
        place = World(root, instance)
        place.operate(rerun={"enabled": True, "every_seconds": 1})
        place.add(clip_in(tmp_path), "a")
        run_video(place.store, "a", load_config())
        adopt(instance, place.store)
        yield place


def test_a_daemon_that_was_away_catches_up_going_back_is_free_and_a_change_is_computed_once(place: World) -> None:
    first, second, third = (load_config(overrides=[f"ba_poses.grid_columns={columns}"]) for columns in (24, 20, 16))
    before = place.materializations()
    assert before == dict.fromkeys(ALL, 1)
    place.configure(ba_poses={"grid_columns": 20})
    with daemon(place):
        wait(place, lambda: settled(place, second))
        assert place.materializations() - before == dict.fromkeys(BELOW_POSES, 1)

        place.configure(ba_poses={"grid_columns": 24})
        wait(place, lambda: settled(place, first))
        time.sleep(QUIET_SECONDS)
        assert len(place.instance.get_runs()) == 1

        place.configure(ba_poses={"grid_columns": 16})
        wait(place, lambda: settled(place, third))
        time.sleep(QUIET_SECONDS)
    assert place.materializations() - before == dict.fromkeys(BELOW_POSES, 3)  # computed, brought back, computed
    assert len(place.instance.get_runs()) == 2


def holders(place: World) -> set[str]:
    """The runs that have a place in the pool."""
    return set(place.instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids)


def test_a_daemon_killed_while_a_run_holds_the_gpu_leaves_no_place_taken_and_no_run_twice(place: World) -> None:
    place.instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    before, hold = place.materializations(), place.root.with_name("hold")
    hold.touch()
    place.configure(ba_poses={"grid_columns": 20})
    with daemon(place):
        wait(place, lambda: len(holders(place)) == 1)
    (killed,) = holders(place)

    alone = start_daemon(place)
    try:
        wait(place, lambda: len(holders(place) - {killed}) == 1)
        assert len(holders(place)) == 1
        alone.kill()  # its run goes on
        with daemon(place):
            time.sleep(QUIET_SECONDS)
            hold.unlink()
            wait(place, lambda: settled(place, load_config(overrides=["ba_poses.grid_columns=20"])))
            time.sleep(QUIET_SECONDS)
    finally:
        kill_all(alone)
    assert holders(place) == set()
    assert place.materializations() - before == dict.fromkeys(BELOW_POSES, 1)
    found = {run.run_id: run.status for run in place.instance.get_runs()}
    assert found.pop(killed) == dg.DagsterRunStatus.FAILURE
    assert list(found.values()) == [dg.DagsterRunStatus.SUCCESS]
