"""Per stage the share of videos whose stored result is the wanted one: Dagster itself never shows a partitioned asset as stale."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.instance import stored_versions
from assets_defs.partitions import VIDEOS
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES
from vipe_dag.ingest import read_ledger
from vipe_dag.stale import Targets, coverage

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

COVERAGE = "coverage"


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
        current, stale, missing = coverage(wanted, {stage: stored_versions(context.instance, stage)}, stage)
        return dg.AssetCheckResult(
            passed=current == len(wanted),
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{current} of {len(wanted)} videos are current, {stale} are stale, {missing} missing",
            metadata={"share": current / len(wanted) if wanted else 1.0, "current": current, "stale": stale, "missing": missing},
        )

    return check
