"""Sources to assets through Dagster, one after another in this process: the program behind `vipe-dag run` and the demo.

A program on top of both packages, not a part of the domain: it alone in vipe_dag knows assets_defs, and imports it inside functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vipe_dag.checks import failed_blocking
from vipe_dag.config import PipelineConfig
from vipe_dag.errors import ConfigError, VipeDagError
from vipe_dag.graph import STAGES
from vipe_dag.pipeline import StageReport, current_reports, failure_sentence
from vipe_dag.placement import dagster_home
from vipe_dag.registration import register_source
from vipe_dag.urls import public

if TYPE_CHECKING:
    import dagster as dg

    from assets_defs.failures import StepFailure
    from vipe_dag.store import VideoStore
    from vipe_dag.video import Clip

VideoStatus = Literal["computed", "current", "failed"]


class Display(Protocol):
    """Shows a run while it goes on."""

    def source_started(self, source: str) -> None: ...

    def stage_started(self, video_id: str, stage: str) -> None: ...

    def stage_progress(self, video_id: str, stage: str, done: int, total: int | None) -> None: ...

    def stage_finished(self, report: StageReport) -> None: ...

    def video_finished(self, result: VideoResult) -> None: ...

    def muted(self) -> AbstractContextManager[None]:
        """While inside, what libraries write to standard output and error is kept off the screen."""


class Silent:
    """Shows nothing."""

    def source_started(self, source: str) -> None:
        pass

    def stage_started(self, video_id: str, stage: str) -> None:
        pass

    def stage_progress(self, video_id: str, stage: str, done: int, total: int | None) -> None:
        pass

    def stage_finished(self, report: StageReport) -> None:
        pass

    def video_finished(self, result: VideoResult) -> None:
        pass

    def muted(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Request:
    """What to do with every source: how far, under which id (one source only), which part, with which calibration file.

    log: let Dagster write its log to standard error.
    """

    config: PipelineConfig
    until: str = STAGES[-1].name
    video_id: str | None = None
    clip: Clip | None = None
    intrinsics: str | None = None
    log: bool = False


@dataclass(frozen=True)
class VideoResult:
    """What became of one source.

    video_id is None when the source could not even be read. status: `computed` (or brought back from an older generation), `current`
    (nothing to do) or `failed`; error says why, trace is its traceback where there is one. reports: of the stages that were reached.
    """

    source: str
    video_id: str | None
    status: VideoStatus
    seconds: float
    reports: tuple[StageReport, ...] = ()
    error: str | None = None
    trace: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values: the element of `videos` that `vipe-dag run --json` prints."""
        return {
            "video_id": self.video_id,
            "source": self.source,
            "status": self.status,
            "error": self.error,
            "seconds": {report.stage: round(report.seconds, 3) for report in self.reports},
            "stages": {
                report.stage: {
                    "status": report.status,
                    "fingerprint": report.fingerprint,
                    "compute_seconds": round(report.compute_seconds, 3),
                    "peak_rss_mb": round(report.peak_rss_mb, 1),
                    "flags": list(report.flags),
                }
                for report in self.reports
            },
            "flags": sorted({flag for report in self.reports for flag in report.flags}),
            "checks": [{"asset": report.stage, **check.to_json()} for report in self.reports for check in report.checks],
        }


def run_sources(root: str, sources: Sequence[str], request: Request, display: Display | None = None) -> Iterator[VideoResult]:
    """Takes each video of `sources` (files, folders, URLs) to `request.until`; one that fails does not stop the next.

    Nothing is computed, and Dagster not even loaded, where the store has the wanted fingerprints. Raises ConfigError for one video_id
    with several videos.
    """
    from vipe_dag.store import VideoStore
    from vipe_dag.video import expand_sources

    display = display or Silent()
    store = VideoStore(root)
    with ExitStack() as stack:
        book = _Book(root, display, stack)
        for text in sources:
            try:
                uris = expand_sources([text])
            except VipeDagError as error:
                yield _shown(display, VideoResult(public(text), None, "failed", 0.0, error=str(error)))
                continue
            if request.video_id is not None and len(uris) + len(sources) > 2:
                raise ConfigError(f"--video-id {request.video_id}: names one video, but the sources hold {max(len(uris), len(sources))}")
            for uri in uris:
                display.source_started(uri)
                yield _shown(display, _run_source(store, book, uri, request, display))


def run_videos(root: str, video_ids: Sequence[str], request: Request, display: Display | None = None) -> Iterator[VideoResult]:
    """Takes videos that the store has to `request.until`, all that were not superseded when none is named; one that fails does not stop
    the next. Sources are not looked at unless frames have to be decoded.
    """
    from vipe_dag.ingest import read_ledger
    from vipe_dag.store import VideoStore

    display = display or Silent()
    store = VideoStore(root)
    superseded = read_ledger(store).superseded
    with ExitStack() as stack:
        book = _Book(root, display, stack)
        for video_id in video_ids or [name for name in store.videos() if name not in superseded]:
            display.source_started(video_id)
            yield _shown(display, _run_video(store, book, video_id, request, display))


def prepare_book(root: str) -> int:
    """Opens Dagster's book of a store for the UI, enters what it lacks, closes runs whose process died; returns the number of videos.

    Where partitions are shards, the book knows of no single video.
    """
    from assets_defs.instance import adopt, book_errors, close_lost_runs, open_instance
    from vipe_dag.operations import load_operations
    from vipe_dag.store import VideoStore

    store, home = VideoStore(root), dagster_home(root)
    with book_errors(home), open_instance(home) as instance:
        close_lost_runs(instance, timedelta(0))  # whoever started a run before this is gone, or answers
        return len(store.names()) if load_operations(root).fleet.enabled else adopt(instance, store)


def _run_source(store: VideoStore, book: _Book, uri: str, request: Request, display: Display) -> VideoResult:
    started = time.perf_counter()
    try:
        record = register_source(store, uri, request.clip, request.intrinsics, request.video_id)
    except VipeDagError as error:
        return VideoResult(uri, None, "failed", time.perf_counter() - started, error=str(error))
    return _bring_up(store, book, uri, record.video_id, request, display, started)


def _bring_up(store: VideoStore, book: _Book, uri: str, video_id: str, request: Request, display: Display, started: float) -> VideoResult:
    """Takes a registered video to `request.until`, unless it is there."""
    reports = current_reports(store, video_id, request.config, request.until)
    if reports is not None:
        return VideoResult(uri, video_id, "current", time.perf_counter() - started, reports)
    listener = _Listener(display)
    failure = book.materialize(video_id, request, listener)
    seconds, reports = time.perf_counter() - started, tuple(listener.reports)
    for report in reports:
        for check in failed_blocking(report.checks):
            return VideoResult(uri, video_id, "failed", seconds, reports, failure_sentence(video_id, report.stage, check))
    if failure is not None:
        return VideoResult(uri, video_id, "failed", seconds, reports, failure.sentence(video_id), failure.trace)
    return VideoResult(uri, video_id, "computed", seconds, reports)


def _run_video(store: VideoStore, book: _Book, video_id: str, request: Request, display: Display) -> VideoResult:
    started = time.perf_counter()
    try:
        uri = store.source(video_id).uri
        return _bring_up(store, book, uri, video_id, request, display, started)
    except VipeDagError as error:
        return VideoResult(video_id, video_id, "failed", time.perf_counter() - started, error=str(error))


def _shown(display: Display, result: VideoResult) -> VideoResult:
    display.video_finished(result)
    return result


class _Listener:
    """Passes what the steps of a run tell to the display, and keeps their reports."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.reports: list[StageReport] = []

    def started(self, log: logging.Logger, video_id: str, stage: str) -> None:
        self._display.stage_started(video_id, stage)

    def progress(self, log: logging.Logger, video_id: str, stage: str, done: int, total: int | None) -> None:
        self._display.stage_progress(video_id, stage, done, total)

    def finished(self, log: logging.Logger, report: StageReport) -> None:
        self.reports.append(report)
        self._display.stage_finished(report)


class _Book:
    """Dagster's book of a store, opened when something has to be written in it. The caller's stack closes it."""

    def __init__(self, root: str, display: Display, stack: ExitStack) -> None:
        self._root, self._display, self._stack = root, display, stack
        self._instance: dg.DagsterInstance | None = None

    def materialize(self, video_id: str, request: Request, listener: _Listener) -> StepFailure | None:
        """Runs the job for one partition; see assets_defs.launch. Raises ConfigError, StoreError for a book that is out of reach."""
        from assets_defs.instance import add_videos, book_errors, close_lost_runs, open_instance, release_slots
        from assets_defs.launch import materialize_video

        home = dagster_home(self._root)
        with self._display.muted(), book_errors(home):
            if self._instance is None:
                self._instance = self._stack.enter_context(open_instance(home))
                close_lost_runs(self._instance)
            add_videos(self._instance, [video_id])
            log = request.log
            failure = materialize_video(self._instance, self._root, request.config, video_id, request.until, listener, quiet=not log)
            if failure is not None:
                release_slots(self._instance)
            return failure
