"""Shards as partitions of Dagster: one run per shard, counts in its metadata, and a sensor that asks for what has work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import platform_worlds
from assets_defs.assets import CONFIG_TAG, REQUEST_TAG
from assets_defs.definitions import build_definitions
from assets_defs.fleet import FAILED, SHARD, SHARD_JOB, SHARD_SENSOR
from assets_defs.maintenance import RECONCILE_JOB, prune
from assets_defs.partitions import VIDEOS
from assets_defs.rerun import APPROVED_TAG, RERUN_SENSOR
from fleet_worlds import CORRUPT, GOOD, register, register_corrupt
from platform_worlds import World, world
from vipe_dag.config import load_config
from vipe_dag.fleet.shards import members
from vipe_dag.operations import MaintenanceSettings
from vipe_dag.stale import change_digest

pytestmark = pytest.mark.usefixtures("hurried")

SHARDS = 2
FLEET = {"enabled": True, "shards": SHARDS, "attempts": 2}
NAMES = [f"{number}-of-{SHARDS}" for number in range(SHARDS)]
CHANGED = {"aligned_depth": {"smoothing_rows": 3}}


@pytest.fixture
def place(tmp_path: Path, calls: Counter[str]) -> Iterator[World]:
    with world(tmp_path / "store") as place:
        place.operate(fleet=FLEET)
        yield place


def carry_out(place: World, *requests: dg.RunRequest) -> list[dg.ExecuteInProcessResult]:
    job = build_definitions(root=str(place.root)).resolve_job_def(SHARD_JOB)
    return [
        job.execute_in_process(
            instance=place.instance, partition_key=request.partition_key, tags=dict(request.tags), run_config=platform_worlds.QUIET
        )
        for request in requests
    ]


def tick(place: World) -> list[str]:
    """One tick of the sensor and the runs that it requests: the shards."""
    requests = place.look(SHARD_SENSOR)
    carry_out(place, *requests)
    return sorted(str(request.partition_key) for request in requests)


def shard_of(video_id: str) -> str:
    return next(shard.name for shard, videos in members([video_id], SHARDS).items() if videos)


def test_a_shard_is_one_run_and_its_counts_add_up(place: World, tmp_path: Path) -> None:
    register(place.store, tmp_path, *GOOD)
    register_corrupt(place.store, tmp_path)
    (result,) = carry_out(place, dg.RunRequest(partition_key=shard_of(CORRUPT)))
    (event,) = result.asset_materializations_for_node(SHARD)
    found = {name: value.value for name, value in event.metadata.items()}
    mine = [video for video in (*GOOD, CORRUPT) if shard_of(video) == shard_of(CORRUPT)]
    assert (found["videos"], found["computed"], found["failed"]) == (len(mine), len(mine) - 1, 1)
    assert "broken: failed in frames: " in str(found["failures"])
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == (FAILED, False, dg.AssetCheckSeverity.WARN)


def test_the_sensor_asks_for_shards_with_work_and_then_leaves_them_in_peace(place: World, tmp_path: Path, calls: Counter[str]) -> None:
    assert tick(place) == []
    register(place.store, tmp_path, "a")
    assert tick(place) == [shard_of("a")]
    assert calls["frames"] == 1
    assert tick(place) == []
    assert place.said == "all 1 videos are what the configuration asks for, or given up"
    assert place.instance.get_dynamic_partitions(VIDEOS) == []


def test_a_change_waits_for_approval_where_it_concerns_many(place: World, tmp_path: Path, calls: Counter[str]) -> None:
    register(place.store, tmp_path, "a")
    tick(place)
    calls.clear()
    place.configure(**CHANGED)
    change = change_digest(load_config(file=place.root / "config.yaml"))
    place.operate(fleet=FLEET, rerun={"approval_above": 0})
    assert tick(place) == []
    assert f"write `approved: '{change}'`" in place.said
    place.operate(fleet=FLEET, rerun={"approval_above": 0, "approved": change})
    (request,) = place.look(SHARD_SENSOR)
    assert request.tags[APPROVED_TAG] == change
    carry_out(place, request)
    assert calls == {"aligned_depth": 1}
    assert tick(place) == []


def test_a_video_that_fails_is_tried_so_many_times(place: World, tmp_path: Path) -> None:
    register_corrupt(place.store, tmp_path)
    (first,) = place.look(SHARD_SENSOR)
    carry_out(place, first)
    (second,) = place.look(SHARD_SENSOR)
    carry_out(place, second)
    assert first.partition_key == second.partition_key == shard_of(CORRUPT)
    assert first.run_key != second.run_key
    assert tick(place) == []


def test_a_shard_whose_run_is_not_over_is_not_requested_again(place: World, tmp_path: Path) -> None:
    register(place.store, tmp_path, "a")
    (request,) = place.look(SHARD_SENSOR)
    job = build_definitions(root=str(place.root)).resolve_job_def(SHARD_JOB)
    tags = {**request.tags, "dagster/partition": shard_of("a")}
    run = place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED, tags=tags)
    assert place.look(SHARD_SENSOR) == []
    place.instance.report_run_failed(run, "it was lost")
    (again,) = place.look(SHARD_SENSOR)
    assert again.run_key == f"{request.tags[REQUEST_TAG]}:1"


def test_a_run_under_another_configuration_refuses(place: World) -> None:
    with pytest.raises(dg.Failure, match="reload the code location"):
        carry_out(place, dg.RunRequest(partition_key=NAMES[0], tags={CONFIG_TAG: "0123456789abcdef"}))


def test_the_book_of_a_fleet_knows_of_no_single_video(place: World, tmp_path: Path) -> None:
    register(place.store, tmp_path, "a")
    tick(place)
    definitions = build_definitions(root=str(place.root))
    assert definitions.resolve_job_def(RECONCILE_JOB).execute_in_process(instance=place.instance).success
    assert place.instance.get_dynamic_partitions(VIDEOS) == []
    assert sum(place.materializations().values()) == 0


def test_the_run_of_a_shard_that_is_the_latest_is_kept(place: World, tmp_path: Path) -> None:
    register(place.store, tmp_path, "a")
    assert tick(place) == [shard_of("a")], place.said
    (run,) = place.instance.get_runs()
    assert prune(place.instance, MaintenanceSettings(runs_days=0)) == 0
    assert place.instance.get_materialized_partitions(dg.AssetKey(SHARD)) == {shard_of("a")}
    assert [kept.run_id for kept in place.instance.get_runs()] == [run.run_id]


def test_shards_are_there_only_when_they_are_asked_for(place: World) -> None:
    graph = build_definitions(root=str(place.root))
    assert graph.resolve_assets_def(SHARD).partitions_def.get_partition_keys() == NAMES  # type: ignore[union-attr]
    with pytest.raises(dg.DagsterInvariantViolationError, match=RERUN_SENSOR):
        graph.resolve_sensor_def(RERUN_SENSOR)
    place.operate()
    with pytest.raises(dg.DagsterInvariantViolationError, match=SHARD_SENSOR):
        build_definitions(root=str(place.root)).resolve_sensor_def(SHARD_SENSOR)
