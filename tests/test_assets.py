"""The Dagster wiring: what is loaded, what a materialization carries, what blocks, what is refused."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG

import quick_stages
from assets_defs.assets import CONFIG_TAG
from assets_defs.coverage import COVERAGE
from assets_defs.definitions import build_definitions
from assets_defs.instance import HOME_CONFIG, PROCESS_TAG, add_videos, adopt, close_lost_runs, kept_open, open_instance, process_tags
from assets_defs.jobs import PIPELINE_JOB
from assets_defs.metadata import picture
from assets_defs.partitions import VIDEOS
from vipe_dag.checks import CHECKS
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.graph import STAGES, config_digest
from vipe_dag.pipeline import run_video, wanted
from vipe_dag.placement import CONFIG_VARIABLE, ROOT_VARIABLE
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, open_source

PATIENCE_SECONDS = 120.0
ROOT = Path(__file__).parents[1]
ALL = [stage.name for stage in STAGES]


@pytest.fixture
def store(tmp_path: Path, clip: Path) -> VideoStore:
    store = VideoStore(tmp_path / "store")
    store.register(SourceRecord.of(open_source(str(clip)), video_id="slide"))
    return store


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Kept in memory: every event of a run would else wait for the disk."""
    with dg.DagsterInstance.ephemeral() as instance:
        add_videos(instance, ["slide"])
        yield instance


def materialize(
    instance: dg.DagsterInstance, store: VideoStore, config: PipelineConfig | None = None, tags: dict[str, str] | None = None
) -> dg.ExecuteInProcessResult:
    job = build_definitions(root=store.root, config=config or load_config()).resolve_job_def(PIPELINE_JOB)
    return job.execute_in_process(instance=instance, partition_key="slide", raise_on_error=False, tags=tags)


@dataclass(frozen=True)
class FirstRun:
    """The job run once on a fresh store, for the tests that only look at what it left."""

    result: dg.ExecuteInProcessResult
    instance: dg.DagsterInstance
    store: VideoStore
    calls: Counter[str]


@pytest.fixture(scope="module")
def first(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstRun]:
    store = VideoStore(tmp_path_factory.mktemp("first"))
    store.register(SourceRecord.of(open_source(str(clip)), video_id="slide"))
    with pytest.MonkeyPatch.context() as monkeypatch, dg.DagsterInstance.ephemeral() as instance:
        calls = quick_stages.install(monkeypatch)
        add_videos(instance, ["slide"])
        yield FirstRun(materialize(instance, store), instance, store, calls)


def test_six_assets_in_one_group_with_the_graphs_edges(tmp_path: Path) -> None:
    graph = build_definitions(root=str(tmp_path)).resolve_asset_graph()
    found = {node.key.to_user_string(): {key.to_user_string() for key in node.parent_keys} for node in graph.asset_nodes}
    assert found == {stage.name: set(stage.deps) for stage in STAGES}
    assert {node.group_name for node in graph.asset_nodes} == {"video"}
    assert all(isinstance(node.partitions_def, dg.DynamicPartitionsDefinition) for node in graph.asset_nodes)


def test_every_check_is_declared_with_its_severity(tmp_path: Path) -> None:
    graph = build_definitions(root=str(tmp_path)).resolve_asset_graph()
    found = {(key.asset_key.to_user_string(), key.name, graph.get_check_spec(key).blocking) for key in graph.asset_check_keys}
    about_all_videos = {(name, COVERAGE, False) for name in ALL} | {("ba_poses", "reference", False)}
    assert found == {(spec.stage, spec.name, spec.blocking) for spec in CHECKS} | about_all_videos


def test_materializing_a_partition_runs_every_stage(first: FirstRun) -> None:
    assert first.result.success
    assert first.calls == dict.fromkeys(ALL, 1)
    assert {event.partition for event in first.result.get_asset_materialization_events()} == {"slide"}


def test_the_data_version_is_the_fingerprint(first: FirstRun) -> None:
    for name, fingerprint in wanted(first.store, "slide", load_config()).items():
        record = first.instance.get_latest_data_version_record(dg.AssetKey(name), partition_key="slide")
        assert record is not None
        assert record.asset_materialization is not None
        assert (record.asset_materialization.tags or {})["dagster/data_version"] == fingerprint


def test_a_materialization_says_what_it_cost_and_where_it_is(first: FirstRun) -> None:
    events = first.result.get_asset_materialization_events()
    shown = {event.asset_key.to_user_string(): event.materialization.metadata for event in events if event.asset_key is not None}
    for name in ALL:
        assert {"status", "fingerprint", "store_path", "compute_seconds", "peak_rss_mb", "flags"} <= set(shown[name])
        assert Path(str(shown[name]["store_path"].value)).is_dir()
    assert shown["frames"]["frames"].value == 12
    assert shown["ba_poses"]["residual_px"].value == pytest.approx(0.3)


def test_every_asset_shows_a_picture_small_enough_for_an_event(first: FirstRun) -> None:
    for event in first.result.get_asset_materialization_events():
        pictures = [value.value for value in event.materialization.metadata.values() if isinstance(value, dg.MarkdownMetadataValue)]
        assert pictures, event.asset_key
        assert all(text is not None and "(data:image/png;base64," in text and len(text) <= 64 * 1024 for text in pictures)


def test_checks_are_evaluated_in_the_step(first: FirstRun) -> None:
    evaluations = first.result.get_asset_check_evaluations()
    assert len(evaluations) == len(CHECKS)
    assert all(evaluation.passed for evaluation in evaluations)


def test_the_embedded_databases_stay_open_while_a_run_goes_on(tmp_path: Path) -> None:
    with open_instance(tmp_path) as instance:
        logs = [Path(f"{instance.event_log_storage.path_for_shard(shard)}-wal") for shard in ("index", "a-run")]  # type: ignore[attr-defined]
        with kept_open(instance, "a-run"):
            add_videos(instance, ["a-video"])
            assert all(log.exists() for log in logs)
        assert not any(log.exists() for log in logs)
        assert instance.get_dynamic_partitions(VIDEOS) == ["a-video"]


def test_only_the_end_of_a_run_waits_for_the_disk(tmp_path: Path) -> None:
    def waits(instance: dg.DagsterInstance) -> list[int]:
        """By shard, what SQLite calls synchronous: 2 is at each commit, 1 when the log is moved into the database."""
        found = []
        for shard in ("index", "a-run"):
            with instance.event_log_storage.run_connection(shard) as connection:  # type: ignore[attr-defined]
                found.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
        return found

    with open_instance(tmp_path) as instance:
        with kept_open(instance, "a-run"):
            assert waits(instance) == [1, 1]
        assert waits(instance) == [2, 2]


def test_what_a_run_enters_meanwhile_is_there_for_other_processes(tmp_path: Path) -> None:
    with open_instance(tmp_path) as instance, open_instance(tmp_path) as other, kept_open(instance, "a-run"):
        add_videos(instance, ["a-video"])
        assert other.get_dynamic_partitions(VIDEOS) == ["a-video"]
        add_videos(other, ["another"])
        assert instance.get_dynamic_partitions(VIDEOS) == ["a-video", "another"]


def test_a_transaction_that_fails_while_a_run_goes_on_leaves_nothing(tmp_path: Path) -> None:
    def half(instance: dg.DagsterInstance) -> None:
        with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("INSERT INTO dynamic_partitions (partitions_def_name, partition) VALUES ('videos', 'half')")
            raise ValueError("in the middle")

    with open_instance(tmp_path) as instance, kept_open(instance, "a-run"):
        with pytest.raises(ValueError, match="in the middle"):
            half(instance)
        assert instance.get_dynamic_partitions(VIDEOS) == []


def test_a_picture_too_large_for_an_event_is_left_out() -> None:
    assert picture("large", bytes(100_000)) == dg.MetadataValue.text("100000 bytes are too many for an event")


def test_a_failed_blocking_check_stops_what_is_below(
    instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(*arguments: Any, **named: Any) -> Any:
        return dataclasses.replace(quick_stages.solve(*arguments, **named), residual_px_median=50.0)

    quick_stages.replace(monkeypatch, "ba_poses", "solve", wild, calls)
    result = materialize(instance, store)
    assert not result.success
    assert calls["dense_depth"] == 0
    failed = [evaluation for evaluation in result.get_asset_check_evaluations() if not evaluation.passed]
    assert [(evaluation.check_name, evaluation.severity) for evaluation in failed] == [("residual", dg.AssetCheckSeverity.ERROR)]


def test_a_failed_warning_check_does_not_stop(
    instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubtful(*arguments: Any, **named: Any) -> Any:
        return dataclasses.replace(quick_stages.calibrate(*arguments, **named), focal_observable=False, flags=("focal_unobservable",))

    quick_stages.replace(monkeypatch, "intrinsics", "calibrate", doubtful, calls)
    result = materialize(instance, store)
    assert result.success
    failed = [evaluation for evaluation in result.get_asset_check_evaluations() if not evaluation.passed]
    assert [(evaluation.check_name, evaluation.severity) for evaluation in failed] == [("focal_observable", dg.AssetCheckSeverity.WARN)]


def test_materializing_again_computes_nothing(instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str]) -> None:
    materialize(instance, store)
    calls.clear()
    result = materialize(instance, store)
    assert result.success
    assert not calls
    assert {event.materialization.metadata["status"].value for event in result.get_asset_materialization_events()} == {"current"}


def test_a_run_requested_under_another_configuration_is_refused(
    instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str]
) -> None:
    other = config_digest(load_config(overrides=["frames.long_side=320"]))
    result = materialize(instance, store, tags={CONFIG_TAG: other})
    assert not result.success
    assert not calls


def test_runs_of_the_job_carry_the_configuration(tmp_path: Path) -> None:
    config = load_config(overrides=["frames.long_side=320"])
    job = build_definitions(root=str(tmp_path), config=config).resolve_job_def(PIPELINE_JOB)
    assert job.run_tags[CONFIG_TAG] == config_digest(config)


def test_the_code_version_changes_only_for_the_stage_whose_value_changed(tmp_path: Path) -> None:
    def versions(config: PipelineConfig) -> dict[str, str | None]:
        graph = build_definitions(root=str(tmp_path), config=config).resolve_asset_graph()
        return {node.key.to_user_string(): node.code_version for node in graph.asset_nodes}

    before, after = versions(load_config()), versions(load_config(overrides=["ba_poses.grid_columns=20"]))
    assert {name for name in ALL if before[name] != after[name]} == {"ba_poses"}


def test_the_configuration_comes_from_the_stores_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    (tmp_path / "config.yaml").write_text("frames:\n  long_side: 320\n")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    job = build_definitions().resolve_job_def(PIPELINE_JOB)
    assert job.run_tags[CONFIG_TAG] == config_digest(load_config(overrides=["frames.long_side=320"]))


def test_a_store_filled_without_dagster_is_entered_in_the_book(
    instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str]
) -> None:
    run_video(store, "slide", load_config(), until="keyframes")
    store.register(store.source("slide").model_copy(update={"video_id": "other"}))
    assert adopt(instance, store) == 2
    assert set(instance.get_dynamic_partitions(VIDEOS)) == {"slide", "other"}
    materialized = {name: instance.get_materialized_partitions(dg.AssetKey(name)) for name in ALL}
    assert materialized == {name: {"slide"} if name in ("frames", "keyframes") else set() for name in ALL}


def test_what_was_entered_is_not_entered_twice(instance: dg.DagsterInstance, store: VideoStore, calls: Counter[str]) -> None:
    run_video(store, "slide", load_config(), until="frames")
    adopt(instance, store)
    adopt(instance, store)
    assert len(instance.fetch_materializations(dg.AssetKey("frames"), limit=10).records) == 1


def test_a_run_whose_process_is_gone_is_closed(instance: dg.DagsterInstance, store: VideoStore) -> None:
    job = build_definitions(root=store.root, config=load_config()).resolve_job_def(PIPELINE_JOB)
    gone = {PROCESS_TAG: process_tags()[PROCESS_TAG].rpartition(":")[0] + ":1"}
    lost, alive = (instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags) for tags in (gone, process_tags()))
    assert close_lost_runs(instance) == 1
    states = {run_id: instance.get_run_by_id(run_id) for run_id in (lost.run_id, alive.run_id)}
    assert [run and run.status for run in states.values()] == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]


def test_a_run_that_was_killed_before_it_named_its_process_is_closed_once_nobody_can_start_it_any_more(
    instance: dg.DagsterInstance, store: VideoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build_definitions(root=store.root, config=load_config()).resolve_job_def(PIPELINE_JOB)
    server = {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": str(tmp_path / "gone")})}
    for status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED):
        instance.create_run_for_job(job, status=status, tags=server)
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert close_lost_runs(instance) == 0, "they have just begun"
    with monkeypatch.context() as answering:
        answering.setattr("dagster._grpc.client.DagsterGrpcClient.ping", lambda *_: {})
        assert close_lost_runs(instance, timedelta(0)) == 0
    assert close_lost_runs(instance, timedelta(0)) == 2, "the third is of another launcher"


def test_a_process_that_ended_and_that_nobody_waited_for_is_gone(instance: dg.DagsterInstance, store: VideoStore) -> None:
    job = build_definitions(root=store.root, config=load_config()).resolve_job_def(PIPELINE_JOB)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: there.send(process_tags()))
    process.start()
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=here.recv())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert close_lost_runs(instance) == 1
    process.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the start of a process is known by the clock only")
def test_a_run_goes_on_when_the_clock_is_set(instance: dg.DagsterInstance, store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = build_definitions(root=store.root, config=load_config()).resolve_job_def(PIPELINE_JOB)
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=process_tags())
    monkeypatch.setattr("psutil.Process.create_time", lambda _: 0.0)
    assert close_lost_runs(instance) == 0


def test_the_home_is_made_without_telemetry_and_then_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with open_instance(home) as instance:
        assert instance.get_settings("telemetry") == {"enabled": False}
    assert (home / "dagster.yaml").read_text() == HOME_CONFIG
    (home / "dagster.yaml").write_text("nux:\n  enabled: false\n")
    with open_instance(home):
        assert (home / "dagster.yaml").read_text() == "nux:\n  enabled: false\n"


def test_the_definitions_cost_little_more_than_dagster_and_no_torch() -> None:
    """Of processor seconds, beside Dagster alone in the same minute, since other tests run beside this one."""
    alone = min(seconds_of("import dagster") for _ in range(3))
    ours = min(seconds_of("import sys, assets_defs.definitions; assert not {'torch', 'cv2', 'zarr'} & set(sys.modules)") for _ in range(3))
    assert ours < 1.7 * alone


def seconds_of(program: str) -> float:
    """Processor seconds of a Python process."""
    before = os.times()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_dagster_validates_the_workspace(tmp_path: Path) -> None:
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), ROOT_VARIABLE: str(tmp_path / "store")}
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
