"""The sensor that takes in videos. It makes partitions; the runs are requested by the one sensor that requests any (assets_defs.rerun)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.instance import add_videos
from assets_defs.partitions import VIDEOS
from vipe_dag.ingest import MAX_VIDEOS, Look, ingest, retry
from vipe_dag.operations import IngestSettings

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

INGEST_SENSOR = "ingest"
RETRY_JOB = "retry_quarantined"
SECONDS_BETWEEN_TICKS = 30


def build_ingest_sensor(store: Callable[[], VideoStore], settings: Callable[[], IngestSettings]) -> dg.SensorDefinition:
    """Runs with Dagster when the store names a location to watch. It needs no cursor: see vipe_dag.ingest."""

    @dg.sensor(
        name=INGEST_SENSOR,
        target=None,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.RUNNING if settings().location else dg.DefaultSensorStatus.STOPPED,
        description="Makes a partition of every video that appears in the watched location.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        wanted, instance = settings(), context.instance
        if wanted.location is None:
            return dg.SkipReason("nothing is watched: set ingest.location in operations.yaml of the store")
        look = ingest(store(), wanted, lambda video_id: add_videos(instance, [video_id]), len(instance.get_dynamic_partitions(VIDEOS)))
        context.log.info(sentence(look))
        return dg.SkipReason(sentence(look))

    return watch


def sentence(look: Look) -> str:
    """One look on one line."""
    parts = [
        _named("taken in", look.taken),
        _named("waiting", look.waiting),
        _named("in quarantine", look.quarantined),
        _named("deleted at the source, results kept", look.gone),
        f"{MAX_VIDEOS} videos are as many as one store can have as partitions; use another store" if look.full else "",
    ]
    return "; ".join(part for part in parts if part) or "nothing new"


def _named(what: str, names: list[str], shown: int = 3) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''})"


def build_retry_job() -> dg.JobDefinition:
    """Launched by hand: everything in quarantine is opened again at the next tick."""

    @dg.op(name="release_from_quarantine", required_resource_keys={"video_store"})
    def release(context) -> None:  # type: ignore[no-untyped-def]  # Dagster reads annotations of the context as objects, not as text
        released = retry(context.resources.video_store.open())
        context.add_output_metadata({"released": len(released)})
        for name in released:
            context.log.info("released %s", name)

    @dg.job(name=RETRY_JOB, description="Opens every file in quarantine again at the next tick of the sensor `ingest`.")
    def job() -> None:
        release()

    return job
