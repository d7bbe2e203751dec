"""One stage of one video against a store, which Dagster calls, and the plain loop over all of them for use without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vipe_dag.checks import Check, Outcome, failed_blocking
from vipe_dag.config import PipelineConfig
from vipe_dag.errors import EstimationError, StoreError
from vipe_dag.graph import STAGES, SourceIdentity, fingerprints, stage, upstream
from vipe_dag.memory import PeakMemory

if TYPE_CHECKING:
    from vipe_dag.stage_runs import Progress
    from vipe_dag.store import VideoStore

Status = Literal["computed", "current", "flipped"]
State = Literal["current", "stored", "stale", "missing"]

REPORT = "report"
"""Attribute of a generation that keeps what was measured while it was computed."""
NO_RUN = "python"
"""Run id of results that no Dagster run computed."""


@dataclass(frozen=True)
class StageReport:
    """What running one stage of one video did.

    status: `computed`; `current`, the store already pointed to this fingerprint; `flipped`, an older generation had it.
    seconds: spent by this call. compute_seconds, peak_rss_mb (largest resident size of the process, MB): of the computation.
    counts, numbers (units in their names), flags and checks describe the result.
    """

    video_id: str
    stage: str
    status: Status
    fingerprint: str
    seconds: float
    compute_seconds: float
    peak_rss_mb: float
    counts: Mapping[str, int]
    numbers: Mapping[str, float]
    flags: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def frames_per_second(self) -> float:
        """Of the computation; not a number for a stage that does not go through the frames."""
        frames = self.counts.get("frames")
        return frames / self.compute_seconds if frames and self.compute_seconds > 0 else float("nan")


def wanted(store: VideoStore, video_id: str, config: PipelineConfig) -> dict[str, str]:
    """Per stage the fingerprint that this source and configuration ask for. Raises StoreError for a video that is not registered."""
    record = store.source(video_id)
    source = SourceIdentity(record.digest, record.start, record.end, record.stride, record.given_intrinsics_digest)
    return fingerprints(config, source)


def states(store: VideoStore, video_id: str, config: PipelineConfig) -> dict[str, State]:
    """Per stage: `current`; `stored`, an older generation has the wanted fingerprint; `stale`, only others exist; `missing`."""
    found: dict[str, State] = {}
    for name, fingerprint in wanted(store, video_id, config).items():
        pointer = store.current(video_id, name)
        if pointer is not None and pointer.fingerprint == fingerprint:
            found[name] = "current"
        elif store.find(video_id, name, fingerprint) is not None:
            found[name] = "stored"
        else:
            found[name] = "missing" if pointer is None else "stale"
    return found


def run_stage(
    store: VideoStore, video_id: str, stage_name: str, config: PipelineConfig, run_id: str | None = None, progress: Progress | None = None
) -> StageReport:
    """Brings one stage of a registered video to the wanted fingerprint, computing only when no complete generation has it.

    progress(stage, done, total) is called now and then. Raises StoreError when an input is not at its wanted fingerprint,
    SourceError when the source cannot be decoded, EstimationError when well-formed inputs cannot be estimated.
    """
    started = time.perf_counter()
    targets = wanted(store, video_id, config)
    _require_inputs(store, video_id, stage_name, targets)
    fingerprint = targets[stage_name]
    if _is_current(store, video_id, stage_name, fingerprint):
        return _stored_report(store, video_id, stage_name, "current", started)
    if store.point(video_id, stage_name, fingerprint) is not None:
        return _stored_report(store, video_id, stage_name, "flipped", started)
    return _compute(store, video_id, stage_name, config, fingerprint, run_id, progress, started)


def current_reports(
    store: VideoStore, video_id: str, config: PipelineConfig, until: str = STAGES[-1].name
) -> tuple[StageReport, ...] | None:
    """The reports of all stages up to `until` when each is current and passed its blocking checks; None when something is left to do."""
    if not settled(store, video_id, wanted(store, video_id, config), until):
        return None
    return tuple(_stored_report(store, video_id, name, "current", time.perf_counter()) for name in upstream(until))


def settled(store: VideoStore, video_id: str, targets: Mapping[str, str], until: str = STAGES[-1].name) -> bool:
    """Whether each stage up to `until` is current and passed its blocking checks. Reads pointers only. targets: see `wanted`."""
    pointers = (store.current(video_id, name) for name in upstream(until))
    return all(
        pointer is not None
        and pointer.fingerprint == targets[pointer.asset]
        and not failed_blocking([Check.from_json(check) for check in pointer.checks])
        for pointer in pointers
    )


def run_video(
    store: VideoStore,
    video_id: str,
    config: PipelineConfig,
    until: str = STAGES[-1].name,
    progress: Progress | None = None,
    run_id: str | None = None,
    begun: Callable[[str], None] = lambda _: None,
) -> tuple[StageReport, ...]:
    """All stages that `until` needs, and it, in order, in this process. begun: told the name of each stage before it runs.

    Raises EstimationError when a blocking check fails, else as `run_stage`.
    """
    reports: list[StageReport] = []
    for name in upstream(until):
        begun(name)
        report = run_stage(store, video_id, name, config, run_id=run_id, progress=progress)
        failed = failed_blocking(report.checks)
        if failed:
            raise EstimationError(failure_sentence(video_id, name, failed[0]))
        reports.append(report)
    return tuple(reports)


def failure_sentence(video_id: str, stage_name: str, check: Check) -> str:
    """What is said of a blocking check that failed."""
    return f"{video_id}: {stage_name}: check {check.name} failed: {check.message}; the stages below were not run"


def _compute(
    store: VideoStore,
    video_id: str,
    name: str,
    config: PipelineConfig,
    fingerprint: str,
    run_id: str | None,
    progress: Progress | None,
    started: float,
) -> StageReport:
    from vipe_dag.stage_runs import RUNNERS, StageRun

    with PeakMemory() as memory, ExitStack() as stack:
        run = StageRun(store, store.source(video_id), name, config, fingerprint, run_id or NO_RUN, progress, stack)
        outcome = RUNNERS[name](run)
        writer = run.opened
        measured = {"seconds": time.perf_counter() - started, "peak_rss_mb": memory.peak_mb}
        writer.attrs({"flags": list(outcome.flags), REPORT: {**measured, "counts": outcome.counts, "numbers": outcome.numbers}})
        writer.checks(check.to_json() for check in outcome.checks)
    return _report(video_id, name, "computed", fingerprint, time.perf_counter() - started, measured, outcome)


def _require_inputs(store: VideoStore, video_id: str, name: str, targets: Mapping[str, str]) -> None:
    behind = [dep for dep in stage(name).deps if not _is_current(store, video_id, dep, targets[dep])]
    if behind:
        raise StoreError(
            f"{video_id}: {name} needs {', '.join(behind)} as the present source and configuration ask for, but the store has "
            f"{'none' if store.current(video_id, behind[0]) is None else 'another version'}; run the video until {name}"
        )


def _is_current(store: VideoStore, video_id: str, name: str, fingerprint: str) -> bool:
    pointer = store.current(video_id, name)
    return pointer is not None and pointer.fingerprint == fingerprint


def _stored_report(store: VideoStore, video_id: str, name: str, status: Status, started: float) -> StageReport:
    pointer = store.current(video_id, name)
    assert pointer is not None
    attributes = store.group(video_id, name).attrs.asdict()
    measured: dict[str, Any] = attributes.get(REPORT, {})  # type: ignore[assignment]
    outcome = Outcome(
        counts={key: int(value) for key, value in measured.get("counts", {}).items()},
        numbers={key: float("nan") if value is None else float(value) for key, value in measured.get("numbers", {}).items()},
        flags=tuple(attributes.get("flags", ())),  # type: ignore[arg-type]
        checks=tuple(Check.from_json(check) for check in pointer.checks),
    )
    return _report(video_id, name, status, pointer.fingerprint, time.perf_counter() - started, measured, outcome)


def _report(
    video_id: str, name: str, status: Status, fingerprint: str, seconds: float, measured: Mapping[str, Any], outcome: Outcome
) -> StageReport:
    return StageReport(
        video_id=video_id,
        stage=name,
        status=status,
        fingerprint=fingerprint,
        seconds=seconds,
        compute_seconds=float(measured.get("seconds", 0.0)),
        peak_rss_mb=float(measured.get("peak_rss_mb", 0.0)),
        counts=outcome.counts,
        numbers=outcome.numbers,
        flags=outcome.flags,
        checks=outcome.checks,
    )
