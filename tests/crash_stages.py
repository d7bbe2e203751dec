"""Run as a script: computes each stage, and a catalogue, and kills it at each of its writes.

`python crash_stages.py BASE CLIP` keeps of each WORK (a stage, or `catalogue`) BASE/WORK.jsonl: what readers saw at first, after each kill,
and at last; and BASE/WORK_again.jsonl: what a whole new run made of some of the kills, and of all that left a result without its pointer.
A stage runs up to where it begins to write. From there a process is forked off for each write, goes on to that write and is killed there
by SIGKILL. Stages but `frames` take no time; what is left, and is hit, is the writing.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from hashlib import blake2b
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import av  # noqa: F401  this and the next ones are imported before the forks, so that each child only works
import dask.array
import imagecodecs  # noqa: F401
import numpy as np
import pyarrow.dataset  # noqa: F401
import zarr.core.sync

import quick_stages
import vipe_dag.stage_runs
import vipe_dag.stages.frames
import vipe_dag.store.reader
import vipe_dag.video  # noqa: F401
from crash_writer import die_before_change, in_child, survived
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.fleet import merged
from vipe_dag.fleet.catalogue import write_catalogue
from vipe_dag.fleet.merged import merge
from vipe_dag.fleet.reading import Fleet
from vipe_dag.fleet.shards import Shard
from vipe_dag.memory import PeakMemory
from vipe_dag.pipeline import run_video
from vipe_dag.store import VideoStore
from vipe_dag.store.pointer import COMMIT
from vipe_dag.store.writer import Generation
from vipe_dag.video import SourceRecord, open_source

VIDEO = "slide"
CATALOGUE = "catalogue"
CHANGES = {
    "frames": "frames.long_side=320",
    "keyframes": "keyframes.side=256",
    "intrinsics": "intrinsics.grid_columns=20",
    "ba_poses": "ba_poses.grid_columns=20",
    "dense_depth": "dense_depth.max_gap=20",
    "aligned_depth": "aligned_depth.smoothing_rows=21",
}
"""What makes just this stage, and those below it, stale."""
ONE = Shard(0, 1)
AGAIN = 40
"""Kills between two that are followed by a new run."""


def fill(root: Path, clip: Path) -> None:
    """A video with all its results, and its catalogue."""
    store, config = VideoStore(root), load_config()
    store.register(SourceRecord.of(open_source(str(clip)), video_id=VIDEO))
    run_video(store, VIDEO, config)
    write_table(root, config)


def write_table(root: Path, config: PipelineConfig) -> None:
    store = VideoStore(root)
    write_catalogue(store, ONE, store.names(), config)
    merge(store, [ONE])


def compute(root: Path, stage: str, config: PipelineConfig) -> None:
    run_video(VideoStore(root), VIDEO, config, until=stage)


def compute_killed(root: Path, stage: str, config: PipelineConfig) -> None:
    """Computes a stage; where it starts to write, `die_at_each_write` takes over."""
    begin = VideoStore.begin

    def begun(store: VideoStore, *arguments: Any, **named: Any) -> AbstractContextManager[Generation]:
        replaced.stop()
        die_at_each_write(root, stage, partial(compute, stage=stage, config=config))
        return begin(store, *arguments, **named)

    replaced = patch.object(VideoStore, "begin", begun)
    replaced.start()
    compute(root, stage, config)


def write_table_killed(root: Path, config: PipelineConfig) -> None:
    die_at_each_write(root, CATALOGUE, partial(write_table, config=config))
    write_table(root, config)


def die_at_each_write(root: Path, work: str, again: Callable[[Path], None]) -> None:
    """Forks, and returns in a new process for each of the writes that follow, which ends there, until one survives; this process ends too.

    After each, what a reader sees is noted, and after some, in a copy, what there is when the work was done again from its beginning.
    """
    end_threads()
    ask, answer = Pipe()
    reader = os.fork()
    if reader == 0:
        ask.close()
        answer_readers(answer, work)
    ask.send(root)
    ask.recv()
    results = root / VIDEO / work  # none of the catalogue, whose litter stays
    before = set(results.glob("*"))
    for number in count(1):
        child = os.fork()
        if child == 0:
            die_before_change(number, root)
            return
        if survived(child, root):
            os.kill(reader, signal.SIGKILL)
            os._exit(0)
        ask.send(root)
        if ask.recv() or number % AGAIN == 0:
            copy = root.with_name(f"{work}_again")
            shutil.copytree(root, copy)
            in_child(copy, partial(again, copy), None)
            ask.send(copy)
            ask.recv()
            shutil.rmtree(copy)
        for litter in set(results.glob("*")) - before:
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()


def end_threads() -> None:
    """No thread is left that could hold a lock in a fork."""
    zarr.core.sync.cleanup_resources()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


def answer_readers(questions: Connection, work: str) -> NoReturn:
    """Notes what a reader sees below each path that comes, and answers whether a result waits for nothing but its pointer."""
    while True:
        questions.send(note(questions.recv(), work))


def note(root: Path, work: str) -> bool:
    store = VideoStore(root)
    seen = seen_catalogue(store) if work == CATALOGUE else seen_result(store, work)
    with root.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(seen) + "\n")
    return work != CATALOGUE and len(store.generations(VIDEO, work)) > 1


def seen_result(store: VideoStore, stage: str) -> dict[str, Any]:
    """Which generation, what it says that it is, and a digest of all its values, read to the last byte."""
    pointer, dataset = store.current(VIDEO, stage), store.open(VIDEO, stage).load()
    assert pointer is not None
    values = blake2b()
    for name in sorted(map(str, dataset.variables)):
        array = dataset[name].values
        values.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    inside = store.group(VIDEO, stage).attrs[COMMIT]["fingerprint"]  # type: ignore[index,call-overload]
    return {"pointer": pointer.fingerprint, "inside": inside, "values": values.hexdigest()}


def seen_catalogue(store: VideoStore) -> dict[str, Any]:
    """What questions about all videos are answered."""
    fleet = Fleet(store, 1)
    return {"rows": fleet.select(["video_id", "frames"]).to_dict("records"), "poses": fleet.pooled()["cam2world"].values.tolist()}


def main(base: Path, clip: Path) -> None:
    quick_stages.stand_in()
    os.fsync = lambda _: None  # it decides what outlives the machine, not the process
    PeakMemory._watch = lambda _: None  # type: ignore[method-assign]  # its thread would go on for as long as the stage
    merged.LOOSE = 1
    dask.config.set(scheduler="synchronous")  # threads of a pool are not there after a fork
    plain, changed = load_config(), {name: load_config(overrides=[change]) for name, change in CHANGES.items()}
    gc.freeze()
    in_child(base, partial(fill, base / "filled", clip), None)
    for work in (*CHANGES, CATALOGUE):
        root = base / work
        shutil.copytree(base / "filled", root)
        task = partial(write_table_killed, root, plain) if work == CATALOGUE else partial(compute_killed, root, work, changed[work])
        in_child(root, task, None)
        in_child(root, partial(note, root, work), None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
