"""Rematerialisation through a live daemon: a change is computed, going back is not, and a daemon that was away catches up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import pytest

import platform_worlds
import quick_stages
from assets_defs.assets import GPU_POOL
from assets_defs.instance import adopt, open_instance, unfinished_runs
from assets_defs.rerun import RERUN_SENSOR
from platform_worlds import ALL, World, clip_in
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.pipeline import run_video, states
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE, ROOT_VARIABLE

PATIENCE_SECONDS = 900.0
QUIET_SECONDS = 3.0
"""Several ticks: what would be requested too often shows."""
PROCESSES = "telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 1}}\n"
WITHIN = """
telemetry: {enabled: false}
run_launcher: {module: dagster._core.launcher.sync_in_memory_run_launcher, class: SyncInMemoryRunLauncher}
run_coordinator: {module: dagster.core.run_coordinator, class: QueuedRunCoordinator, config: {dequeue_interval_seconds: 1}}
"""
"""Runs take place in the process of the daemon: one of its own for each costs seconds, most of them for imports."""
VIDEOS = tuple("abcdef")
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
        time.sleep(0.5)


def settled(place: World, config: PipelineConfig) -> bool:
    """Every stage is as wanted, and no run is open."""
    if unfinished_runs(place.instance):
        return False
    return all(set(states(place.store, video, config).values()) == {"current"} for video in place.store.names())


def ticked(place: World) -> bool:
    """The daemon has looked at all videos."""
    found = [state for state in place.instance.all_instigator_state() if state.name == RERUN_SENSOR]
    return any(place.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1) for state in found)


def made(place: World) -> Counter[str]:
    """Materializations that a run made, by stage; not those that say what is in the store."""
    found = [place.instance.fetch_materializations(dg.AssetKey(name), limit=1000).records for name in ALL]
    return Counter(record.asset_key.to_user_string() for records in found for record in records if record.run_id)


def seconds_of_steps(place: World) -> float:
    """Seconds that the steps of all runs took."""
    steps = [step for run in place.instance.get_runs() for step in place.instance.get_run_step_stats(run.run_id)]
    return sum(step.end_time - step.start_time for step in steps if step.start_time and step.end_time)


@contextmanager
def stocked(folder: Path, home: str, *video_ids: str) -> Iterator[World]:
    """A store of videos that are all as the configuration asks for. home: the configuration of its Dagster."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        platform_worlds.hurry(monkeypatch)
        quick_stages.install(monkeypatch)
        root = folder / "store"
        (root / "_dagster").mkdir(parents=True)
        (root / "_dagster" / "dagster.yaml").write_text(home)
        with open_instance(root / "_dagster") as instance:
            place = World(root, instance)
            place.operate(rerun={"enabled": True, "every_seconds": 1})
            place.add(clip_in(folder), *video_ids)
            for video_id in video_ids:
                run_video(place.store, video_id, load_config())
            adopt(instance, place.store)
            yield place


def test_a_change_over_six_videos_is_18_materializations_and_going_back_none_and_a_daemon_that_was_away_catches_up(tmp_path: Path) -> None:
    first, second, third = (load_config(overrides=[f"ba_poses.grid_columns={columns}"]) for columns in (24, 20, 16))
    with stocked(tmp_path, WITHIN, *VIDEOS) as place:
        with daemon(place):
            wait(place, lambda: ticked(place))
            place.configure(ba_poses={"grid_columns": 20})
            wait(place, lambda: settled(place, second))
            assert made(place) == dict.fromkeys(BELOW_POSES, 6)
            runs, seconds = len(place.instance.get_runs()), seconds_of_steps(place)
            assert runs == len(VIDEOS)
            assert seconds > 0

            place.configure(ba_poses={"grid_columns": 24})
            wait(place, lambda: settled(place, first))
            time.sleep(QUIET_SECONDS)
            assert (len(place.instance.get_runs()), seconds_of_steps(place)) == (runs, seconds)

        place.configure(ba_poses={"grid_columns": 16})
        with daemon(place):
            wait(place, lambda: settled(place, third))
            time.sleep(QUIET_SECONDS)
        assert made(place) == dict.fromkeys(BELOW_POSES, 12)
        assert len(place.instance.get_runs()) == 2 * len(VIDEOS)


def holders(place: World) -> set[str]:
    """The runs that have a place in the pool."""
    return set(place.instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids)


def test_a_daemon_killed_while_a_run_holds_the_gpu_leaves_no_place_taken_and_no_run_twice(tmp_path: Path) -> None:
    with stocked(tmp_path, PROCESSES, "a") as place:
        place.instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
        before, hold = place.materializations(), place.root.with_name("hold")
        hold.touch()
        with daemon(place):
            wait(place, lambda: ticked(place))
            place.configure(ba_poses={"grid_columns": 20})
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
