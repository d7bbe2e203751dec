"""The engines, each a function of a prepared sequence; run in a process of its own: python -m benchmarks.engines ENGINE FOLDER OUT.

`vipe-dag` is the program up to ba_poses on an unknown camera, what it stores included; `vipe-dag-given` has the reference camera given.
The peer is COLMAP through pycolmap: SIFT, sequential matching, SIMPLE_RADIAL, one camera for all; `colmap-features` leaves a database
beside the answer, which both mappers (`colmap`, incremental, and `colmap-global`) start from.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.estimates import Estimate
from benchmarks.sequences import read_truth
from vipe_dag.calibration import Calibration

OURS, GIVEN = "vipe-dag", "vipe-dag-given"
FEATURES, INCREMENTAL, GLOBAL = "colmap-features", "colmap", "colmap-global"
MAPPERS = (INCREMENTAL, GLOBAL)
_REHEARSAL = 6
_QUICK = ("intrinsics.starts=[0.9]", "intrinsics.windows=1", "intrinsics.grid_columns=16", "ba_poses.grid_columns=16")
"""Frames on which, and the overrides with which, the engine is run before the clock starts: compiled code is then loaded."""


def program(folder: Path, given: Calibration | None, overrides: Sequence[str] = (), until: float | None = None) -> Estimate:
    """The program, from the pictures on disk to cameras in a store, with the default configuration but for `overrides`.

    until: seconds of the sequence after which no picture is taken.
    """
    from vipe_dag.config import load_config
    from vipe_dag.pipeline import run_video
    from vipe_dag.result_arrays import ba_poses_from
    from vipe_dag.store import VideoStore, open_video
    from vipe_dag.video import Clip, SourceRecord, open_source

    with tempfile.TemporaryDirectory() as root:
        store, name = VideoStore(root), "sequence"
        store.register(SourceRecord.of(open_source(str(folder)), Clip(end=until), given, name))
        started = time.perf_counter()
        run_video(store, name, load_config(overrides=overrides), until="ba_poses")
        seconds = time.perf_counter() - started
        frames, poses = store.frames(name), ba_poses_from(open_video(store, name)["ba_poses"].to_dataset())
        seen, camera = poses.tracked, Calibration(poses.camera_model, poses.params, frames.width, frames.height)
        flags = tuple(dict.fromkeys(poses.flags))
        return Estimate(
            len(frames), frames.time[seen], poses.cam2world[seen], poses.segment[seen], poses.position_std[seen], camera, flags, seconds
        )


def run_ours(folder: Path, out: Path, given: bool) -> None:
    calibration = read_truth(folder).camera if given else None
    times = sorted(_times(folder).values())
    rehearsed = times[_REHEARSAL] - times[0] if len(times) > _REHEARSAL else None
    program(folder, calibration, _QUICK, rehearsed)
    program(folder, calibration).save(out)


def _times(folder: Path) -> dict[str, float]:
    lines = [line.split() for line in (folder / "rgb.txt").read_text().splitlines()]
    return {Path(file).name: float(stamp) for stamp, file in lines}


def _database(out: Path) -> Path:
    return out.with_suffix(".db")


def run_features(folder: Path, out: Path) -> None:
    import pycolmap

    pycolmap.set_random_seed(0)
    started = time.perf_counter()
    database = _database(out)
    database.unlink(missing_ok=True)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL"
    pycolmap.extract_features(
        database, folder / "rgb", camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader, device=pycolmap.Device.cpu
    )
    pycolmap.match_sequential(database, device=pycolmap.Device.cpu)
    _nothing(len(_times(folder)), time.perf_counter() - started).save(out)


def _nothing(frames: int, seconds: float) -> Estimate:
    return Estimate(frames, np.zeros(0), np.zeros((0, 4, 4)), np.zeros(0, np.int32), np.zeros(0), None, (), seconds)


def run_mapper(folder: Path, out: Path, engine: str, features: Path) -> None:
    """The largest of the models found."""
    import pycolmap

    pycolmap.set_random_seed(0)
    times = _times(folder)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        database = Path(work) / "database.db"
        shutil.copyfile(_database(features), database)
        if engine == GLOBAL:
            # its own first step: focal lengths from the view graph, without which the mapper refuses guesses
            pycolmap.calibrate_view_graph(database)
            models = pycolmap.global_mapping(database, folder / "rgb", work)
        else:
            models = pycolmap.incremental_mapping(database, folder / "rgb", work)
    seconds = Estimate.load(features).seconds + time.perf_counter() - started
    if not models:
        _nothing(len(times), seconds).save(out)
        return
    model = max(models.values(), key=lambda found: found.num_reg_images())
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: times[image.name])
    cam2world = np.tile(np.eye(4), (len(images), 1, 1))
    cam2world[:, :3] = [image.cam_from_world().inverse().matrix() for image in images]
    stamps = np.array([times[image.name] for image in images])
    camera = next(iter(model.cameras.values()))
    f, cx, cy, k = camera.params
    # COLMAP has pixel centres at halves
    params = np.array([f, f, cx - 0.5, cy - 0.5, k, 0, 0, 0, 0])
    lens = Calibration("brown", params, camera.width, camera.height)
    untold = np.full(len(images), np.nan)
    Estimate(len(times), stamps, cam2world, np.zeros(len(images), np.int32), untold, lens, (), seconds).save(out)


def main() -> None:
    engine, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if engine in (OURS, GIVEN):
        run_ours(folder, out, engine == GIVEN)
    elif engine == FEATURES:
        run_features(folder, out)
    else:
        run_mapper(folder, out, engine, Path(sys.argv[4]))


if __name__ == "__main__":
    main()
