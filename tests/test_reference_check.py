"""The check of poses against a registered reference: what it says, and that it is requested once per state of reference and poses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from assets_defs.definitions import build_definitions
from assets_defs.instance import add_videos, adopt
from assets_defs.jobs import PIPELINE_JOB
from assets_defs.launch import QUIET
from assets_defs.references import REFERENCE, REFERENCE_CHECK, REFERENCES_JOB, REFERENCES_SENSOR, judge
from platform_worlds import hurry
from stored_clip import VIDEO, second_generation, store_clip
from vipe_dag import synthetic
from vipe_dag.export import tum
from vipe_dag.graph import STAGES
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return synthetic.scene("room", n_frames=8, width=64, height=36, supersample=1)


@pytest.fixture
def store(tmp_path: Path, clip: SyntheticClip, monkeypatch: pytest.MonkeyPatch) -> VideoStore:
    hurry(monkeypatch)
    made = VideoStore(tmp_path / "store")
    store_clip(made, clip)
    return made


@pytest.fixture
def instance(store: VideoStore) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        add_videos(made, [VIDEO])
        adopt(made, store)
        yield made


def register(store: VideoStore, clip: SyntheticClip, tmp_path: Path, cam2world: np.ndarray) -> None:
    file = tum.write(tmp_path / "reference.txt", clip.time[-len(cam2world) :], cam2world, overwrite=True)
    store.register_reference(VIDEO, file.read_bytes())


def wrong_path(clip: SyntheticClip) -> np.ndarray:
    wrong = clip.cam2world.copy()
    wrong[::2, :3, 3] += 0.3
    return wrong


def requests(instance: dg.DagsterInstance, store: VideoStore, cursor: str | None = None) -> tuple[list[dg.RunRequest], str | None]:
    definitions = build_definitions(root=store.root)
    context = dg.build_sensor_context(instance=instance, definitions=definitions, sensor_name=REFERENCES_SENSOR, cursor=cursor)
    found = definitions.resolve_sensor_def(REFERENCES_SENSOR)(context)
    assert isinstance(found, dg.SensorResult)
    return list(found.run_requests or []), found.cursor


def outcome(store: VideoStore) -> dict[str, Any]:
    return judge(store, {VIDEO: "now"})[VIDEO]


def test_poses_that_agree_pass_with_every_error(store: VideoStore, clip: SyntheticClip, tmp_path: Path) -> None:
    register(store, clip, tmp_path, clip.cam2world)
    found = outcome(store)
    assert found["passed"]
    assert "8 of 8 reference poses compared" in found["message"]
    assert found["errors"]["ate_rmse"] == pytest.approx(0, abs=1e-6)


def test_poses_that_do_not_agree_fail(store: VideoStore, clip: SyntheticClip, tmp_path: Path) -> None:
    register(store, clip, tmp_path, wrong_path(clip))
    found = outcome(store)
    assert not found["passed"]
    assert "% of the path" in found["message"]


def test_a_reference_of_another_video_fails_with_the_reason(store: VideoStore, clip: SyntheticClip, tmp_path: Path) -> None:
    store.register_reference(VIDEO, tum.write(tmp_path / "late.txt", clip.time + 900, clip.cam2world).read_bytes())
    found = outcome(store)
    assert not found["passed"]
    assert "no pose of the reference" in found["message"]


def test_a_still_reference_is_judged_by_rotation(store: VideoStore, clip: SyntheticClip, tmp_path: Path) -> None:
    register(store, clip, tmp_path, np.tile(np.eye(4), (len(clip), 1, 1)))
    assert "the reference stands still" in outcome(store)["message"]


def test_a_state_is_compared_once(store: VideoStore, clip: SyntheticClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(store, clip, tmp_path, clip.cam2world)
    first = outcome(store)
    monkeypatch.setattr("vipe_dag.evaluate.evaluate_video", lambda *_, **__: pytest.fail("was compared again"))
    assert outcome(store) == first


def test_it_is_requested_when_a_reference_comes_and_when_reference_or_poses_change(
    instance: dg.DagsterInstance, store: VideoStore, clip: SyntheticClip, tmp_path: Path
) -> None:
    assert requests(instance, store)[0] == []
    register(store, clip, tmp_path, clip.cam2world)
    (first,), cursor = requests(instance, store)
    assert first.asset_check_keys == [REFERENCE_CHECK]
    assert requests(instance, store, cursor)[0] == []

    register(store, clip, tmp_path, wrong_path(clip)[1:])
    (second,), cursor = requests(instance, store, cursor)
    second_generation(store, clip.cam2world)
    adopt(instance, store)
    (third,), cursor = requests(instance, store, cursor)
    assert requests(instance, store, cursor)[0] == []
    assert len({first.run_key, second.run_key, third.run_key}) == 3


def test_the_requested_run_enters_the_outcome_with_the_videos_that_are_off(
    instance: dg.DagsterInstance, store: VideoStore, clip: SyntheticClip, tmp_path: Path
) -> None:
    register(store, clip, tmp_path, wrong_path(clip))
    job = build_definitions(root=store.root).resolve_job_def(REFERENCES_JOB)
    result = job.execute_in_process(instance=instance, run_config=QUIET)
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed, evaluation.severity) == (REFERENCE, False, dg.AssetCheckSeverity.WARN)
    assert f"0 of 1 videos with a reference agree with it; {VIDEO}: ATE" in str(evaluation.description)


def test_without_references_it_passes(instance: dg.DagsterInstance, store: VideoStore) -> None:
    result = build_definitions(root=store.root).resolve_job_def(REFERENCES_JOB).execute_in_process(instance=instance, run_config=QUIET)
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed


def test_a_run_of_the_pipeline_does_not_look_at_references(store: VideoStore) -> None:
    definitions = build_definitions(root=store.root)
    steps = {name: {node.name for node in definitions.resolve_job_def(name).graph.node_defs} for name in (PIPELINE_JOB, REFERENCES_JOB)}
    assert steps[REFERENCES_JOB] == {"ba_poses_reference"}
    assert steps[PIPELINE_JOB] == {stage.name for stage in STAGES}
