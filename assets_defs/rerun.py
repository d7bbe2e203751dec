"""The sensor that asks for runs: whatever is stored and is not what the configuration asks for, stage by stage.

It keeps nothing between ticks that it needs. What is stored is in Dagster's book, what is wanted in configuration and source records,
what was tried in the runs themselves; so a lost cursor, a daemon that was away and a crash in the middle of a tick change nothing. The
cursor is what a person was told of a large change.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.assets import CONFIG_TAG, REQUEST_TAG
from assets_defs.coverage import Wanted, report_coverage
from assets_defs.instance import close_lost_runs, enter, stored_versions, unfinished_runs
from assets_defs.jobs import checks_of
from assets_defs.partitions import VIDEOS
from assets_defs.words import counted
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES, config_digest
from vipe_dag.ingest import read_ledger
from vipe_dag.operations import OPERATIONS_FILE, RerunSettings
from vipe_dag.stale import Difference, Targets, Versions, bring_back, change_digest, differences, without_blocked

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

RERUN_SENSOR = "rerun"
ATTEMPT_TAG = "vipe_dag/attempt"
APPROVED_TAG = "vipe_dag/approved"
STAGES_TAG = "vipe_dag/stages"
"""The stages that a run was requested for, since the list of runs in the UI names only the job."""
PRIORITY_TAG = "dagster/priority"
PARTITION_TAG = "dagster/partition"
REDO_PRIORITY = "-10"
"""Videos computed anew wait behind new ones."""
STORE_SECONDS = 20.0
"""Of a tick, spent looking into the store; the next tick goes on."""
QUERY_VALUES = 100
NOTHING_WAITS = "nothing waits for approval"
"""A cursor that is empty would be taken for one that stays as it was."""


@dataclass
class Tick:
    """What one look at all videos came to. The lists hold video ids; wanted and stored are fingerprints as the tick found them."""

    videos: int
    requests: list[dg.RunRequest] = field(default_factory=list)
    brought_back: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    unregistered: list[str] = field(default_factory=list)
    sourceless: list[str] = field(default_factory=list)
    change: str = ""
    unapproved: str = ""
    wanted: Wanted = field(default_factory=dict)
    stored: Versions = field(default_factory=dict)

    def state(self, before: str) -> str:
        """What became of a large change, in words: the cursor of the sensor, which the UI shows.

        before: the cursor of the tick before.
        """
        if self.unapproved:
            return f"waiting for approval of {self.change}"
        going_on = self.requests or self.brought_back or self.running or self.later
        return "computing what waited for approval" if before != NOTHING_WAITS and going_on else NOTHING_WAITS

    def sentence(self) -> str:
        """All that is worth saying, on one line."""
        requested = [str(request.partition_key) for request in self.requests]
        parts = [
            counted("requested", requested),
            counted("brought back from the store", self.brought_back),
            counted("waiting for or in a run", self.running),
            counted("stopped by a failed check", self.blocked),
            counted("left alone after failed runs", self.given_up),
            counted("for a later tick", self.later),
            counted("without a source in the store", self.unregistered),
            counted("to be decoded again, but deleted at the source", self.sourceless),
            self.unapproved,
        ]
        said = "; ".join(part for part in parts if part)
        return said or f"all {self.videos} videos are what the configuration asks for"


class Reconciler:
    """Compares stored with wanted. Holds caches only, so that a tick over videos that stay the same is short."""

    def __init__(self) -> None:
        self._targets = Targets()
        self._not_stored: dict[str, str] = {}

    def tick(self, instance: dg.DagsterInstance, store: VideoStore, config: PipelineConfig, settings: RerunSettings) -> Tick:
        """Brings back what older generations hold, and requests runs for what has to be computed, as far as the queue has room."""
        close_lost_runs(instance)
        ledger = read_ledger(store)
        videos = [video_id for video_id in instance.get_dynamic_partitions(VIDEOS) if video_id not in ledger.superseded]
        with _uncollected():
            records = store.sources(videos)
            wanted = self._targets.of({video_id: records[video_id] for video_id in videos if video_id in records}, config)
            stored = {stage.name: stored_versions(instance, stage.name) for stage in STAGES}
            found = differences(wanted, stored)
        unregistered = [video_id for video_id in videos if video_id not in records]
        tick = Tick(len(videos), unregistered=unregistered, change=change_digest(config), wanted=wanted, stored=stored)
        tick.sourceless = [entry.video_id for entry in found if "frames" in entry.stale and entry.video_id in ledger.gone]
        found = [entry for entry in found if entry.video_id not in tick.sourceless]
        unfinished = unfinished_runs(instance)
        busy = {run.tags.get(PARTITION_TAG) for run in unfinished}
        tick.running = [entry.video_id for entry in found if entry.video_id in busy]
        to_compute = list(self._to_compute(instance, store, [entry for entry in found if entry.video_id not in busy], tick))
        approved = self._approved(to_compute, tick, settings)
        self._request(instance, approved, tick, config, settings, settings.queue - len(unfinished))
        return tick

    def _to_compute(self, instance: dg.DagsterInstance, store: VideoStore, found: Sequence[Difference], tick: Tick) -> Iterator[Difference]:
        """Those of which something has to be computed; what the store has already becomes current on the way."""
        until = time.monotonic() + STORE_SECONDS
        for entry in found:
            if time.monotonic() > until:
                tick.later.append(entry.video_id)
                continue
            possible = without_blocked(store, entry)
            if not possible.stale:
                tick.blocked.append(entry.video_id)
            elif self._brought_back(instance, store, possible):
                tick.brought_back.append(entry.video_id)
            else:
                yield possible

    def _brought_back(self, instance: dg.DagsterInstance, store: VideoStore, entry: Difference) -> bool:
        if self._not_stored.get(entry.video_id) == entry.request:
            return False
        if bring_back(store, entry):
            for stage in entry.stale:
                pointer = store.current(entry.video_id, stage)
                if pointer is not None:
                    enter(instance, store, pointer, "brought back")
            return True
        self._not_stored[entry.video_id] = entry.request
        return False

    def _approved(self, found: Sequence[Difference], tick: Tick, settings: RerunSettings) -> Sequence[Difference]:
        """All of them, or only new videos where so many others would be computed anew that a person has to say so first."""
        redone = sum(entry.redo for entry in found)
        if redone <= settings.approval_above or settings.approved == tick.change:
            return found
        tick.unapproved = (
            f"this change would compute {redone} videos anew, more than {settings.approval_above}: "
            f"to approve it, write `approved: '{tick.change}'` under `rerun` in {OPERATIONS_FILE} of the store"
        )
        return [entry for entry in found if not entry.redo]

    def _request(
        self,
        instance: dg.DagsterInstance,
        found: Sequence[Difference],
        tick: Tick,
        config: PipelineConfig,
        settings: RerunSettings,
        room: int,
    ) -> None:
        for first in range(0, len(found), QUERY_VALUES):
            group = found[first : first + QUERY_VALUES]
            if len(tick.requests) >= room:
                tick.later += [entry.video_id for entry in group]
                continue
            earlier = runs_of(instance, [entry.request for entry in group])
            for entry in group:
                runs = earlier.get(entry.request, [])
                failed = failures(runs)
                if failed >= settings.attempts:
                    tick.given_up.append(entry.video_id)
                elif len(tick.requests) >= room:
                    tick.later.append(entry.video_id)
                else:
                    approval = {APPROVED_TAG: tick.change} if entry.redo and settings.approved == tick.change else {}
                    tick.requests.append(_run_request(entry, config, len(runs), failed + 1, approval))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles among what is made inside, a million small objects that are all in use: that takes an eighth of a tick."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def runs_of(instance: dg.DagsterInstance, requests: Sequence[str]) -> dict[str, list[dg.DagsterRun]]:
    """Runs that were requested for these states before, newest first, by the digest of the state."""
    earlier: dict[str, list[dg.DagsterRun]] = {}
    for first in range(0, len(requests), QUERY_VALUES):
        for run in instance.get_runs(filters=dg.RunsFilter(tags={REQUEST_TAG: list(requests[first : first + QUERY_VALUES])})):
            earlier.setdefault(run.tags[REQUEST_TAG], []).append(run)
    return earlier


def failures(runs: Sequence[dg.DagsterRun]) -> int:
    """Runs that ended without success since the last one that had it."""
    count = 0
    for run in runs:
        if run.status == dg.DagsterRunStatus.SUCCESS:
            break
        count += 1
    return count


def _run_request(entry: Difference, config: PipelineConfig, number: int, attempt: int, approval: Mapping[str, str]) -> dg.RunRequest:
    """number: of runs before it for this state, which makes the key one that no other run has."""
    tags = {CONFIG_TAG: config_digest(config), REQUEST_TAG: entry.request, ATTEMPT_TAG: str(attempt), **approval}
    tags[STAGES_TAG] = " ".join(entry.stale)
    return dg.RunRequest(
        run_key=f"{entry.request}:{number}",
        partition_key=entry.video_id,
        asset_selection=[dg.AssetKey(name) for name in entry.stale],
        asset_check_keys=checks_of(entry.stale),
        tags={**tags, PRIORITY_TAG: REDO_PRIORITY} if entry.redo else tags,
    )


def build_rerun_sensor(
    job: dg.UnresolvedAssetJobDefinition,
    store: Callable[[], VideoStore],
    config: Callable[[], PipelineConfig],
    settings: Callable[[], RerunSettings],
) -> dg.SensorDefinition:
    """The sensor. Configuration and settings are read at each tick, so a change needs no reload of the code location.

    A change that waits for approval makes nothing happen, so the checks `coverage` say what it waits for, and later what came of it.
    """
    reconciler = Reconciler()

    @dg.sensor(
        name=RERUN_SENSOR,
        job=job,
        minimum_interval_seconds=settings().every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings().enabled else dg.DefaultSensorStatus.STOPPED,
        description="Requests exactly the stages whose stored result is not what the configuration asks for.",
    )
    def rerun(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        tick = reconciler.tick(context.instance, store(), config(), settings())
        before = context.cursor or NOTHING_WAITS
        state = tick.state(before)
        if state != before:
            report_coverage(context.instance, tick.wanted, tick.stored, tick.unapproved)
        if state != before or tick.requests or tick.brought_back:
            context.log.info(tick.sentence())
        return dg.SensorResult(run_requests=tick.requests, skip_reason=None if tick.requests else tick.sentence(), cursor=state)

    return rerun
