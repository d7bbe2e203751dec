"""What is done at night: the book is made to say what the store has, and what nobody will look at again is removed."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.instance import UNFINISHED, adopt, close_lost_runs
from assets_defs.partitions import VIDEOS
from resources.video_store import VideoStoreResource
from vipe_dag.graph import STAGES
from vipe_dag.operations import MaintenanceSettings, load_operations

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

RECONCILE_JOB = "reconcile"
MAINTENANCE_JOB = "maintenance"
LITTER_AGE = timedelta(days=1)
"""Of what a crashed writer left: no stage pauses that long between two objects."""
RUNS_PER_PASS = 1000
AT_NIGHT = {"reconcile": "0 2 * * *", "coverage": "30 2 * * *", "maintenance": "0 3 * * *"}


@dg.op(name="book_from_store")
def book_from_store(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Enters what the store has and the book lacks or has otherwise."""
    lost = close_lost_runs(context.instance)
    videos = adopt(context.instance, video_store.open())
    context.add_output_metadata({"videos": videos, "lost_runs": lost})


@dg.op(name="remove_old_results")
def remove_old_results(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Removes results that were replaced longer ago than the retention, and what crashed writers left."""
    store = video_store.open()
    settings = load_operations(store.root).maintenance
    removed = store.collect(timedelta(days=settings.retention_days), settings.keep) + store.sweep(LITTER_AGE)
    for piece in removed:
        context.log.info("removed %s, %d bytes", piece.key, piece.bytes)
    context.add_output_metadata({"removed": len(removed), "bytes": sum(piece.bytes for piece in removed)})


@dg.op(name="prune_runs")
def prune_runs(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Removes old runs that say nothing about what is stored now."""
    settings = load_operations(video_store.open().root).maintenance
    context.add_output_metadata({"runs": prune(context.instance, settings)})


def prune(instance: dg.DagsterInstance, settings: MaintenanceSettings, now: datetime | None = None) -> int:
    """Deletes runs that ended before `runs_days`, with their events, but for those with the latest materialization of some partition.

    Returns their number, at most RUNS_PER_PASS.
    """
    limit = (now or datetime.now(UTC)) - timedelta(days=settings.runs_days)
    old = instance.get_run_records(dg.RunsFilter(updated_before=limit), limit=RUNS_PER_PASS, ascending=True)
    needed = _runs_of_latest_results(instance) if old else set()
    gone = [record.dagster_run for record in old if record.dagster_run.status not in UNFINISHED]
    gone = [run for run in gone if run.run_id not in needed]
    for run in gone:
        instance.delete_run(run.run_id)
    return len(gone)


def _runs_of_latest_results(instance: dg.DagsterInstance) -> set[str]:
    """Runs to which the book owes what it knows about the videos."""
    found = set()
    videos = instance.get_dynamic_partitions(VIDEOS)
    for stage in STAGES:
        for video_id in videos:
            record = instance.get_latest_data_version_record(dg.AssetKey(stage.name), partition_key=video_id)
            if record is not None:
                found.add(record.run_id)
    return found
