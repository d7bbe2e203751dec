"""What is told of runs: numbers beside results, one table after several videos, lines for machines, and alerts."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import dagster as dg
import pytest
import yaml

from assets_defs import alerts
from assets_defs.alerts import ALERTS_SENSOR, COMMAND_VARIABLE, URL_VARIABLE
from assets_defs.definitions import build_definitions
from assets_defs.instance import open_instance
from assets_defs.jobs import PIPELINE_JOB
from assets_defs.rerun import PARTITION_TAG
from platform_worlds import ALL, World, clip_in
from vipe_dag import cli

FORMATTER = re.search(r"```yaml\n(python_logs:.*?)```", (Path(__file__).parents[1] / "docs" / "platform.md").read_text(), re.DOTALL)
SECRET = "hook-0815-4711"


@pytest.fixture
def place(tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One video, and the log of its runs as the documentation has it, but to a file."""
    assert FORMATTER
    document = yaml.safe_load(FORMATTER[1])
    handler = document["python_logs"]["dagster_handler_config"]["handlers"]["lines"]
    handler.update({"class": "logging.FileHandler", "filename": str(tmp_path / "lines")})
    root, home = tmp_path / "store", tmp_path / "home"
    for folder in (root, home):
        folder.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr("os.fsync", lambda _: None)
    with open_instance(home) as instance:
        place = World(root, instance)
        place.add(clip_in(tmp_path), "a")
        yield place


def failed_run(place: World, clip: Path) -> dg.RunFailureSensorContext:
    """A run whose file lost its content after it was registered, as the sensor is told of it."""
    clip.write_bytes(clip.read_bytes()[:100])
    (request,) = place.look()
    result = place.run(request)
    run = place.instance.get_run_by_id(result.run_id)
    assert run is not None
    (event,) = (event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    return dg.build_run_status_sensor_context(ALERTS_SENSOR, event, place.instance, run).for_run_failure()


def test_each_stage_leaves_numbers_in_the_book_and_a_line_for_machines(place: World, tmp_path: Path) -> None:
    place.tick()
    for stage in ALL:
        (record,) = place.instance.fetch_materializations(dg.AssetKey(stage), limit=1).records
        assert record.asset_materialization is not None
        assert {"seconds", "compute_seconds", "frames_per_second", "peak_rss_mb"} <= set(record.asset_materialization.metadata)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    finished = {line["stage"]: line for line in lines if "stage" in line}
    assert list(finished) == ALL
    assert finished["ba_poses"].items() >= {"video_id": "a", "status": "computed", "residual_px": 0.3, "frames": 8, "level": "info"}.items()
    assert {line["run_id"] for line in finished.values()} == {run.run_id for run in place.instance.get_runs()}


def test_several_videos_end_with_one_table(place: World, hurried: None, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place.add(tmp_path / "slide.mp4", "b")
    assert cli.main(["backfill", "--store", str(place.root)]) == 0
    table = capfd.readouterr().out.partition("2 videos: 2 computed; ")[2].splitlines()
    rows = {cells[0]: cells[1:] for cells in map(str.split, table[2:]) if cells}
    assert list(rows) == ALL
    assert {cells[0] for cells in rows.values()} == {"2"}
    assert rows["ba_poses"][-1] == "0.30"


def test_a_webhook_is_told_what_failed_and_why(place: World, hurried: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == f"/{SECRET}" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/{SECRET}")
        sensor = build_definitions(root=str(place.root)).resolve_sensor_def(ALERTS_SENSOR)
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        alerts.send(alerts.alert(failed_run(place, tmp_path / "slide.mp4")))
        monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/{SECRET}-wrong")
        with pytest.raises(dg.Failure, match=r"answered 404") as refused:
            alerts.send({"text": "x"})
    finally:
        server.shutdown()
        server.server_close()
    assert SECRET not in str(refused.value)
    assert told[0].items() >= {"job": "video_pipeline", "partition": "a", "stage": "frames"}.items()
    assert told[0]["text"].startswith("vipe-dag: a: frames: ")


def test_an_alert_of_a_run_whose_process_was_killed_says_what_was_noticed(place: World) -> None:
    job = build_definitions(root=str(place.root)).resolve_job_def(PIPELINE_JOB)
    run = place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={PARTITION_TAG: "a"})
    place.instance.report_engine_event("the process was terminated by signal 9 (SIGKILL)", run)
    event = place.instance.report_run_failed(run)
    context = dg.build_run_status_sensor_context(ALERTS_SENSOR, event, place.instance, run).for_run_failure()
    assert re.fullmatch(r"vipe-dag: a: .+ the process was terminated by signal 9 \(SIGKILL\) \(run .+\)", alerts.alert(context)["text"])


def test_a_command_gets_the_alert_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.read())"
    monkeypatch.setenv(COMMAND_VARIABLE, f'"{sys.executable}" -c "{program}"')
    alerts.send({"text": "it failed"})
    assert json.loads((tmp_path / "told").read_text()) == {"text": "it failed"}
    monkeypatch.setenv(COMMAND_VARIABLE, "no-such-program-here")
    with pytest.raises(dg.Failure, match="the command of"):
        alerts.send({"text": "it failed"})


def test_without_a_place_to_send_to_there_is_no_sensor(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL_VARIABLE, COMMAND_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(dg.DagsterInvariantViolationError, match=ALERTS_SENSOR):
        build_definitions(root=str(place.root)).resolve_sensor_def(ALERTS_SENSOR)
