"""Very many videos: a partition is a shard, one run takes all its videos through all stages, and one sensor asks for shards that have work.

What became of single videos is in the shard's catalogue (vipe_dag.fleet); Dagster's book holds counts.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.assets import CONFIG_TAG, GPU_POOL, REQUEST_TAG, refuse_other_config
from assets_defs.instance import close_lost_runs, unfinished_runs
from assets_defs.rerun import APPROVED_TAG, ATTEMPT_TAG, PARTITION_TAG, PRIORITY_TAG, REDO_PRIORITY, failures, runs_of
from assets_defs.words import counted
from resources.video_store import VideoStoreResource
from vipe_dag.config import PipelineConfig
from vipe_dag.fleet.shards import Shard, all_shards, videos_of
from vipe_dag.graph import config_digest
from vipe_dag.operations import OPERATIONS_FILE, Operations, RerunSettings
from vipe_dag.stale import change_digest

if TYPE_CHECKING:
    from vipe_dag.fleet.reconcile import ShardState
    from vipe_dag.fleet.run import ShardReport, VideoOutcome
    from vipe_dag.store import VideoStore

GROUP = "fleet"
SHARD = "shard"
SHARD_JOB = "fleet_shards"
SHARD_SENSOR = "rerun_shards"
FAILED = "videos_failed"
SECONDS_BETWEEN_LINES = 60.0
SHOWN_FAILURES = 20
"""In the metadata of a materialization; the catalogue has all of them."""


def build_fleet(
    config: PipelineConfig,
    store: Callable[[], "VideoStore"],
    present: Callable[[], PipelineConfig],
    settings: Callable[[], Operations],
) -> dg.Definitions:
    """The asset, its job and its sensor. config: what the asset computes; present, settings: read at each tick."""
    job = build_shard_job(config)
    return dg.Definitions(
        assets=[build_shard_asset(config, settings().fleet.shards, settings)],
        jobs=[job],
        sensors=[build_shard_sensor(job, store, present, settings)],
    )


def shard_partitions(count: int) -> dg.StaticPartitionsDefinition:
    """One partition per shard."""
    return dg.StaticPartitionsDefinition([shard.name for shard in all_shards(count)])


def build_shard_asset(config: PipelineConfig, shards: int, settings: Callable[[], Operations]) -> dg.AssetsDefinition:
    """The asset `shard`: every video of a shard, through all stages."""

    @dg.asset(
        name=SHARD,
        partitions_def=shard_partitions(shards),
        group_name=GROUP,
        description="All videos of a shard, through all stages, with their catalogue: one run, resumed video by video.",
        kinds={"zarr", "parquet"},
        pool=GPU_POOL,
        code_version=change_digest(config),
        check_specs=[dg.AssetCheckSpec(FAILED, asset=SHARD, description="Every video of the shard has its results.")],
    )
    def shard(context: dg.AssetExecutionContext, video_store: VideoStoreResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
        from vipe_dag.fleet.run import run_shard

        refuse_other_config(context.run.tags.get(CONFIG_TAG), config)
        store, chosen = video_store.open(), _shard_of(context.partition_key, shards)
        report = run_shard(
            store,
            chosen,
            videos_of(store, shards)[chosen],
            config,
            attempts=settings().fleet.attempts,
            run_id=context.run.run_id,
            told=_Teller(context.log).told,
        )
        failed = len(report.failed)
        check = dg.AssetCheckResult(
            passed=not failed,
            check_name=FAILED,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{failed} of {len(report.outcomes)} videos have no result as wanted",
        )
        return dg.MaterializeResult(metadata=shard_metadata(report), check_results=[check])

    return shard


class _Teller:
    """Tells the log of a run what failed, and now and then how far it is: a line is a row of Dagster's book, so not one per video."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._taken, self._last = log, 0, time.monotonic()

    def told(self, outcome: "VideoOutcome") -> None:
        self._taken += 1
        if outcome.status == "failed":
            self._log.warning(_line(outcome))
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._log.info("%d videos taken", self._taken)


def shard_metadata(report: "ShardReport") -> Mapping[str, dg.MetadataValue]:
    """Counts that add up, and the first failures with their reasons."""
    counts = {name: dg.MetadataValue.int(count) for name, count in report.counts().items()}
    lines = [f"- {_line(outcome)}" for outcome in report.failed[:SHOWN_FAILURES]]
    more = len(report.failed) - SHOWN_FAILURES
    failures = {"failures": dg.MetadataValue.md("\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])]))} if lines else {}
    return {**counts, "seconds": dg.MetadataValue.float(round(report.seconds, 3)), **failures}


def _line(outcome: "VideoOutcome") -> str:
    where = f" in {outcome.stage}" if outcome.stage else ""
    return f"{outcome.video_id}: {outcome.status}{where}: {outcome.reason}"


def _shard_of(name: str, count: int) -> Shard:
    return next(shard for shard in all_shards(count) if shard.name == name)


def build_shard_job(config: PipelineConfig) -> "dg.UnresolvedAssetJobDefinition":
    """One shard; runs carry the digest of the configuration that they were requested under."""
    return dg.define_asset_job(
        SHARD_JOB,
        selection=dg.AssetSelection.assets(SHARD),
        description="All videos of a shard. Those that are as wanted are skipped.",
        tags={CONFIG_TAG: config_digest(config)},
    )


def build_shard_sensor(
    job: "dg.UnresolvedAssetJobDefinition",
    store: Callable[[], "VideoStore"],
    config: Callable[[], PipelineConfig],
    settings: Callable[[], Operations],
) -> dg.SensorDefinition:
    """Requests a run of each shard that has work, by its catalogue; settings are those of `rerun`. The cursor is what it said last."""

    @dg.sensor(
        name=SHARD_SENSOR,
        job=job,
        minimum_interval_seconds=settings().rerun.every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings().rerun.enabled else dg.DefaultSensorStatus.STOPPED,
        description="Requests the shards with videos that are new, or whose stored result is not what the configuration asks for.",
    )
    def rerun_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from vipe_dag.fleet.reconcile import shard_states

        close_lost_runs(context.instance)
        present, wanted, opened = settings(), config(), store()
        videos = videos_of(opened, present.fleet.shards)
        states = list(shard_states(opened, videos, wanted, present.fleet.attempts))
        requests, said = requests_for(context.instance, states, wanted, present.rerun)
        if said != context.cursor:
            context.log.info(said)
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else said, cursor=said)

    return rerun_shards


def requests_for(
    instance: dg.DagsterInstance, states: Sequence["ShardState"], config: PipelineConfig, settings: RerunSettings
) -> tuple[list[dg.RunRequest], str]:
    """Runs of the shards that are due, as far as the queue has room and the change is approved; and a sentence."""
    unfinished, change = unfinished_runs(instance), change_digest(config)
    busy = {run.tags.get(PARTITION_TAG) for run in unfinished}
    due = [state for state in states if state.due and state.shard.name not in busy]
    stale = sum(state.stale for state in due)
    parts = []
    if stale > settings.approval_above and settings.approved != change:
        parts.append(
            f"this change would compute {stale} videos anew, more than {settings.approval_above}: "
            f"to approve it, write `approved: '{change}'` under `rerun` in {OPERATIONS_FILE} of the store"
        )
        due = [state for state in due if not state.stale]
    earlier, room = runs_of(instance, [state.request for state in due]), settings.queue - len(unfinished)
    requests: list[dg.RunRequest] = []
    later, given_up = [], []
    for state in due:
        runs = earlier.get(state.request, [])
        failed = failures(runs)
        if failed >= settings.attempts:
            given_up.append(state.shard.name)
        elif len(requests) >= room:
            later.append(state.shard.name)
        else:
            requests.append(_request(state, config, len(runs), failed + 1, change if settings.approved == change else None))
    parts += [
        counted("shards requested", [str(request.partition_key) for request in requests]),
        counted("shards waiting for or in a run", sorted(name for name in busy if name)),
        counted("shards left alone after failed runs", given_up),
        counted("shards for a later tick", later),
    ]
    said = "; ".join(part for part in parts if part)
    return requests, said or f"all {sum(state.videos for state in states)} videos are what the configuration asks for, or given up"


def _request(state: "ShardState", config: PipelineConfig, number: int, attempt: int, approved: str | None) -> dg.RunRequest:
    tags = {CONFIG_TAG: config_digest(config), REQUEST_TAG: state.request, ATTEMPT_TAG: str(attempt)}
    approval = {APPROVED_TAG: approved} if approved and state.stale else {}
    priority = {PRIORITY_TAG: REDO_PRIORITY} if state.stale else {}
    return dg.RunRequest(run_key=f"{state.request}:{number}", partition_key=state.shard.name, tags={**tags, **approval, **priority})
