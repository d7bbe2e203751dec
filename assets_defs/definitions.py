"""Everything Dagster loads. `defs` is built once here, from the environment; the CLI and the tests build their own."""

from __future__ import annotations

import dagster as dg

from assets_defs.assets import build_assets
from assets_defs.jobs import build_job
from resources.listener import LogListener, StageListener
from resources.video_store import VideoStoreResource
from vipe_dag.config import PipelineConfig
from vipe_dag.placement import configuration, default_root


def build_definitions(
    *, root: str | None = None, config: PipelineConfig | None = None, listener: StageListener | None = None
) -> dg.Definitions:
    """Assets, checks, job and resources of one store.

    root: of the store; None takes $VIPE_DAG_ROOT. config: None reads $VIPE_DAG_CONFIG or `<root>/config.yaml`. listener: None logs.
    Steps of a run share one process, so models and libraries load once. Raises ConfigError for a file that is not valid.
    """
    root = root or default_root()
    config = config or configuration(root)
    return dg.Definitions(
        assets=build_assets(config),
        jobs=[build_job(config)],
        resources={"video_store": VideoStoreResource(root=root), "listener": listener or LogListener()},
        executor=dg.in_process_executor,
    )


defs = build_definitions()
