"""Poses against the references that people registered: one check over all of them, run when a reference or the poses below one are new."""

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets_defs.instance import GONE, stored_versions
from vipe_dag.errors import VipeDagError

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

REFERENCE = "reference"
JUDGED = "ba_poses"
REFERENCES_JOB = "references"
REFERENCES_SENSOR = "references"
REFERENCE_CHECK = dg.AssetCheckKey(dg.AssetKey(JUDGED), REFERENCE)
SECONDS_BETWEEN_TICKS = 60
OUTCOMES = "reference_checks.json"
"""Note of the store: per video the state that was judged last, and the outcome."""
MOST_NAMED = 20
"""Videos that disagree and are named in the outcome."""


def build_reference_check(store: Callable[[], "VideoStore"]) -> dg.AssetChecksDefinition:
    """A warning while the trajectory of some video is off its reference, or cannot be compared with it."""

    @dg.asset_check(asset=JUDGED, name=REFERENCE, description="Trajectories agree with the references that are registered for videos.")
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        opened = store()
        outcomes = judge(opened, states(context.instance, opened))
        wrong = {video_id: found for video_id, found in outcomes.items() if not found["passed"]}
        said = [f"{len(outcomes) - len(wrong)} of {len(outcomes)} videos with a reference agree with it"]
        said += [f"{video_id}: {found['message']}" for video_id, found in list(wrong.items())[:MOST_NAMED]]
        return dg.AssetCheckResult(
            passed=not wrong,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(said),
            metadata={"compared": len(outcomes), "off": len(wrong), "videos": dg.MetadataValue.json(list(outcomes.values()))},
        )

    return check


def judge(store: "VideoStore", wanted: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The outcome for every video of `wanted`, which names its state; only states that were not judged before are compared."""
    note = store.note(OUTCOMES)
    before = json.loads(note) if note else {}
    found = {
        video_id: before[video_id] if before.get(video_id, {}).get("state") == state else {"state": state, **_outcome(store, video_id)}
        for video_id, state in wanted.items()
    }
    if found != before:
        store.write_note(OUTCOMES, json.dumps(found, indent=1).encode())
    return found


def _outcome(store: "VideoStore", video_id: str) -> dict[str, Any]:
    from vipe_dag.evaluate import evaluate_video
    from vipe_dag.verdicts import of_reference

    try:
        errors = evaluate_video(store, video_id, temporal=False).trajectory
    except VipeDagError as error:
        return {"video_id": video_id, "passed": False, "message": str(error)}
    passed, message = of_reference(errors)
    return {"video_id": video_id, "passed": passed, "message": message, "errors": errors.to_dict()}


def states(instance: dg.DagsterInstance, store: "VideoStore") -> dict[str, str]:
    """The videos that have a reference and poses, each with a digest that changes with either."""
    references = store.referenced()
    if not references:
        return {}
    poses = stored_versions(instance, JUDGED)
    return {video_id: _digest(f"{word} {poses[video_id]}") for video_id, word in references.items() if poses.get(video_id, GONE) != GONE}


def build_references_job() -> "dg.UnresolvedAssetJobDefinition":
    """The check alone."""
    return dg.define_asset_job(
        REFERENCES_JOB,
        selection=dg.AssetSelection.checks(REFERENCE_CHECK),
        description="Compares poses with registered references, where either is new.",
    )


def build_references_sensor(job: "dg.UnresolvedAssetJobDefinition", store: Callable[[], "VideoStore"]) -> dg.SensorDefinition:
    """Requests the check when the references or the poses below them are others than at the last request, which the cursor names."""

    @dg.sensor(
        name=REFERENCES_SENSOR,
        job=job,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Compares a video with its reference when one is registered, and again when its poses change.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        found = states(context.instance, store())
        state = _digest(json.dumps(found)) if found else None
        if state is None or state == context.cursor:
            return dg.SensorResult(skip_reason=f"{len(found)} videos have a reference and poses, all compared")
        return dg.SensorResult(run_requests=[dg.RunRequest(state, asset_check_keys=[REFERENCE_CHECK])], cursor=state)

    return watch


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
