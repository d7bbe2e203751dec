"""Files dropped all at once into a watched folder, while Dagster's daemon takes them in and is ended by SIGKILL half-way.

    python -m benchmarks.ingestion [--files N] [--kills N] [--folder DIR]

Everything is as a user would have it: Dagster's daemon, the sensors `ingest` and `rerun`, files that are videos. Runs are requested and
stay in the queue. Exits 1 unless each file became one partition, in the natural order of the paths, and no video was requested twice.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import psutil

from assets_defs.instance import open_instance, unfinished_runs
from assets_defs.partitions import VIDEOS
from assets_defs.rerun import PARTITION_TAG
from benchmarks.fleet import tiny_clip
from benchmarks.processes import process, wait
from vipe_dag.ingest import OPENED, read_ledger
from vipe_dag.placement import HOME_VARIABLE, ROOT_VARIABLE
from vipe_dag.store import VideoStore

HOME = "telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 0}}\n"
FILES = 50
"""Of one tick: the default. The daemon is killed in the middle of one."""
QUEUE = 100
"""Runs that are requested at most: a queued one costs a tenth of a second."""
QUIET_SECONDS = 10.0
"""Several ticks: what would be taken in or requested twice shows."""


def drop(folder: Path, inbox: Path, files: int) -> list[str]:
    """So many videos of different contents, moved into the inbox in one step; their names without extension, in natural order."""
    content = tiny_clip(folder).read_bytes()
    names = [f"v{number}" for number in range(files)]
    made = folder / "made"
    made.mkdir()
    for number, name in enumerate(names):
        (made / f"{name}.mp4").write_bytes(content + struct.pack(">I4sQ", 16, b"free", number))  # a box that players pass over
    made.rename(inbox / "dropped")
    return names


def family_seconds(found: psutil.Process) -> float:
    """On the processor, of a process, its children, and those of them that have ended."""
    times = [member.cpu_times() for member in (found, *found.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def scenario(folder: Path, files: int, kills: int) -> bool:
    """Carries it out, and prints what happened. Returns whether all of it is as it should be."""
    root, home, inbox = (folder / name for name in ("store", "home", "inbox"))
    for place in (root, home, inbox):
        place.mkdir()
    (home / "dagster.yaml").write_text(HOME)
    rerun = f"rerun: {{enabled: true, every_seconds: 5, queue: {QUEUE}}}\n"
    (root / "operations.yaml").write_text(f"ingest: {{location: {inbox}, every_seconds: 1, files_per_tick: {FILES}}}\n{rerun}")
    environment = {**os.environ, ROOT_VARIABLE: str(root), HOME_VARIABLE: str(home)}
    daemon = [sys.executable, "-m", "dagster._daemon", "run", "-m", "assets_defs.definitions", "--log-level", "warning"]
    store, log, began, spent = VideoStore(root), folder / "daemon.log", time.monotonic(), 0.0
    names = drop(folder, inbox, files)
    with open_instance(home) as instance:
        for life in range(1, kills + 2):
            enough = min(files, files * life // (kills + 1) + FILES // 2)
            with process(daemon, environment, log) as running:
                wait(f"{enough} files are taken in", lambda enough=enough: len(partitions(instance)) >= enough, running)  # type: ignore[misc]
                if life > kills:
                    wait("all of them are remembered", lambda: not store.note(OPENED), running)
                    time.sleep(QUIET_SECONDS)
                spent += family_seconds(running)
            if life <= kills:
                at = Path((store.note(OPENED) or b"").decode()).name or "no file"
                print(f"killed with {len(partitions(instance))} of {files} partitions, {at} open", flush=True)
        return told(instance, store, names, time.monotonic() - began, spent)


def partitions(instance: dg.DagsterInstance) -> list[str]:
    return list(instance.get_dynamic_partitions(VIDEOS))


def told(instance: dg.DagsterInstance, store: VideoStore, names: list[str], seconds: float, spent: float) -> bool:
    """Prints what became of the files and whether that is right."""
    videos, ledger = partitions(instance), read_ledger(store)
    states = Counter(entry.state for entry in ledger.files.values())
    requested = Counter(run.tags[PARTITION_TAG] for run in instance.get_runs())
    ordered = [video_id.rpartition("-")[0] for video_id in videos] == names
    print(
        f"{len(videos)} partitions, {len(set(videos))} of them different, {'in' if ordered else 'NOT in'} natural order; "
        f"files by state: {dict(states)}; {len(requested)} videos requested, none more than {max(requested.values(), default=0)} times; "
        f"{seconds:.0f} s, {spent:.1f} s cpu of the daemon"
    )
    once = len(set(videos)) == len(videos) == len(names) and sorted(videos) == store.names()
    queued = set(requested.values()) == {1} and len(unfinished_runs(instance)) == len(requested)
    return ordered and once and queued and states == {"taken": len(names)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="videos that are dropped")
    parser.add_argument("--kills", type=int, default=1, help="times that the daemon is killed, evenly spread over the files")
    parser.add_argument("--folder", type=Path, help="where the store is made and removed; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ingestion-") as name:
        try:
            return 0 if scenario(Path(name), arguments.files, arguments.kills) else 1
        except (RuntimeError, TimeoutError):
            print((Path(name) / "daemon.log").read_text(errors="replace")[-4000:], file=sys.stderr)
            raise


if __name__ == "__main__":
    sys.exit(main())
