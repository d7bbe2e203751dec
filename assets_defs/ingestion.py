"""The sensor that takes in videos. It makes partitions; the runs are requested by the one sensor that requests any (assets_defs.rerun)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.partitions import VIDEOS
from assets_defs.words import counted
from vipe_dag.ingest import MAX_VIDEOS, Look, ingest
from vipe_dag.operations import Operations

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

INGEST_SENSOR = "ingest"


def build_ingest_sensor(store: Callable[[], VideoStore], settings: Callable[[], Operations]) -> dg.SensorDefinition:
    """Runs with Dagster when the store names a location to watch. The cursor is only what it said last: see vipe_dag.ingest."""

    @dg.sensor(
        name=INGEST_SENSOR,
        minimum_interval_seconds=settings().ingest.every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings().ingest.location else dg.DefaultSensorStatus.STOPPED,
        description="Makes a video of the store, and a partition unless partitions are shards, of every file in the watched location.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        operations, instance = settings(), context.instance
        wanted, by_shard = operations.ingest, operations.fleet.enabled
        if wanted.location is None:
            return dg.SensorResult(skip_reason="nothing is watched: set ingest.location in operations.yaml of the store")

        def add(video_id: str) -> None:
            if not by_shard:
                instance.add_dynamic_partitions(VIDEOS, [video_id])

        known = 0 if by_shard else len(instance.get_dynamic_partitions(VIDEOS))
        look = ingest(store(), wanted, add, known)
        said = sentence(look)
        if said != context.cursor:
            context.log.info(said)
        return dg.SensorResult(skip_reason=said, cursor=said)

    return watch


def sentence(look: Look) -> str:
    """One look on one line."""
    parts = [
        counted("taken in", look.taken),
        counted("waiting", look.waiting),
        counted("in quarantine", look.quarantined),
        counted("deleted at the source, results kept", look.gone),
        f"{MAX_VIDEOS} videos are as many as one store can have as partitions; use another store" if look.full else "",
    ]
    return "; ".join(part for part in parts if part) or "nothing new"
