"""Rematerialisation: exactly what changed is requested, once, and going back costs nothing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import quick_stages
from assets_defs.automation import AUTOMATION_SENSOR
from assets_defs.coverage import COVERAGE
from assets_defs.definitions import build_definitions
from assets_defs.instance import DATA_VERSION_TAG, PROCESS_TAG, adopt, process_tags, stored_versions
from assets_defs.jobs import COVERAGE_JOB
from assets_defs.rerun import APPROVED_TAG, ATTEMPT_TAG, RERUN_SENSOR
from platform_worlds import ALL, World, clip_in, world
from vipe_dag.config import load_config
from vipe_dag.errors import ConfigError
from vipe_dag.operations import load_operations
from vipe_dag.pipeline import run_video, wanted
from vipe_dag.stale import change_digest

pytestmark = pytest.mark.usefixtures("hurried")

BELOW_POSES = ["ba_poses", "dense_depth", "aligned_depth"]
CHANGED = {"ba_poses": {"grid_columns": 20}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_in(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def place(tmp_path: Path, calls: Counter[str]) -> Iterator[World]:
    with world(tmp_path / "store") as place:
        yield place


def computed(place: World, clip: Path, *video_ids: str) -> None:
    """Videos that are what the default configuration asks for, computed without Dagster and entered in the book."""
    place.add(clip, *video_ids)
    for video_id in video_ids:
        run_video(place.store, video_id, load_config())
    adopt(place.instance, place.store)


def break_poses(monkeypatch: pytest.MonkeyPatch, calls: Counter[str]) -> None:
    """From now on no run gets past ba_poses."""

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is gone")

    quick_stages.replace(monkeypatch, "ba_poses", "solve", broken, calls)


def test_a_new_video_is_requested_whole_and_then_left_in_peace(place: World, clip: Path, calls: Counter[str]) -> None:
    place.add(clip, "a")
    assert place.tick() == {"a": ALL}
    assert calls == dict.fromkeys(ALL, 1)
    assert place.tick() == {}
    assert place.said == "all 1 videos are what the configuration asks for"


def test_a_change_of_the_poses_over_six_videos_is_eighteen_materializations_and_going_back_is_none(
    place: World, clip: Path, calls: Counter[str]
) -> None:
    videos = list("abcdef")
    computed(place, clip, *videos)
    before = place.materializations()
    calls.clear()
    place.configure(**CHANGED)
    assert place.tick() == {video: BELOW_POSES for video in videos}
    assert calls == dict.fromkeys(BELOW_POSES, 6)
    assert place.materializations() - before == dict.fromkeys(BELOW_POSES, 6)
    assert place.tick() == {}

    calls.clear()
    place.configure()
    assert place.tick() == {}
    assert "6 brought back from the store (a, b, c and 3 more)" in place.said
    assert not calls
    for video in videos:
        targets = wanted(place.store, video, load_config())
        assert {name: pointer.fingerprint for name in ALL if (pointer := place.store.current(video, name))} == targets
    assert place.tick() == {}
    assert place.said == "all 6 videos are what the configuration asks for"


def test_what_was_brought_back_is_in_the_book_with_its_checks(place: World, clip: Path) -> None:
    computed(place, clip, "a")
    place.configure(**CHANGED)
    place.tick()
    place.configure()
    place.look()
    fingerprint = wanted(place.store, "a", load_config())["ba_poses"]
    assert stored_versions(place.instance, "ba_poses") == {"a": fingerprint}
    record = place.instance.get_latest_materialization_event(dg.AssetKey("ba_poses"))
    assert record is not None
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["status"].value == "brought back"


def test_only_the_videos_that_need_it_are_requested(place: World, clip: Path) -> None:
    computed(place, clip, "a")
    place.add(clip, "b")
    assert place.tick() == {"b": ALL}


def test_a_request_names_configuration_state_and_attempt(place: World, clip: Path) -> None:
    place.add(clip, "a")
    (request,) = place.look()
    assert request.tags[ATTEMPT_TAG] == "1"
    assert request.run_key == f"{request.tags['vipe_dag/request']}:0"


def test_a_video_whose_run_is_not_over_is_not_requested_again(place: World, clip: Path) -> None:
    place.add(clip, "a")
    (request,) = place.look()
    waiting = {**request.tags, "dagster/partition": "a"}
    job = build_definitions(root=str(place.root)).resolve_job_def("video_pipeline")
    place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED, tags=waiting)
    assert place.look() == []
    assert "1 waiting for or in a run (a)" in place.said


def test_the_queue_bounds_a_tick_and_the_order_is_that_of_arrival(place: World, clip: Path) -> None:
    place.operate(rerun={"queue": 2})
    place.add(clip, "z", "m", "a")
    assert list(place.tick()) == ["z", "m"]
    assert list(place.tick()) == ["a"]


def test_a_failed_run_is_tried_again_as_often_as_set_and_then_left_alone(
    place: World, clip: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_poses(monkeypatch, calls)
    place.operate(rerun={"attempts": 2})
    place.add(clip, "a")
    assert [place.tick(), place.tick(), place.tick()] == [{"a": ALL}, {"a": BELOW_POSES}, {}]
    assert "1 left alone after failed runs (a)" in place.said


def test_a_new_configuration_gives_a_video_new_attempts(
    place: World, clip: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_poses(monkeypatch, calls)
    place.operate(rerun={"attempts": 1})
    place.add(clip, "a")
    assert [place.tick(), place.tick()] == [{"a": ALL}, {}]
    quick_stages.replace(monkeypatch, "ba_poses", "solve", quick_stages.solve, calls)
    place.configure(**CHANGED)
    assert place.tick() == {"a": BELOW_POSES}


def test_a_run_whose_process_died_is_closed_and_tried_again(place: World, clip: Path) -> None:
    place.add(clip, "a")
    (request,) = place.look()
    gone = process_tags()[PROCESS_TAG].rpartition(":")[0] + ":1"
    job = build_definitions(root=str(place.root)).resolve_job_def("video_pipeline")
    tags = {**request.tags, "dagster/partition": "a", PROCESS_TAG: gone}
    place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    (again,) = place.look()
    assert again.tags[ATTEMPT_TAG] == "2"
    assert again.run_key != request.run_key


def test_nothing_is_built_on_a_result_that_failed_a_blocking_check(
    place: World, clip: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(*arguments: Any, **named: Any) -> Any:
        return dataclasses.replace(quick_stages.solve(*arguments, **named), residual_px_median=50.0)

    quick_stages.replace(monkeypatch, "ba_poses", "solve", wild, calls)
    place.add(clip, "a")
    assert [place.tick(), place.tick()] == [{"a": ALL}, {}]
    assert "1 stopped by a failed check (a)" in place.said
    assert calls["dense_depth"] == 0


def test_a_large_change_waits_for_approval_of_just_that_change(place: World, clip: Path) -> None:
    computed(place, clip, "a", "b")
    place.configure(**CHANGED)
    place.operate(rerun={"approval_above": 1})
    change = change_digest(load_config(overrides=["ba_poses.grid_columns=20"]))
    assert place.tick() == {}
    assert f"this change would compute 2 videos anew, more than 1: to approve it, write `approved: '{change}'`" in place.said
    place.operate(rerun={"approval_above": 1, "approved": change})
    requests = place.look()
    assert [request.tags[APPROVED_TAG] for request in requests] == [change, change]
    place.configure(ba_poses={"grid_columns": 16})
    assert place.look() == []


def test_the_checks_of_coverage_say_what_a_large_change_waits_for_and_what_came_of_it(place: World, clip: Path) -> None:
    def told(stage: str) -> list[tuple[bool, str]]:
        """Outcomes so far, newest first."""
        key = dg.AssetCheckKey(dg.AssetKey(stage), COVERAGE)
        events = [record.event for record in place.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)]
        found = [event.asset_check_evaluation for event in events if event and event.asset_check_evaluation]
        return [(evaluation.passed, evaluation.description or "") for evaluation in found]

    computed(place, clip, "a", "b")
    place.configure(**CHANGED)
    place.operate(rerun={"approval_above": 1})
    place.tick()
    ((passed, said),) = told("ba_poses")
    assert not passed
    assert re.fullmatch(r"0 of 2 videos are current, 2 are stale, 0 missing; .* write `approved: '\w{8}'` .*", said)
    assert told("frames") == [(True, "2 of 2 videos are current, 0 are stale, 0 missing")]
    place.operate(rerun={"approval_above": 1, "approved": change_digest(load_config(file=place.root / "config.yaml"))})
    place.tick()
    assert told("ba_poses")[0] == (False, "0 of 2 videos are current, 2 are stale, 0 missing")
    for _ in range(3):
        place.tick()
    assert told("ba_poses")[0] == (True, "2 of 2 videos are current, 0 are stale, 0 missing")
    assert len(told("ba_poses")) == 3


def test_new_videos_do_not_wait_for_the_approval_of_others(place: World, clip: Path) -> None:
    computed(place, clip, "a", "b")
    place.add(clip, "new")
    place.configure(**CHANGED)
    place.operate(rerun={"approval_above": 1})
    assert list(place.tick()) == ["new"]


def test_going_back_needs_no_approval(place: World, clip: Path) -> None:
    computed(place, clip, "a", "b")
    place.configure(**CHANGED)
    place.tick()
    place.operate(rerun={"approval_above": 0})
    place.configure()
    assert place.tick() == {}
    assert "2 brought back from the store (a, b)" in place.said


def test_a_run_for_another_state_than_its_process_has_is_refused(place: World, clip: Path, calls: Counter[str]) -> None:
    place.add(clip, "a")
    (request,) = place.look()
    source = place.store.source("a")
    place.store.register(source.model_copy(update={"stride": 2}))
    assert not place.run(request).success
    assert not calls


def test_a_result_that_vanished_from_the_store_is_computed_again_after_reconciliation(place: World, clip: Path) -> None:
    computed(place, clip, "a")
    (place.root / "a" / "aligned_depth" / "_current.json").unlink()
    for generation in (place.root / "a" / "aligned_depth").iterdir():
        (generation / "zarr.json").unlink()
    adopt(place.instance, place.store)
    assert place.tick() == {"a": ["aligned_depth"]}


def test_coming_back_to_a_state_that_was_collected_computes_it_again(place: World, clip: Path) -> None:
    computed(place, clip, "a")
    place.configure(**CHANGED)
    assert place.tick() == {"a": BELOW_POSES}
    place.configure()
    assert place.tick() == {}
    place.store.collect(timedelta(seconds=-1), keep=0)
    place.configure(**CHANGED)
    assert place.tick() == {"a": BELOW_POSES}


def test_coverage_counts_videos_at_the_current_fingerprint(place: World, clip: Path) -> None:
    computed(place, clip, "a", "b")
    place.add(clip, "c")
    place.configure(**CHANGED)
    requests = place.look()
    place.run(next(request for request in requests if request.partition_key == "a"))
    job = build_definitions(root=str(place.root)).resolve_job_def(COVERAGE_JOB)
    result = job.execute_in_process(instance=place.instance)
    found = {check.asset_key.to_user_string(): check for check in result.get_asset_check_evaluations() if check.check_name == COVERAGE}
    shares = {name: round(float(str(check.metadata["share"].value)), 3) for name, check in found.items()}
    assert shares == {name: 0.333 if name in BELOW_POSES else 0.667 for name in ALL}
    assert found["ba_poses"].description == "1 of 3 videos are current, 1 are stale, 1 missing"


def test_the_book_is_read_by_one_query_that_knows_the_latest_version_of_each_video(place: World) -> None:
    for video, version in (("a", "1"), ("b", "1"), ("a", "2")):
        event = dg.AssetMaterialization("frames", partition=video, tags={DATA_VERSION_TAG: version})
        place.instance.report_runless_asset_event(event)
    assert stored_versions(place.instance, "frames") == {"a": "2", "b": "1"}


def test_the_conditions_on_the_assets_ask_for_new_videos_in_one_run(place: World, clip: Path) -> None:
    definitions = build_definitions(root=str(place.root))
    first = dg.evaluate_automation_conditions(definitions, place.instance)
    place.add(clip, "a")
    second = dg.evaluate_automation_conditions(definitions, place.instance, cursor=first.cursor)
    requested = {name for name in ALL if second.get_num_requested(dg.AssetKey(name))}
    assert requested == set(ALL)


def test_the_conditions_on_the_assets_follow_a_changed_value_down_the_graph(place: World, clip: Path) -> None:
    computed(place, clip, "a")
    before = dg.evaluate_automation_conditions(build_definitions(root=str(place.root)), place.instance)
    place.configure(**CHANGED)
    after = dg.evaluate_automation_conditions(build_definitions(root=str(place.root)), place.instance, cursor=before.cursor)
    assert [name for name in ALL if after.get_num_requested(dg.AssetKey(name))] == BELOW_POSES


def test_sensors_start_stopped_unless_the_store_says_otherwise(place: World) -> None:
    def status() -> dict[str, dg.DefaultSensorStatus]:
        definitions = build_definitions(root=str(place.root))
        return {name: definitions.resolve_sensor_def(name).default_status for name in (RERUN_SENSOR, AUTOMATION_SENSOR)}

    assert set(status().values()) == {dg.DefaultSensorStatus.STOPPED}
    place.operate(rerun={"enabled": True})
    assert status()[RERUN_SENSOR] == dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rerun: {atempts: 2}", "there is no setting rerun.atempts; did you mean rerun.attempts?"),
        ("rerun: {attempts: 0}", "rerun.attempts: Input should be greater than or equal to 1, found 0"),
        ("- 1", "expected sections rerun, ingest, maintenance, exports, fleet, found tuple"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "operations.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_operations(str(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'operations.yaml'}: {said}"
