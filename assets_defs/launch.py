"""Materializes one video through Dagster inside the calling process: what `vipe-dag run` does for each source."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import dagster as dg

from assets_defs.assets import CONFIG_TAG
from assets_defs.definitions import build_definitions
from assets_defs.failures import StepFailure, first_failure
from assets_defs.instance import kept_open, process_tags
from assets_defs.jobs import PIPELINE_JOB, checks_of
from resources.listener import StageListener
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import config_digest, upstream


def _console(level: str) -> dict[str, Any]:
    return {"loggers": {"console": {"config": {"log_level": level}}}}


QUIET, VERBOSE = _console("CRITICAL"), _console("DEBUG")


def materialize_video(
    instance: dg.DagsterInstance, root: str, config: PipelineConfig, video_id: str, until: str, listener: StageListener, quiet: bool = True
) -> StepFailure | None:
    """Runs the job over `until` and all it needs for one partition; returns the failure of a step, None when every step succeeded.

    The video must be registered in the store and be a partition of the instance. A failed blocking check stops the stages below and is
    told to the listener, in the report of its stage, not returned. Raises KeyboardInterrupt when the process was asked to end.
    """
    job = build_definitions(root=root, config=config, listener=listener).resolve_job_def(PIPELINE_JOB)
    stages = upstream(until)
    chosen = job.get_subset(
        asset_selection=frozenset(dg.AssetKey(name) for name in stages), asset_check_selection=frozenset(checks_of(stages))
    )
    run_id = str(uuid4())
    with kept_open(instance, run_id):
        result = chosen.execute_in_process(
            instance=instance,
            partition_key=video_id,
            tags={CONFIG_TAG: config_digest(config), **process_tags()},
            run_config=QUIET if quiet else VERBOSE,
            run_id=run_id,
            raise_on_error=False,
        )
    failure = first_failure(result.all_events)
    if failure is not None and failure.interrupted:
        raise KeyboardInterrupt
    return failure
