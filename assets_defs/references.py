"""Poses against the reference that people registered for a video: a check of its own, requested when reference or poses are new."""

import json
import warnings
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

import dagster as dg

from assets_defs.instance import GONE, stored_versions
from assets_defs.partitions import video_partitions
from resources.video_store import VideoStoreResource
from vipe_dag.errors import VipeDagError

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

REFERENCE = "reference"
JUDGED = "ba_poses"
REFERENCES_JOB = "references"
REFERENCES_SENSOR = "references"
REFERENCE_CHECK = dg.AssetCheckKey(dg.AssetKey(JUDGED), REFERENCE)
SECONDS_BETWEEN_TICKS = 60
MOST_REQUESTS = 50
"""Runs that one tick asks for; the others wait for the next."""


def build_reference_check() -> dg.AssetChecksDefinition:
    """A warning when the trajectory is off, or the reference cannot be compared with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # checks by partition are new in Dagster; what is used of them is tested

        @dg.asset_check(
            asset=JUDGED,
            name=REFERENCE,
            partitions_def=video_partitions,
            description="The trajectory agrees with the reference that is registered for the video, if there is one.",
        )
        def check(context: dg.AssetCheckExecutionContext, video_store: VideoStoreResource) -> dg.AssetCheckResult:
            return judge(video_store.open(), context.partition_key)

    return check


def judge(store: "VideoStore", video_id: str) -> dg.AssetCheckResult:
    """The outcome for one video, with every error of its trajectory as metadata."""
    from vipe_dag.evaluate import evaluate_video
    from vipe_dag.verdicts import of_reference

    def result(passed: bool, description: str, numbers: dict[str, float]) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=description, metadata=numbers)

    if store.reference(video_id) is None:
        return result(True, "no reference is registered: vipe-dag evaluate VIDEO_ID --reference FILE --register", {})
    try:
        found = evaluate_video(store, video_id, temporal=False)
    except VipeDagError as error:
        return result(False, str(error), {})
    passed, message = of_reference(found.trajectory)
    return result(passed, message, {name: value for name, value in found.trajectory.to_dict().items() if isinstance(value, float)})


def build_references_job() -> "dg.UnresolvedAssetJobDefinition":
    """The check of one video."""
    return dg.define_asset_job(
        REFERENCES_JOB,
        selection=dg.AssetSelection.checks(REFERENCE_CHECK),
        description="Compares the poses of one video with its registered reference.",
    )


def build_references_sensor(job: "dg.UnresolvedAssetJobDefinition", store: Callable[[], "VideoStore"]) -> dg.SensorDefinition:
    """Requests the check once for each state of (reference, poses). The cursor holds the states that were requested."""

    @dg.sensor(
        name=REFERENCES_SENSOR,
        job=job,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Checks a video when a reference is registered for it, and again when its poses change.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        asked = states(context.instance, store())
        before: dict[str, str] = json.loads(context.cursor or "{}")
        fresh = [video_id for video_id, state in asked.items() if before.get(video_id) != state]
        now = fresh[:MOST_REQUESTS]
        requests = [dg.RunRequest(f"{id_}:{asked[id_]}", partition_key=id_, asset_check_keys=[REFERENCE_CHECK]) for id_ in now]
        kept = {video_id: state for video_id, state in before.items() if video_id in asked}
        said = f"{len(asked)} videos have a reference and poses, {len(fresh)} of them not yet compared"
        context.log.info(said)
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else said,
            cursor=json.dumps({**kept, **{video_id: asked[video_id] for video_id in now}}),
        )

    return watch


def states(instance: dg.DagsterInstance, store: "VideoStore") -> dict[str, str]:
    """The videos that have a reference and poses, each with a digest that changes with either."""
    references = store.referenced()
    if not references:
        return {}
    poses = stored_versions(instance, JUDGED)
    return {
        video_id: blake2b(f"{word} {poses[video_id]}".encode(), digest_size=8).hexdigest()
        for video_id, word in references.items()
        if poses.get(video_id) not in (None, GONE)
    }
