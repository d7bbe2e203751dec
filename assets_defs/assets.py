"""One asset per stage. A step checks its configuration, makes one call, and returns version, metadata and checks."""

from collections.abc import Mapping

import dagster as dg

from assets_defs.automation import rerun_on_change
from assets_defs.checks import check_results, check_specs
from assets_defs.metadata import materialization_metadata
from assets_defs.partitions import video_partitions
from resources.listener import StageListener
from resources.video_store import VideoStoreResource
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES, Stage, code_version, config_digest
from vipe_dag.stale import request_digest

CONFIG_TAG = "vipe_dag/config"
REQUEST_TAG = "vipe_dag/request"
"""What a sensor asked for: vipe_dag.stale.request_digest of the video and the fingerprints that it wanted."""
GROUP = "video"
GPU_POOL = "gpu"
"""Of steps that share an accelerator. It has no bound unless the instance sets one: `dagster instance concurrency set gpu 1`."""
GPU_STAGES = frozenset({"ba_poses", "dense_depth"})
"""Those most of whose time goes into kernels that have a GPU form."""

DESCRIPTIONS = {
    "frames": "Decoded pixels at working resolution with exact timestamps from the container.",
    "keyframes": "The frames where the camera moved enough, and the shots between cuts.",
    "intrinsics": "Camera parameters with standard deviations: given, from metadata, or estimated from the motion.",
    "ba_poses": "Bundle-adjusted camera-to-world pose of every frame, refined intrinsics, sparse inverse depth of keyframes.",
    "dense_depth": "Triangulated depth of every frame with confidence; NaN where it is unknown.",
    "aligned_depth": "Depth in one scale with the poses, stable over time.",
}


def build_assets(config: PipelineConfig) -> list[dg.AssetsDefinition]:
    """The six assets of the graph in vipe_dag.graph, computing what `config` says."""
    return [_asset(stage, config) for stage in STAGES]


def _asset(stage: Stage, config: PipelineConfig) -> dg.AssetsDefinition:
    @dg.asset(
        name=stage.name,
        deps=list(stage.deps),
        partitions_def=video_partitions,
        group_name=GROUP,
        description=DESCRIPTIONS[stage.name],
        kinds={"zarr"},
        pool=GPU_POOL if stage.name in GPU_STAGES else None,
        code_version=code_version(stage.name, config),
        automation_condition=rerun_on_change(),
        check_specs=check_specs(stage.name),
    )
    def compute(
        context: dg.AssetExecutionContext, video_store: VideoStoreResource, listener: dg.ResourceParam[StageListener]
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
        from vipe_dag.pipeline import run_stage, wanted

        refuse_other_config(context.run.tags.get(CONFIG_TAG), config)
        store, video_id = video_store.open(), context.partition_key
        refuse_other_request(context.run.tags.get(REQUEST_TAG), video_id, wanted(store, video_id, config))
        listener.started(context.log, video_id, stage.name)
        report = run_stage(
            store,
            video_id,
            stage.name,
            config,
            run_id=context.run.run_id,
            progress=lambda name, done, total: listener.progress(context.log, video_id, name, done, total),
        )
        listener.finished(context.log, report)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(report.fingerprint),
            metadata=materialization_metadata(store, report),
            check_results=check_results(stage.name, report.checks),
        )

    return compute


def refuse_other_config(requested: str | None, config: PipelineConfig) -> None:
    """Raises dagster.Failure when a run was requested under another configuration than the one these definitions were loaded with."""
    loaded = config_digest(config)
    if requested is not None and requested != loaded:
        raise dg.Failure(
            f"this run was requested for configuration {requested}, but the definitions were loaded with {loaded}: "
            "reload the code location and launch the run again",
            allow_retries=False,
        )


def refuse_other_request(requested: str | None, video_id: str, wanted: Mapping[str, str]) -> None:
    """Raises dagster.Failure when this process would compute another result than the one that was requested."""
    if requested is not None and requested != request_digest(video_id, wanted):
        raise dg.Failure(
            f"{video_id}: this run was requested for another source, configuration or version of vipe-dag than this process has: "
            "reload the code location; the next tick of the sensor requests what is wanted now",
            allow_retries=False,
        )
