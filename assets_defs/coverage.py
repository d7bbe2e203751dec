"""Per stage the share of videos whose stored result is the wanted one: Dagster itself never shows a partitioned asset as stale."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.instance import report_checks, stored_versions
from assets_defs.partitions import VIDEOS
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES
from vipe_dag.ingest import read_ledger
from vipe_dag.stale import Targets, Versions, coverage

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

COVERAGE = "coverage"
Wanted = Mapping[str, Mapping[str, str]]
"""Per video the fingerprint wanted of each stage."""


def build_coverage_checks(store: Callable[[], "VideoStore"], config: Callable[[], PipelineConfig]) -> list[dg.AssetChecksDefinition]:
    """One check per stage; a warning while some video is behind."""
    return [_check(stage.name, store, config) for stage in STAGES]


def _check(stage: str, store: Callable[[], "VideoStore"], config: Callable[[], PipelineConfig]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=stage, name=COVERAGE, description="Share of videos at the fingerprint that the configuration asks for.")
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        opened = store()
        replaced = read_ledger(opened).superseded
        videos = [video_id for video_id in context.instance.get_dynamic_partitions(VIDEOS) if video_id not in replaced]
        wanted = Targets().of(opened.sources(videos), config())
        return _result(stage, wanted, {stage: stored_versions(context.instance, stage)})

    return check


def report_coverage(instance: dg.DagsterInstance, wanted: Wanted, stored: Versions, remark: str) -> None:
    """Enters the outcome of the check of every stage without a run; remark: what else is said of stages that are behind."""
    report_checks(instance, [_result(stage.name, wanted, stored, remark) for stage in STAGES])


def _result(stage: str, wanted: Wanted, stored: Versions, remark: str = "") -> dg.AssetCheckResult:
    current, stale, missing = coverage(wanted, stored, stage)
    passed = current == len(wanted)
    found = f"{current} of {len(wanted)} videos are current, {stale} are stale, {missing} missing"
    return dg.AssetCheckResult(
        asset_key=stage,
        check_name=COVERAGE,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=found if passed or not remark else f"{found}; {remark}",
        metadata={"share": current / len(wanted) if wanted else 1.0, "current": current, "stale": stale, "missing": missing},
    )
