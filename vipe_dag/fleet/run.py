"""One run brings all videos of a shard up to date, one after another: what is current is skipped, and one that fails stops no other."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vipe_dag.config import PipelineConfig
from vipe_dag.errors import VipeDagError
from vipe_dag.fleet.catalogue import write_catalogue
from vipe_dag.fleet.journal import DIED, Failure, Journal, read_journal, write_journal
from vipe_dag.fleet.merged import merge
from vipe_dag.fleet.rows import read_records
from vipe_dag.fleet.shards import Shard, all_shards, parse_shard, videos_of
from vipe_dag.graph import STAGES, upstream
from vipe_dag.operations import load_operations
from vipe_dag.pipeline import run_video, settled
from vipe_dag.stale import Targets, request_digest

if TYPE_CHECKING:
    from vipe_dag.fleet.reconcile import ShardState
    from vipe_dag.store import VideoStore

Outcome = Literal["computed", "current", "failed", "given_up"]

UNREADABLE = "unreadable"
"""In place of the digest of what is wanted, where that cannot be known."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoOutcome:
    """What became of one video.

    status: `computed` (or brought back from an older generation); `current`, nothing to do; `failed` now; `given_up`, since it failed as
    often before as it may. stage: where it failed; the stages below it were not run.
    """

    video_id: str
    status: Outcome
    seconds: float
    stage: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ShardReport:
    """What a run of a shard did. outcomes: of each of its videos, in the order in which they were taken; seconds: of all of it."""

    shard: Shard
    outcomes: tuple[VideoOutcome, ...]
    seconds: float

    def counts(self) -> dict[str, int]:
        """How many videos there are, and how many of each outcome: they add up."""
        kinds = Counter(outcome.status for outcome in self.outcomes)
        return {"videos": len(self.outcomes), **{status: kinds[status] for status in get_args(Outcome)}}

    def to_json(self) -> dict[str, Any]:
        """Plain values: the element of `shards` that `vipe-dag fleet run --json` prints."""
        failed = [{"video_id": o.video_id, "status": o.status, "stage": o.stage, "reason": o.reason} for o in self.failed]
        return {"shard": self.shard.name, **self.counts(), "seconds": round(self.seconds, 3), "failures": failed}

    @property
    def failed(self) -> tuple[VideoOutcome, ...]:
        """Videos without a result as wanted, whether they were tried by this run or left alone."""
        return tuple(outcome for outcome in self.outcomes if outcome.status in ("failed", "given_up"))


def run_shard(
    store: VideoStore,
    shard: Shard,
    video_ids: Sequence[str],
    config: PipelineConfig,
    *,
    until: str = STAGES[-1].name,
    attempts: int = 3,
    retry: bool = False,
    run_id: str | None = None,
    told: Callable[[VideoOutcome], None] = lambda _: None,
) -> ShardReport:
    """Takes each of the shard's videos to `until`, those that failed before last, and writes the shard's catalogue. Names without a
    registered source are passed over.

    attempts: failed runs of one wanted state after which a video is left alone; retry: try those as well. Memory holds one video at a time.
    Killed at any moment, the next run goes on with the video that was being computed.
    """
    started = time.perf_counter()
    journal = read_journal(store, shard)
    records, unreadable = read_records(store, video_ids)
    journal.failures = {name: failure for name, failure in journal.failures.items() if name in records or name in unreadable}
    outcomes = [_not_readable(journal, video_id, reason, None if retry else attempts) for video_id, reason in unreadable.items()]
    for outcome in outcomes:
        told(outcome)
    targets = Targets().of(records, config)
    for video_id in sorted(records, key=lambda name: journal.failures[name].tries if name in journal.failures else 0):
        outcome = _run_one(store, shard, video_id, targets[video_id], config, until, journal, None if retry else attempts, run_id)
        outcomes.append(outcome)
        told(outcome)
    write_journal(store, shard, journal)
    write_catalogue(store, shard, video_ids, config)
    merge(store, [shard])
    return ShardReport(shard, tuple(outcomes), time.perf_counter() - started)


def run_shards(
    root: str, words: Sequence[str] | None, config: PipelineConfig, until: str = STAGES[-1].name, retry: bool = False
) -> Iterator[ShardReport]:
    """Runs shards of a store one after another: those that `words` name as `K/N`, else all. Raises ConfigError, StoreError."""
    from vipe_dag.store import VideoStore

    settings, store = load_operations(root).fleet, VideoStore(root)
    for shard, video_ids in _chosen(store, words, settings.shards).items():
        yield run_shard(store, shard, video_ids, config, until=until, attempts=settings.attempts, retry=retry)


def catalogue_shards(root: str, words: Sequence[str] | None, config: PipelineConfig) -> int:
    """Writes the catalogues of shards, see `run_shards`; returns the number of their videos. Raises ConfigError, StoreError."""
    from vipe_dag.store import VideoStore

    store = VideoStore(root)
    chosen = _chosen(store, words, load_operations(root).fleet.shards)
    written = sum(write_catalogue(store, shard, video_ids, config) for shard, video_ids in chosen.items())
    merge(store, list(chosen))
    return written


def states_of(root: str, config: PipelineConfig) -> list[ShardState]:
    """How far every shard of a store is. Raises ConfigError, StoreError."""
    from vipe_dag.fleet.reconcile import shard_states
    from vipe_dag.store import VideoStore

    settings, store = load_operations(root).fleet, VideoStore(root)
    return list(shard_states(store, videos_of(store, settings.shards), config, settings.attempts))


def _chosen(store: VideoStore, words: Sequence[str] | None, count: int) -> dict[Shard, list[str]]:
    shards = [parse_shard(word, count) for word in words] if words else all_shards(count)
    videos = videos_of(store, count)
    return {shard: videos[shard] for shard in shards}


def _run_one(
    store: VideoStore,
    shard: Shard,
    video_id: str,
    wanted: dict[str, str],
    config: PipelineConfig,
    until: str,
    journal: Journal,
    attempts: int | None,
    run_id: str | None,
) -> VideoOutcome:
    started, request = time.perf_counter(), request_digest(video_id, wanted)
    earlier = journal.failures.get(video_id)
    tries = earlier.tries if earlier is not None and earlier.request == request else 0
    if earlier is not None and attempts is not None and tries >= attempts:
        return VideoOutcome(video_id, "given_up", 0.0, earlier.stage, earlier.reason)
    reached: list[str] = []
    try:
        if settled(store, video_id, wanted, until):
            journal.failures.pop(video_id, None)
            return VideoOutcome(video_id, "current", time.perf_counter() - started)
        journal.failures[video_id] = Failure(request=request, tries=tries + 1, reason=DIED)
        write_journal(store, shard, journal)
        run_video(store, video_id, config, until, run_id=run_id, begun=reached.append)
    except Exception as error:  # whatever one video makes a decoder or a solver do must not stop the videos after it
        reason = _reason(video_id, error)
        stage = reached[-1] if reached else upstream(until)[0]
        journal.failures[video_id] = Failure(request=request, tries=tries + 1, reason=reason, stage=stage)
        write_journal(store, shard, journal)
        return VideoOutcome(video_id, "failed", time.perf_counter() - started, stage, reason)
    except BaseException:  # asked to end: no fault of this video
        _restore(store, shard, journal, video_id, earlier)
        raise
    journal.failures.pop(video_id)
    return VideoOutcome(video_id, "computed", time.perf_counter() - started)


def _not_readable(journal: Journal, video_id: str, reason: str, attempts: int | None) -> VideoOutcome:
    """A video whose source record is damaged: it fails, and is given up, as others."""
    earlier = journal.failures.get(video_id)
    tries = earlier.tries if earlier is not None and earlier.request == UNREADABLE else 0
    if attempts is not None and tries >= attempts:
        return VideoOutcome(video_id, "given_up", 0.0, None, reason)
    journal.failures[video_id] = Failure(request=UNREADABLE, tries=tries + 1, reason=reason)
    return VideoOutcome(video_id, "failed", 0.0, None, reason)


def _restore(store: VideoStore, shard: Shard, journal: Journal, video_id: str, earlier: Failure | None) -> None:
    journal.failures.pop(video_id, None)
    if earlier is not None:
        journal.failures[video_id] = earlier
    write_journal(store, shard, journal)


def _reason(video_id: str, error: Exception) -> str:
    """One line; a defect is named as one, and its traceback goes to the log."""
    if isinstance(error, VipeDagError):
        return " ".join(str(error).split())
    _LOG.exception("%s: not foreseen", video_id)
    return " ".join(f"{type(error).__name__}: {error}; this is a defect of vipe-dag".split())
