"""Everything Dagster loads. `defs` is built once here, from the environment; the CLI and the tests build their own."""

from __future__ import annotations

import dagster as dg

from assets_defs.alerts import build_alerts
from assets_defs.assets import GROUP, build_assets
from assets_defs.automation import build_automation_sensor
from assets_defs.coverage import build_coverage_checks
from assets_defs.exports import build_exports
from assets_defs.fleet import build_fleet
from assets_defs.ingestion import build_ingest_sensor
from assets_defs.instance import TaggingVideoStore
from assets_defs.jobs import build_coverage_job, build_job
from assets_defs.maintenance import build_schedules, maintenance, reconcile, retry_quarantined
from assets_defs.references import build_reference_check, build_references_job, build_references_sensor
from assets_defs.rerun import build_rerun_sensor
from resources.listener import LogListener, StageListener
from vipe_dag.config import PipelineConfig
from vipe_dag.operations import load_operations
from vipe_dag.placement import configuration, default_root


def build_definitions(
    *, root: str | None = None, config: PipelineConfig | None = None, listener: StageListener | None = None
) -> dg.Definitions:
    """Assets, checks, jobs, sensors, schedules and resources of one store.

    root: of the store; None takes $VIPE_DAG_ROOT. config: None reads $VIPE_DAG_CONFIG or `<root>/config.yaml`, and sensors read it again at
    each tick. listener: None logs. Steps of a run share one process, so models and libraries load once. Raises ConfigError for a file
    that is not valid.
    """
    place = root or default_root()
    loaded = config or configuration(place)
    store = TaggingVideoStore(root=place)
    job = build_job(loaded)

    def present() -> PipelineConfig:
        return config or configuration(place)

    coverage_job, references_job = build_coverage_job(), build_references_job()
    operations = load_operations(place)
    by_video = [
        build_rerun_sensor(job, store.open, present, lambda: load_operations(place).rerun),
        build_automation_sensor(GROUP),
    ]
    definitions = dg.Definitions(
        assets=[*build_assets(loaded), *build_exports(operations.exports)],
        asset_checks=[*build_coverage_checks(store.open, present), build_reference_check(store.open)],
        jobs=[job, coverage_job, references_job, reconcile, maintenance, retry_quarantined],
        sensors=[
            build_ingest_sensor(store.open, lambda: load_operations(place)),
            build_references_sensor(references_job, store.open),
            *build_alerts(),
            *([] if operations.fleet.enabled else by_video),
        ],
        schedules=build_schedules(operations.maintenance.enabled, coverage_job),
        resources={"video_store": store, "listener": listener or LogListener()},
        executor=dg.in_process_executor,
    )
    if not operations.fleet.enabled:
        return definitions
    return dg.Definitions.merge(definitions, build_fleet(loaded, store.open, present, lambda: load_operations(place)))


defs = build_definitions()
