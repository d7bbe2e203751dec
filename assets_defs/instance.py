"""The book of a store: a Dagster instance in its home directory, the videos it knows as partitions, runs whose process died."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import psutil

from assets_defs.partitions import VIDEOS
from vipe_dag.graph import STAGES

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

PROCESS_TAG = "vipe_dag/process"
DATA_VERSION_TAG = "dagster/data_version"
HOME_CONFIG = """\
# Written once by vipe-dag; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 1
"""
"""One run at a time: a stage uses all cores, and two videos at once would only wait for each other."""


def prepare_home(home: Path) -> None:
    """Makes the directory, with a configuration unless it has one already."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "dagster.yaml"
    if not file.exists():
        file.write_text(HOME_CONFIG, encoding="utf-8")


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of that home, made when absent. Use it as a context manager."""
    prepare_home(home)
    return dg.DagsterInstance.from_config(str(home))


def add_videos(instance: dg.DagsterInstance, video_ids: Iterable[str]) -> None:
    """Makes a partition of each video that is none yet."""
    known = set(instance.get_dynamic_partitions(VIDEOS))
    new = [video_id for video_id in video_ids if video_id not in known]
    if new:
        instance.add_dynamic_partitions(VIDEOS, new)


def adopt(instance: dg.DagsterInstance, store: VideoStore) -> int:
    """Enters into the book what the store has and the book lacks: videos, and assets computed elsewhere. Returns the number of videos.

    So a store that was copied here, or filled by plain Python, looks in the UI as it is.
    """
    video_ids = store.videos()
    add_videos(instance, video_ids)
    for stage in STAGES:
        key = dg.AssetKey(stage.name)
        entered = instance.get_materialized_partitions(key)
        for video_id in video_ids:
            pointer = store.current(video_id, stage.name)
            if pointer is not None and video_id not in entered:
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        key,
                        partition=video_id,
                        tags={DATA_VERSION_TAG: pointer.fingerprint},
                        metadata={
                            "fingerprint": pointer.fingerprint,
                            "store_path": dg.MetadataValue.path(store.path(video_id, stage.name)),
                        },
                    )
                )
    return len(video_ids)


def process_tags() -> dict[str, str]:
    """Tags by which `close_lost_runs` can tell that this process is gone."""
    return {PROCESS_TAG: _process_name(os.getpid())}


def close_lost_runs(instance: dg.DagsterInstance) -> int:
    """Marks runs as failed whose process on this machine is gone (killed, or the power went); returns how many."""
    host = socket.gethostname()
    lost = 0
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])):
        name = run.tags.get(PROCESS_TAG, "")
        if name.startswith(f"{host}:") and not _alive(name):
            instance.report_run_failed(run, "the process of this run ended without closing it")
            lost += 1
    return lost


def _process_name(pid: int) -> str:
    """Host, pid and start time, so that a pid that was given out again is not taken for the old process."""
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.0f}"


def _alive(name: str) -> bool:
    try:
        return _process_name(int(name.split(":")[1])) == name
    except psutil.Error:
        return False
