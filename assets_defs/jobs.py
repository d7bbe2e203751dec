"""The job that takes a video through all six stages."""

from __future__ import annotations

import dagster as dg

from assets_defs.assets import CONFIG_TAG, GROUP
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import config_digest

PIPELINE_JOB = "video_pipeline"


def build_job(config: PipelineConfig) -> dg.UnresolvedAssetJobDefinition:
    """Every asset of the group for one video; runs carry the digest of the configuration that they were requested under."""
    return dg.define_asset_job(
        PIPELINE_JOB,
        selection=dg.AssetSelection.groups(GROUP),
        description="From the video file to aligned depth. Stages whose result is already stored return at once.",
        tags={CONFIG_TAG: config_digest(config)},
    )
