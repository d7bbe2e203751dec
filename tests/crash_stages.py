"""Run as a script: computes each stage, and a catalogue, again and again, killed each time EVERY file operations later, until it survives.

`python crash_stages.py BASE CLIP EVERY` keeps of each WORK (a stage, or `catalogue`) BASE/WORK.jsonl: what readers saw at first and after
each kill. The next attempt works on what the one before left. Stages but `frames` take no time; what is left, and is hit, is the writing.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av  # noqa: F401  this and the next ones are imported before the forks, so that each child only works
import dask.array  # noqa: F401
import imagecodecs  # noqa: F401
import numpy as np
import pyarrow.dataset  # noqa: F401

import quick_stages
import vipe_dag.stage_runs
import vipe_dag.stages.frames
import vipe_dag.store.reader
import vipe_dag.store.writer
import vipe_dag.video  # noqa: F401
from crash_writer import in_child
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.fleet import merged
from vipe_dag.fleet.catalogue import write_catalogue
from vipe_dag.fleet.merged import merge
from vipe_dag.fleet.reading import Fleet
from vipe_dag.fleet.shards import Shard
from vipe_dag.graph import STAGES
from vipe_dag.pipeline import run_video
from vipe_dag.store import VideoStore
from vipe_dag.store.pointer import COMMIT
from vipe_dag.video import SourceRecord, open_source

VIDEO = "slide"
CATALOGUE = "catalogue"
CHANGES = {
    "frames": "frames.long_side=320",
    "keyframes": "keyframes.side=256",
    "intrinsics": "intrinsics.grid_columns=24",
    "ba_poses": "ba_poses.grid_columns=24",
    "dense_depth": "dense_depth.max_gap=20",
    "aligned_depth": "aligned_depth.smoothing_rows=21",
}
"""What makes just this stage, and those below it, stale."""
ONE = Shard(0, 1)


def fill(root: Path, clip: Path) -> None:
    """A video with all its results, and its catalogue."""
    store, config = VideoStore(root), load_config()
    store.register(SourceRecord.of(open_source(str(clip)), video_id=VIDEO))
    run_video(store, VIDEO, config)
    catalogue(root, config)


def catalogue(root: Path, config: PipelineConfig) -> None:
    store = VideoStore(root)
    write_catalogue(store, ONE, store.names(), config)
    merge(store, [ONE])


def compute(root: Path, stage: str, config: PipelineConfig) -> None:
    run_video(VideoStore(root), VIDEO, config, until=stage)


def note(root: Path, work: str) -> None:
    """Adds what a reader sees now to the list of it."""
    store = VideoStore(root)
    seen = seen_catalogue(store) if work == CATALOGUE else seen_result(store, work)
    with root.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(seen) + "\n")


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


def main(base: Path, clip: Path, every: int) -> None:
    quick_stages.stand_in()
    os.fsync = lambda _: None  # it decides what outlives the machine, not the process
    merged.LOOSE = 1
    plain, changed = load_config(), {name: load_config(overrides=[change]) for name, change in CHANGES.items()}
    gc.freeze()
    in_child(base, partial(fill, base / "filled", clip), None)
    for work in (*(stage.name for stage in STAGES), CATALOGUE):
        root, number, survived = base / work, 1 - every, False
        shutil.copytree(base / "filled", root)
        task = partial(catalogue, root, plain) if work == CATALOGUE else partial(compute, root, work, changed[work])
        while not survived:
            number += every
            survived = in_child(root, task, number, partial(note, root, work))
        in_child(root, partial(note, root, work), None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
