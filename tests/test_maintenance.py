"""Upkeep: what may be removed, what never is, and when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets_defs.definitions import build_definitions
from assets_defs.instance import GONE, adopt, stored_versions
from assets_defs.maintenance import MAINTENANCE_JOB, RECONCILE_JOB, prune
from platform_worlds import ALL, World, clip_in, world
from vipe_dag import cli
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.errors import StoreError
from vipe_dag.operations import MaintenanceSettings
from vipe_dag.pipeline import run_video, wanted
from vipe_dag.store import VideoStore

pytestmark = pytest.mark.usefixtures("hurried")

SETTINGS = [load_config(overrides=[f"keyframes.side={side}"]) for side in (320, 300, 280)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_in(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def place(tmp_path: Path, calls: Counter[str], clip: Path) -> Iterator[World]:
    with world(tmp_path / "store") as place:
        place.add(clip, "a")
        yield place


@pytest.fixture
def history(place: World) -> VideoStore:
    """Three generations of keyframes, the last current."""
    for config in SETTINGS:
        run_video(place.store, "a", config, until="keyframes")
    return place.store


def fingerprint(store: VideoStore, config: PipelineConfig) -> str:
    return wanted(store, "a", config)["keyframes"]


def kept(store: VideoStore) -> list[str]:
    return [pointer.fingerprint for pointer in store.generations("a", "keyframes")]


def later(days: float = 30) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def test_old_results_go_but_for_the_newest_and_the_current(history: VideoStore) -> None:
    names = [fingerprint(history, config) for config in SETTINGS]
    history.collect(timedelta(days=14), keep=2, now=later())
    assert kept(history) == names[1:]
    history.point("a", "keyframes", names[1])
    history.collect(timedelta(days=14), keep=0, now=later())
    assert kept(history) == [names[1]]
    assert history.open("a", "keyframes")["keyframe"].size


def test_what_was_replaced_lately_stays(history: VideoStore) -> None:
    assert history.collect(timedelta(days=14), keep=0, now=later(13)) == []


def test_a_dry_run_says_what_would_go_and_removes_nothing(history: VideoStore) -> None:
    before = kept(history)
    (piece,) = history.collect(timedelta(days=14), keep=2, now=later(), dry_run=True)
    assert piece.key.startswith(f"a/keyframes/{before[0]}-")
    assert piece.bytes > 0
    assert kept(history) == before


def test_nothing_goes_from_an_asset_without_a_pointer(history: VideoStore) -> None:
    (Path(history.root) / "a" / "keyframes" / "_current.json").unlink()
    assert history.collect(timedelta(days=14), keep=0, now=later()) == []


def test_a_result_that_is_gone_back_to_while_it_is_removed_stays(history: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = type(history._backend)
    names, remove = [fingerprint(history, config) for config in SETTINGS], backend.remove

    def overtaken(self: object, key: str) -> None:
        if key.endswith("/zarr.json"):
            monkeypatch.setattr(backend, "remove", remove)
            history.point("a", "keyframes", names[0])
        remove(self, key)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "remove", overtaken)
    history.collect(timedelta(days=14), keep=2, now=later())
    assert history.open("a", "keyframes", names[0])["keyframe"].size


def test_old_runs_go_but_for_those_that_made_the_latest_results(place: World) -> None:
    place.tick()
    place.configure(keyframes={"side": 300})
    place.tick()
    place.configure(keyframes={"side": 280})
    place.tick()
    videos_known = {name: stored_versions(place.instance, name) for name in ALL}
    assert prune(place.instance, MaintenanceSettings(runs_days=90), later(89)) == 0
    assert prune(place.instance, MaintenanceSettings(runs_days=90), later(91)) == 1
    assert prune(place.instance, MaintenanceSettings(runs_days=90), later(91)) == 0
    assert {name: stored_versions(place.instance, name) for name in ALL} == videos_known
    assert place.tick() == {}


def test_reconciliation_enters_what_was_made_current_elsewhere(history: VideoStore, place: World) -> None:
    adopt(place.instance, history)
    history.point("a", "keyframes", fingerprint(history, SETTINGS[0]))
    job = build_definitions(root=str(place.root)).resolve_job_def(RECONCILE_JOB)
    assert job.execute_in_process(instance=place.instance).success
    assert stored_versions(place.instance, "keyframes") == {"a": fingerprint(history, SETTINGS[0])}


def test_reconciliation_says_once_what_is_gone(history: VideoStore, place: World) -> None:
    adopt(place.instance, history)
    (place.root / "a" / "keyframes" / "_current.json").unlink()
    for _ in range(2):
        adopt(place.instance, history)
    assert stored_versions(place.instance, "keyframes") == {"a": GONE}
    assert place.materializations()["keyframes"] == 2


def test_a_damaged_pointer_is_not_taken_for_a_missing_result(history: VideoStore, place: World) -> None:
    (place.root / "a" / "keyframes" / "_current.json").write_text("{")
    with pytest.raises(StoreError, match="not a readable pointer"):
        adopt(place.instance, history)


def test_the_maintenance_job_follows_the_settings_of_the_store(history: VideoStore, place: World) -> None:
    place.operate(maintenance={"retention_days": 0, "keep": 1})
    job = build_definitions(root=str(place.root)).resolve_job_def(MAINTENANCE_JOB)
    assert job.execute_in_process(instance=place.instance).success
    assert kept(history) == [fingerprint(history, SETTINGS[-1])]


def test_the_command_line_says_what_would_go_and_removes_it(history: VideoStore, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["gc", "--store", history.root, "--retention-days", "0", "--keep", "2"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert "would remove 1 results" in capfd.readouterr().out
    assert len(kept(history)) == 3
    assert cli.main([*arguments, "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["removed"]) == 1
    assert len(kept(history)) == 2
    assert cli.main([*arguments, "--keep", "-1"]) == 2


def test_schedules_run_at_night_where_the_store_says_so(place: World) -> None:
    def status() -> dict[str, dg.DefaultScheduleStatus]:
        definitions = build_definitions(root=str(place.root))
        names = ("nightly_reconcile", "nightly_coverage", "nightly_maintenance")
        return {name: definitions.resolve_schedule_def(name).default_status for name in names}

    assert set(status().values()) == {dg.DefaultScheduleStatus.STOPPED}
    place.operate(maintenance={"enabled": True})
    assert set(status().values()) == {dg.DefaultScheduleStatus.RUNNING}
