"""A store, its book and its sensors in one process: `tick` does what the daemon does with a sensor, without the daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.partitions.context import partition_loading_context

from assets_defs.definitions import build_definitions
from assets_defs.instance import add_videos
from assets_defs.jobs import PIPELINE_JOB
from assets_defs.launch import QUIET
from assets_defs.rerun import RERUN_SENSOR
from clips import write_clip
from vipe_dag.graph import STAGES
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, open_source

ALL = [stage.name for stage in STAGES]


@dataclass
class World:
    """One store with its book. Configuration and settings are files in the store, as a user writes them."""

    root: Path
    instance: dg.DagsterInstance
    run_keys: set[str] = field(default_factory=set)
    cursors: dict[str, str | None] = field(default_factory=dict)
    said: str = ""

    @property
    def store(self) -> VideoStore:
        return VideoStore(self.root)

    def configure(self, **stages: dict[str, object]) -> None:
        (self.root / "config.yaml").write_text(yaml.safe_dump(stages))

    def operate(self, **sections: dict[str, object]) -> None:
        (self.root / "operations.yaml").write_text(yaml.safe_dump(sections))

    def add(self, clip: Path, *video_ids: str) -> None:
        """Videos of one content under several names."""
        for video_id in video_ids:
            self.store.register(SourceRecord.of(open_source(str(clip)), video_id=video_id))
        add_videos(self.instance, video_ids)

    def look(self, sensor: str = RERUN_SENSOR) -> list[dg.RunRequest]:
        """What the sensor requests, with definitions loaded anew, as after a restart."""
        definitions = build_definitions(root=str(self.root))
        context = dg.build_sensor_context(
            instance=self.instance, definitions=definitions, sensor_name=sensor, cursor=self.cursors.get(sensor)
        )
        with partition_loading_context(dynamic_partitions_store=self.instance):
            result = definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        self.cursors[sensor] = result.cursor or self.cursors.get(sensor)  # as the daemon does
        self.said = result.skip_message or ""
        return list(result.run_requests or ())

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Carries one request out, once: a second of the same key would be skipped by the daemon, and is an error here."""
        assert request.run_key not in self.run_keys, f"{request.run_key} was requested twice"
        self.run_keys.add(str(request.run_key))
        job = build_definitions(root=str(self.root)).resolve_job_def(PIPELINE_JOB)
        chosen = frozenset(request.asset_selection or ()), frozenset(request.asset_check_keys or ())
        return job.get_subset(asset_selection=chosen[0], asset_check_selection=chosen[1]).execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=QUIET,
            raise_on_error=False,
        )

    def tick(self) -> dict[str, list[str]]:
        """One tick and all the runs that it requests: per video the stages that were asked for."""
        requests = self.look()
        for request in requests:
            self.run(request)
        return {str(request.partition_key): stages_of(request) for request in requests}

    def materializations(self) -> Counter[str]:
        """Events in the book, by stage."""
        return Counter({name: len(self.instance.fetch_materializations(dg.AssetKey(name), limit=1000).records) for name in ALL})


def stages_of(request: dg.RunRequest) -> list[str]:
    return [key.to_user_string() for key in request.asset_selection or ()]


@contextmanager
def world(root: Path) -> Iterator[World]:
    root.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(root, instance)


def clip_in(folder: Path, name: str = "slide.mp4", seed: int = 0, frames: int = 8) -> Path:
    return write_clip(folder / name, frames, 64, 48, seed)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes most of such a short run: pictures, and waiting for the disk."""
    monkeypatch.setattr("assets_defs.assets.materialization_metadata", lambda *_: {})
    monkeypatch.setattr("os.fsync", lambda _: None)
