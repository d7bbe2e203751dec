"""The sensor that takes in videos. It makes partitions; the runs are requested by the one sensor that requests any (assets_defs.rerun)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.partitions import VIDEOS
from assets_defs.words import counted
from vipe_dag.ingest import MAX_VIDEOS, Look, ingest
from vipe_dag.operations import IngestSettings

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

INGEST_SENSOR = "ingest"


def build_ingest_sensor(store: Callable[[], VideoStore], settings: Callable[[], IngestSettings]) -> dg.SensorDefinition:
    """Runs with Dagster when the store names a location to watch. It needs no cursor: see vipe_dag.ingest."""

    @dg.sensor(
        name=INGEST_SENSOR,
        minimum_interval_seconds=settings().every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings().location else dg.DefaultSensorStatus.STOPPED,
        description="Makes a partition of every video that appears in the watched location.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        wanted, instance = settings(), context.instance
        if wanted.location is None:
            return dg.SkipReason("nothing is watched: set ingest.location in operations.yaml of the store")
        known = len(instance.get_dynamic_partitions(VIDEOS))
        look = ingest(store(), wanted, lambda video_id: instance.add_dynamic_partitions(VIDEOS, [video_id]), known)
        context.log.info(sentence(look))
        return dg.SkipReason(sentence(look))

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
