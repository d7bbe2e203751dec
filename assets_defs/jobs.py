"""The job that takes a video through all six stages, and the one that checks how far each stage is for all videos."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from assets_defs.assets import CONFIG_TAG, GROUP
from assets_defs.checks import check_specs
from assets_defs.coverage import COVERAGE
from assets_defs.references import REFERENCE_CHECK
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES, config_digest

PIPELINE_JOB = "video_pipeline"
COVERAGE_JOB = "coverage"
_ABOUT_ALL_VIDEOS = dg.AssetSelection.checks(*[dg.AssetCheckKey(dg.AssetKey(stage.name), COVERAGE) for stage in STAGES])


def build_job(config: PipelineConfig) -> dg.UnresolvedAssetJobDefinition:
    """Every asset of the group for one video; runs carry the digest of the configuration that they were requested under."""
    return dg.define_asset_job(
        PIPELINE_JOB,
        selection=dg.AssetSelection.groups(GROUP) - _ABOUT_ALL_VIDEOS - dg.AssetSelection.checks(REFERENCE_CHECK),
        description="From the video file to aligned depth. Stages whose result is already stored return at once.",
        tags={CONFIG_TAG: config_digest(config)},
    )


def build_coverage_job() -> dg.UnresolvedAssetJobDefinition:
    """The checks that look at all videos at once."""
    return dg.define_asset_job(COVERAGE_JOB, selection=_ABOUT_ALL_VIDEOS, description="How far each stage is for all videos.")


def checks_of(stages: Iterable[str]) -> list[dg.AssetCheckKey]:
    """The checks that these stages report about one video. A run over some assets has to name them, or it looks at all videos as well."""
    return [spec.key for stage in stages for spec in check_specs(stage)]
