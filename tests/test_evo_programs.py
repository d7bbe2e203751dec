"""Our numbers equal those of evo's own command line, on files that we wrote: real trajectories where they are at hand, and a noisy one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vipe_dag import evaluate
from vipe_dag.export import tum

REAL = ("kitti_seq2",)
SYNTHETIC = "noisy_walk"


@dataclass(frozen=True)
class Files:
    """A reference, and an estimate in another world whose times are off by a few milliseconds."""

    reference: Path
    estimate: Path


@pytest.fixture(scope="module", params=[SYNTHETIC, *REAL])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == SYNTHETIC:
        rng = np.random.default_rng(0)
        poses = np.tile(np.eye(4), (60, 1, 1))
        poses[:, :3, 3] = np.cumsum(rng.normal(0, 0.1, (60, 3)), axis=0)
        poses[:, :3, :3] = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (60, 3)), axis=0)).as_matrix()
        time = np.arange(60) / 20
    else:
        time, poses = tum.read(request.getfixturevalue("real_clips") / request.param / "groundtruth.txt")
    return Files(tum.write(folder / "reference.txt", time, poses), _estimate(folder, time, poses))


def _estimate(folder: Path, time: np.ndarray, poses: np.ndarray) -> Path:
    """Every other pose, drifting and trembling, told in another world and scale."""
    rng, count = np.random.default_rng(1), len(poses)
    size = np.ptp(poses[:, :3, 3], axis=0).max()
    moved = poses.copy()
    moved[:, :3, 3] += size * (np.cumsum(rng.normal(0, 0.002, (count, 3)), axis=0) + rng.normal(0, 0.002, (count, 3)))
    moved[:, :3, :3] = moved[:, :3, :3] @ Rotation.from_rotvec(rng.normal(0, 0.01, (count, 3))).as_matrix()
    turn = Rotation.from_rotvec([0.3, -0.8, 1.1]).as_matrix()
    moved[:, :3, :3] = turn @ moved[:, :3, :3]
    moved[:, :3, 3] = 0.4 * moved[:, :3, 3] @ turn.T + [1.0, 2.0, -3.0]
    late = 0.1 * np.median(np.diff(time))
    return tum.write(folder / "estimate.txt", time[::2] + late, moved[::2])


def evo(program: str, files: Files, *options: str) -> dict[str, float]:
    """The statistics that evo_ape or evo_rpe saves, with full precision."""
    out = files.estimate.with_name(f"{program}{'_'.join(options).replace('-', '')}.zip")
    largest = str(evaluate.default_tolerance(tum.read(files.estimate)[0]))
    command = ["tum", str(files.reference), str(files.estimate), "--t_max_diff", largest, *options, "--save_results", str(out)]
    environment = {**os.environ, "HOME": str(files.estimate.parent), "MPLBACKEND": "Agg"}
    done = subprocess.run([Path(sys.executable).with_name(program), *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out) as archive:
        return dict(json.loads(archive.read("stats.json")))


def ours(files: Files, alignment: evaluate.Alignment = "sim3") -> evaluate.TrajectoryErrors:
    return evaluate.compare(*tum.read(files.estimate), *tum.read(files.reference), alignment=alignment)[0]


@pytest.mark.parametrize(("alignment", "options"), [("sim3", ["-as"]), ("se3", ["-a"])])
def test_position_errors_are_those_of_evo_ape(files: Files, alignment: evaluate.Alignment, options: list[str]) -> None:
    theirs, found = evo("evo_ape", files, *options), ours(files, alignment)
    for name in ("rmse", "mean", "median", "max"):
        assert getattr(found, f"ate_{name}") == pytest.approx(theirs[name], rel=1e-6)


def test_rotation_errors_are_those_of_evo_ape(files: Files) -> None:
    theirs, found = evo("evo_ape", files, "-as", "-r", "angle_deg"), ours(files)
    assert found.rotation_mean_deg == pytest.approx(theirs["mean"], rel=1e-6)
    assert found.rotation_max_deg == pytest.approx(theirs["max"], rel=1e-6)


@pytest.mark.parametrize(("relation", "name"), [("trans_part", "rpe_translation"), ("angle_deg", "rpe_rotation_deg")])
def test_relative_errors_are_those_of_evo_rpe(files: Files, relation: str, name: str) -> None:
    theirs = evo("evo_rpe", files, "-as", "-r", relation, "--delta", "1", "--delta_unit", "f")
    assert getattr(ours(files), name) == pytest.approx(theirs["rmse"], rel=1e-6)
