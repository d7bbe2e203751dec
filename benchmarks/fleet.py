"""Very many videos: what listing, the catalogue, a pass over all shards, a tick of a sensor and loading the definitions cost.

    python -m benchmarks.fleet [--entries N]... [--ticks N]... [--videos N] [--folder DIR] [--json FILE]

Entries of the catalogue and of Dagster's book are made up; nothing is decoded but for `--videos`, which runs as many tiny clips as one
shard up to keyframes, kills the run half-way and runs it again, and takes what a run adds to each video, by Dagster and in a shard.
Exits 1 when a figure misses its bound. Wall time counts; time on the processor is given beside it, which says how much of the wall time was
waiting for storage or for other work of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.processes import run
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.fleet.catalogue import write_file
from vipe_dag.fleet.columns import schema
from vipe_dag.fleet.merged import merge
from vipe_dag.fleet.reading import Fleet
from vipe_dag.fleet.reconcile import shard_states
from vipe_dag.fleet.shards import Shard, videos_of
from vipe_dag.graph import STAGES, Fingerprinter, fingerprints
from vipe_dag.graph import SourceIdentity as Source
from vipe_dag.operations import RerunSettings
from vipe_dag.store import VideoStore
from vipe_dag.video.records import SourceRecord

LOADER = """
import sys, time
started = time.perf_counter(), time.process_time()
import assets_defs.definitions
print(time.perf_counter() - started[0], time.process_time() - started[1])
assert "torch" not in sys.modules
"""
PER_SHARD = 244
"""Videos in a shard of a million in 4,096."""
BOUNDS: dict[tuple[str, int], float] = {
    ("query", 1_000_000): 5.0,
    ("query, four columns of all videos", 1_000_000): 5.0,
    ("pass, nothing changed", 1_000_000): 60.0,
    ("pass, configuration changed", 1_000_000): 60.0,
    ("first tick of rerun", 10_000): 2.0,
    ("first tick of rerun", 100_000): 15.0,
    ("load definitions", 4_096): 2.0,
    ("six current stages by Dagster, first", 1): 2.0,
    ("six current stages by Dagster, next", 1): 2.0,
    ("run of a shard, overhead per video", 200): 0.2,
}
"""Seconds at most, by figure and size."""


@dataclass(frozen=True)
class Figure:
    """One measurement: wall clock and time on the processor, seconds."""

    name: str
    size: int
    seconds: float
    cpu: float

    @property
    def bound(self) -> float | None:
        return BOUNDS.get((self.name, self.size))

    @property
    def met(self) -> bool:
        return self.bound is None or self.seconds < self.bound


class Clock:
    """Collects and prints figures."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    @contextmanager
    def measured(self, name: str, size: int, share: int = 1) -> Iterator[None]:
        """share: of how many equal parts one is told."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(Figure(name, size, (time.perf_counter() - wall) / share, (time.process_time() - cpu) / share))

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        bound = "" if figure.bound is None else f"   must be below {figure.bound:g}{'' if figure.met else '   MISSED'}"
        print(f"{figure.name:38} {figure.size:>9,} {figure.seconds:9.3f} s {figure.cpu:9.3f} s cpu{bound}", flush=True)


def video_ids(count: int) -> list[str]:
    return [f"video-{number:07d}-{number * 2654435761 % 2**32:08x}" for number in range(count)]


def made_up(shard: Shard, ids: list[str], random: np.random.Generator, config: PipelineConfig) -> pa.Table:
    """Rows of a shard whose videos are all done."""
    count = len(ids)
    digests = [random.bytes(16).hex() for _ in ids]
    fingerprinter = Fingerprinter(config)
    prints = [fingerprinter.of(Source(digest)) for digest in digests]
    columns: dict[str, Any] = {
        "video_id": ids,
        "shard": [shard.number] * count,
        "status": ["done"] * count,
        "behind": [[]] * count,
        "source": [f"s3://bucket/videos/{video_id}.mp4" for video_id in ids],
        "digest": digests,
        "stride": [1] * count,
        "frames": random.integers(100, 900, count),
        "width": [640] * count,
        "height": [360] * count,
        "camera_model": ["pinhole"] * count,
        "focal_of_width": random.normal(0.8, 0.15, count),
        "residual_px": random.gamma(2.0, 0.2, count),
        "inlier_share": random.beta(20, 2, count),
        "tracked_share": random.beta(50, 1, count),
        "bytes": random.integers(10**7, 10**9, count),
        "flags": [["segments"] if number % 9 == 0 else [] for number in range(count)],
        **{f"{stage.name}_fingerprint": [found[stage.name] for found in prints] for stage in STAGES},
        **{f"{stage.name}_written_at": [datetime.now(UTC)] * count for stage in STAGES},
        **{f"{stage.name}_s": random.gamma(3.0, 4.0, count) for stage in STAGES},
    }
    arrays = [pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type) for field in schema()]
    return pa.Table.from_arrays(arrays, schema=schema())


def catalogue(clock: Clock, folder: Path, entries: int) -> None:
    """Write a catalogue of that many videos, ask it, and compare it with two configurations."""
    root = folder / f"catalogue{entries}"
    store, count = VideoStore(root), max(1, 2 ** round(np.log2(entries / PER_SHARD)))
    ids, random = video_ids(entries), np.random.default_rng(0)
    config, changed = load_config(), load_config(overrides=["ba_poses.grid_columns=20"])
    for video_id in ids:
        (root / video_id).mkdir(parents=True)
    with clock.measured("list the store and hash the ids", entries):
        videos = videos_of(store, count)
    tables = {shard: made_up(shard, mine, random, config) for shard, mine in videos.items()}
    with clock.measured("write the catalogue (without poses)", entries):
        for shard, table in tables.items():
            write_file(store, shard, table, config)
    fleet = Fleet(store, count)
    with clock.measured("query, no file merged yet", entries):
        worst(fleet)
    with clock.measured("merge the catalogue", entries):
        merge(store, list(videos))
    with clock.measured("query", entries):
        worst(fleet)
    with clock.measured("query, four columns of all videos", entries):
        found = fleet.select(["shard", "residual_px", "focal_of_width", "flags"])
        found.groupby("shard")["residual_px"].median()
    with clock.measured("pass, nothing changed", entries):
        states = list(shard_states(store, videos_of(store, count), config, 3))
    if sum(state.current for state in states) != entries:
        raise AssertionError("every video is as the configuration asks for")
    with clock.measured("pass, configuration changed", entries):
        due = [state for state in shard_states(store, videos_of(store, count), changed, 3) if state.due]
    if sum(state.stale for state in due) != entries:
        raise AssertionError("a change of the configuration makes every video stale")


def worst(fleet: Fleet) -> Any:
    """The ten videos with the largest residuals."""
    return fleet.select(["video_id", "residual_px"], [("residual_px", ">", 1.0)]).nlargest(10, "residual_px")


def tick(clock: Clock, folder: Path, videos: int) -> None:
    """Ticks of the sensor `rerun` over videos that are all current in the book: the first after a start, and one more."""
    import dagster as dg

    from assets_defs.instance import add_videos
    from assets_defs.rerun import Reconciler

    root, config = folder / f"tick{videos}", load_config()
    store, records = (
        VideoStore(root),
        [SourceRecord(video_id=name, uri=f"/videos/{name}.mp4", digest=name[-8:] * 4) for name in video_ids(videos)],
    )
    for record in records:
        (root / record.video_id).mkdir(parents=True)
        (root / record.video_id / "_source.json").write_text(record.model_dump_json(indent=2) + "\n")
    with tempfile.TemporaryDirectory(dir=folder) as home, dg.DagsterInstance.local_temp(home) as instance:
        add_videos(instance, [record.video_id for record in records])
        fill_book(instance, {record.video_id: fingerprints(config, Source(record.digest)) for record in records})
        reconciler = Reconciler()
        for name in ("first tick of rerun", "next tick of rerun"):
            with clock.measured(name, videos):
                found = reconciler.tick(instance, store, config, RerunSettings())
            if found.requests or found.videos != videos:
                raise AssertionError(found.sentence())


def fill_book(instance: Any, wanted: dict[str, dict[str, str]]) -> None:
    """Enters one materialization per video and stage, all at once: one by one takes most of an hour for 100,000 videos."""
    import dagster as dg
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import AssetEventTagsTable, SqlEventLogStorageTable

    storage = instance.event_log_storage
    for stage in STAGES:
        first = next(iter(wanted))
        tags = {"dagster/data_version": wanted[first][stage.name]}
        instance.report_runless_asset_event(dg.AssetMaterialization(stage.name, partition=first, tags=tags))
        with storage.index_connection() as connection:
            newest = sa.desc(SqlEventLogStorageTable.c.id)
            event = dict(connection.execute(sa.select(SqlEventLogStorageTable).order_by(newest).limit(1)).mappings().one())
            tag = dict(
                connection.execute(sa.select(AssetEventTagsTable).order_by(sa.desc(AssetEventTagsTable.c.id)).limit(1)).mappings().one()
            )
            events, labels = [], []
            number, label = event.pop("id"), tag.pop("id")
            for step, (video_id, fingerprint) in enumerate(list(wanted.items())[1:], 1):
                events.append({**event, "id": number + step, "partition": video_id})
                labels.append({**tag, "id": label + step, "event_id": number + step, "value": fingerprint[stage.name]})
            for table, rows in ((SqlEventLogStorageTable, events), (AssetEventTagsTable, labels)):
                for start in range(0, len(rows), 5000):
                    connection.execute(table.insert(), rows[start : start + 5000])


def definitions(clock: Clock, folder: Path, shards: int) -> None:
    """Load what Dagster loads, in a process of its own, of a store with that many shards."""
    (folder / "defined").mkdir()
    (folder / "defined" / "operations.yaml").write_text(f"fleet: {{enabled: true, shards: {shards}}}\n")
    finished = run([sys.executable, "-c", LOADER], {"VIPE_DAG_ROOT": str(folder / "defined")})
    if finished.code:
        raise RuntimeError(finished.problem)
    clock.add(Figure("load definitions", shards, *map(float, finished.output.split())))


def tiny_clip(folder: Path) -> Path:
    """A walk through a rendered room that all six stages manage."""
    from vipe_dag import synthetic

    return synthetic.write_mp4(synthetic.scene("room", 12, 96, 64, supersample=1), folder / "room.mp4")


def shard_run(clock: Clock, folder: Path, videos: int) -> None:
    """One shard of tiny clips to keyframes, one of them corrupt: killed half-way, run again, and once more with nothing left to do."""
    from vipe_dag.fleet import run as fleet_run
    from vipe_dag.pipeline import run_video
    from vipe_dag.video import open_source

    root, store = folder / "shard", VideoStore(folder / "shard")
    clip = tiny_clip(folder)
    source = open_source(str(clip))
    for name in video_ids(videos):
        store.register(SourceRecord.of(source, video_id=name))
    corrupt = folder / "corrupt.mp4"
    corrupt.write_bytes(clip.read_bytes()[:100])
    store.register(SourceRecord(video_id="corrupt", uri=str(corrupt), digest=open_source(str(corrupt)).digest))
    (root / "operations.yaml").write_text("fleet: {shards: 1}\n")
    command = [sys.executable, "-m", "vipe_dag", "fleet", "run", "--store", str(root), "--until", "keyframes", "--json"]

    def done() -> int:
        return sum((root / name / "keyframes" / "_current.json").exists() for name in video_ids(videos))

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while done() < videos // 2 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = done()
    again = run(command)
    (said,) = json.loads(again.output.splitlines()[-1])["shards"]
    print(f"killed with {finished} of {videos} done; the next run: {json.dumps(said)}; {again.cpu:.1f} s cpu, peak {again.peak_mb:.0f} MB")
    if (said["current"], said["computed"], said["failed"]) != (finished, videos - finished, 1):
        raise AssertionError("the counts do not add up")
    clock.add(Figure("frames and keyframes in a shard, per video", videos, again.seconds / said["computed"], again.cpu / said["computed"]))
    if [failure["stage"] for failure in said["failures"]] != ["frames"] or any(store.current("corrupt", stage.name) for stage in STAGES):
        raise AssertionError("the corrupt video fails at frames, and nothing below is run")

    config, ids, nothing = load_config(), store.names(), Shard(0, 1)
    with clock.measured("run of a shard with nothing to do, per video", videos, share=videos):
        fleet_run.run_shard(store, nothing, ids, config, until="keyframes")
    with clock.measured("the same stages without a shard, per video", videos, share=20):
        for video_id in ids[-20:]:
            run_video(store, video_id, config, until="keyframes")
    pretended(fleet_run, "run_video", lambda *_, **__: None)
    with clock.measured("run of a shard, overhead per video", videos, share=videos):
        fleet_run.run_shard(store, nothing, ids, load_config(overrides=["keyframes.side=256"]), until="keyframes")


def one_video(clock: Clock, folder: Path, times: int = 10) -> None:
    """A video whose six stages are current, once more by Dagster in this process: all but computing, with the pictures for the UI."""
    import dagster as dg

    from assets_defs.instance import add_videos
    from assets_defs.launch import materialize_video
    from resources.listener import LogListener
    from vipe_dag import plots
    from vipe_dag.pipeline import run_video
    from vipe_dag.video import open_source

    root, config, video_id = folder / "one", load_config(), "room"
    store = VideoStore(root)
    store.register(SourceRecord.of(open_source(str(tiny_clip(folder))), video_id=video_id))
    run_video(store, video_id, config)
    with tempfile.TemporaryDirectory(dir=folder) as home, dg.DagsterInstance.local_temp(home) as instance:
        add_videos(instance, [video_id])
        for name, count in (("first", 1), ("next", times), ("no pictures", times)):
            if name == "no pictures":
                pretended(plots, "stage_pictures", lambda *_: {})
            with clock.measured(f"six current stages by Dagster, {name}", 1, share=count):
                for _ in range(count):
                    failure = materialize_video(instance, str(root), config, video_id, STAGES[-1].name, LogListener())
                    if failure is not None:
                        raise AssertionError(failure)
    with clock.measured("six current stages without Dagster", 1, share=times):
        for _ in range(times):
            run_video(store, video_id, config)


def pretended(module: Any, name: str, function: Callable[..., Any]) -> None:
    """Leaves the stages or the pictures out of a run, so that what is around them remains."""
    setattr(module, name, function)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, action="append", help="videos in a catalogue; repeatable; 100,000 when nothing is given")
    parser.add_argument("--ticks", type=int, action="append", help="videos in a tick; repeatable; 10,000 when nothing is given")
    parser.add_argument("--videos", type=int, help="tiny clips in the run of a shard; 200 when nothing is given")
    parser.add_argument("--folder", type=Path, help="where stores are made and removed; a temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    everything = not (arguments.entries or arguments.ticks or arguments.videos)
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        definitions(clock, folder, 4096)
        for entries in arguments.entries or ([100_000] if everything else []):
            catalogue(clock, folder, entries)
        for videos in arguments.ticks or ([10_000] if everything else []):
            tick(clock, folder, videos)
        if arguments.videos or everything:
            one_video(clock, folder)
            shard_run(clock, folder, arguments.videos or 200)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figure) for figure in clock.figures], indent=1) + "\n", encoding="utf-8")
    return 0 if all(figure.met for figure in clock.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
