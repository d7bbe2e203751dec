"""Dagster's book in PostgreSQL: the example configuration works, and a connection that is ended in the middle of a run costs a rerun."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import postgres
import quick_stages
from assets_defs.instance import close_lost_runs, open_instance, release_slots
from clips import write_clip
from platform_worlds import hurry
from postgres import PASSWORD, Postgres
from vipe_dag import cli
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.graph import STAGES
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE, ROOT_VARIABLE

EXAMPLE = Path(__file__).parents[1] / "docs" / "dagster-postgres.yaml"
URL_VARIABLE = "DAGSTER_PG_URL"
ALL = [stage.name for stage in STAGES]
CUT = """
create or replace function cut() returns trigger as $$ begin
  if new.step_key = '{step}' and new.dagster_event_type = any('{{{events}}}') then
    perform pg_terminate_backend(pg_backend_pid());
  end if;
  return new;
end $$ language plpgsql;
create trigger cut before insert on event_logs for each row execute function cut();
"""
"""Ends the connection that writes such an event, before it is written."""

if postgres.program("initdb") is None or postgres.program("pg_ctl") is None:
    pytest.skip("PostgreSQL is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    pytest.importorskip("dagster_postgres", reason="comes with the extra `postgres`")
    with postgres.serving() as server:
        yield server


@pytest.fixture
def home(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DAGSTER_HOME with the example of the documentation."""
    for name in (ROOT_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(EXAMPLE, home / "dagster.yaml")
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    monkeypatch.setenv(URL_VARIABLE, server.url)
    return home


def test_a_run_whose_connection_is_ended_fails_and_the_next_one_completes_it(
    server: Postgres, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hurry(monkeypatch)
    calls: Counter[str] = quick_stages.install(monkeypatch)
    run = ["run", str(write_clip(tmp_path / "slide.mp4", 12)), "--store", str(tmp_path / "store")]
    with open_instance(home):
        pass  # makes the tables
    server.ask(CUT.format(step="ba_poses", events="ASSET_MATERIALIZATION"))
    capfd.readouterr()
    assert cli.main(run) == 1
    said = capfd.readouterr().err
    assert "ba_poses: Dagster's database failed (server closed the connection" in said
    assert PASSWORD not in said
    server.ask("drop trigger cut on event_logs")

    assert cli.main(run) == 0
    assert calls == dict.fromkeys(ALL, 1), "what was computed before the connection was lost is not computed again"
    found = server.ask("select distinct step_key from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'")
    assert {step for (step,) in found} == set(ALL)
    assert not list(home.rglob("*.db")), "nothing of the book is in files"
    assert server.ask("select count(*) from runs where status not in ('SUCCESS', 'FAILURE')") == [(0,)]


@dg.asset(pool="gpu")
def heavy() -> None:
    """Takes the only place of a pool."""


def test_a_slot_whose_release_was_lost_with_the_connection_is_freed(server: Postgres, home: Path) -> None:
    job = dg.Definitions(assets=[heavy], jobs=[dg.define_asset_job("one")], executor=dg.in_process_executor).resolve_job_def("one")
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with open_instance(home) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        server.ask(CUT.format(step="heavy", events="ASSET_MATERIALIZATION,STEP_FAILURE"))
        assert not job.execute_in_process(instance=instance, raise_on_error=False, run_config=quiet).success
        server.ask("drop trigger cut on event_logs")
        assert storage.get_concurrency_info("gpu").active_slot_count == 1, "what Dagster leaves: the next run would wait for ever"
        close_lost_runs(instance)
        assert storage.get_concurrency_info("gpu").active_slot_count == 0
        assert job.execute_in_process(instance=instance, raise_on_error=False, run_config=quiet).success


def test_a_slot_of_a_run_that_goes_on_is_left_alone() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        run = instance.create_run_for_job(dg.Definitions(assets=[heavy]).resolve_implicit_global_asset_job_def())
        instance.report_run_canceling(run)
        storage.claim_concurrency_slot("gpu", run.run_id, "heavy")
        release_slots(instance)
        assert storage.get_concurrency_info("gpu").active_slot_count == 1
        instance.report_run_canceled(run)
        release_slots(instance)
        assert storage.get_concurrency_info("gpu").active_slot_count == 0


def test_what_is_wrong_with_the_database_is_one_line_without_its_password(
    server: Postgres, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        server.url.replace("+psycopg2", ""): (ConfigError, r"must begin with postgresql\+psycopg2://"),
        server.url.replace("tester", "nobody-known"): (StoreError, "Dagster's database failed"),
        None: (ConfigError, r'dagster\.yaml: You have attempted to fetch the environment variable "DAGSTER_PG_URL" which is not set'),
    }
    monkeypatch.setattr("dagster_postgres.utils.time.sleep", lambda _: None)
    for url, (kind, said) in cases.items():
        if url is None:
            monkeypatch.delenv(URL_VARIABLE)
        else:
            monkeypatch.setenv(URL_VARIABLE, url)
        with pytest.raises(kind, match=said) as caught, open_instance(home):
            pass
        assert PASSWORD not in str(caught.value)
        assert "\n" not in str(caught.value)
