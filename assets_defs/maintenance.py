"""What is done at night: the book is made to say what the store has, and what nobody will look at again is removed. And one job by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from assets_defs.fleet import SHARD
from assets_defs.instance import UNFINISHED, adopt, close_lost_runs
from assets_defs.partitions import VIDEOS
from resources.video_store import VideoStoreResource
from vipe_dag.graph import STAGES
from vipe_dag.ingest import retry
from vipe_dag.operations import MaintenanceSettings, collect_garbage, load_operations

RECONCILE_JOB = "reconcile"
MAINTENANCE_JOB = "maintenance"
LITTER_AGE = timedelta(days=1)
"""Of what a crashed writer left: no stage pauses that long between two objects."""
RETRY_JOB = "retry_quarantined"
RUNS_PER_PAGE = 500


@dg.op(name="book_from_store")
def book_from_store(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Enters what the store has and the book lacks or has otherwise. Where partitions are shards, the book knows of no single video."""
    store = video_store.open()
    lost = close_lost_runs(context.instance)
    videos = 0 if load_operations(store.root).fleet.enabled else adopt(context.instance, store)
    context.add_output_metadata({"videos": videos, "lost_runs": lost})


@dg.op(name="remove_old_results")
def remove_old_results(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Removes results that were replaced longer ago than the retention, and what crashed writers left."""
    store = video_store.open()
    removed = collect_garbage(store.root) + store.sweep(LITTER_AGE)
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

    Returns their number.
    """
    limit = (now or datetime.now(UTC)) - timedelta(days=settings.runs_days)
    needed, gone, last = _runs_of_latest_results(instance), 0, None
    while page := instance.get_run_records(dg.RunsFilter(updated_before=limit), limit=RUNS_PER_PAGE, cursor=last):
        last = page[-1].dagster_run.run_id if len(page) == RUNS_PER_PAGE else None
        for run in (record.dagster_run for record in page):
            if run.status not in UNFINISHED and run.run_id not in needed and run.run_id != last:
                instance.delete_run(run.run_id)
                gone += 1
        if last is None:
            break
    return gone


def _runs_of_latest_results(instance: dg.DagsterInstance) -> set[str]:
    """Runs to which the book owes what it knows about videos and shards."""
    found = set()
    videos, shard = instance.get_dynamic_partitions(VIDEOS), dg.AssetKey(SHARD)
    partitions = [(dg.AssetKey(stage.name), video_id) for stage in STAGES for video_id in videos]
    partitions += [(shard, name) for name in instance.get_materialized_partitions(shard)]
    for asset, partition in partitions:
        record = instance.get_latest_data_version_record(asset, partition_key=partition)
        if record is not None:
            found.add(record.run_id)
    return found


@dg.op(name="release_from_quarantine")
def release_from_quarantine(context: dg.OpExecutionContext, video_store: VideoStoreResource) -> None:
    """Lets every file in quarantine be opened again."""
    released = retry(video_store.open())
    for name in released:
        context.log.info("released %s", name)
    context.add_output_metadata({"released": len(released)})


@dg.job(name=RECONCILE_JOB, description="Enters in Dagster's book what the store has, and closes runs whose process died.")
def reconcile() -> None:
    """Book and store agree."""
    book_from_store()


@dg.job(name=MAINTENANCE_JOB, description="Removes results that were replaced long ago, litter of crashed writers, and old runs.")
def maintenance() -> None:
    """Old results, litter and old runs are gone."""
    remove_old_results()
    prune_runs()


@dg.job(name=RETRY_JOB, description="Opens every file in quarantine again at the next tick of the sensor `ingest`.")
def retry_quarantined() -> None:
    """Nothing is in quarantine."""
    release_from_quarantine()


def build_schedules(enabled: bool, coverage: Any) -> list[dg.ScheduleDefinition]:
    """The nightly jobs one after another, UTC; coverage: the job of the coverage checks."""
    status = dg.DefaultScheduleStatus.RUNNING if enabled else dg.DefaultScheduleStatus.STOPPED
    nights = {"0 2 * * *": reconcile, "30 2 * * *": coverage, "0 3 * * *": maintenance}
    return [
        dg.ScheduleDefinition(name=f"nightly_{job.name}", job=job, cron_schedule=time, execution_timezone="UTC", default_status=status)
        for time, job in nights.items()
    ]
