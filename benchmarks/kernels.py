"""Bundle adjustment against Ceres on the same measurements: time of one Gauss-Newton iteration, and where both end. Then single operations
beside the floor of the machine, on the CPU and on a GPU where there is one (`operations`).

    python -m benchmarks.kernels [--suite adjustment|operations] [--keyframes N]... [--points N] [--radius N] [--iterations N] [--json FILE]

Cameras on a curve; every point of a keyframe is measured, with half a pixel of noise, in the keyframes up to `radius` before and behind
it; poses, structure and the focal length are free. Ceres runs through COLMAP's bundle adjustment (`pip install -e '.[bench]'`), where a
point has three coordinates and is measured in its own keyframe as well, while ours has one inverse depth on an exact ray; its residuals in
the other keyframes are therefore the smaller ones.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vipe_kernels import bundle, cameras
from vipe_kernels.bundle import Edges, Intrinsic, Problem, Schedule, State

WIDTH, HEIGHT, FOCAL = 640, 480, 520.0
_NO_KERNEL = 1e4
"""Scale of the robust kernel, pixels, at which it is a plain square, as Ceres's loss here."""


@dataclass(frozen=True)
class World:
    """A problem, its solution, and a start near it."""

    problem: Problem
    truth: State
    start: State


@dataclass(frozen=True)
class Timed:
    """iterations that lowered the cost, milliseconds of each, and the RMS residual in pixels at the end."""

    iterations: int
    milliseconds: float
    rms: float


def world(keyframes: int, points: int, radius: int, noise: float = 0.5, seed: int = 0) -> World:
    """Cameras that walk and turn slowly past points at depths 2 to 6."""
    rng = np.random.default_rng(seed)
    params = torch.tensor([FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, 0, 0, 0, 0, 0], dtype=torch.float64)
    step = np.arange(keyframes)
    centre = torch.from_numpy(np.stack([0.15 * step, 0.1 * np.sin(0.5 * step), 0.3 * np.sin(0.2 * step)], 1))
    angle = np.stack([0.03 * np.sin(0.7 * step), 0.1 * np.sin(0.3 * step), 0.02 * np.sin(step)], 1)
    angle -= angle[0]
    rotation, _ = bundle.exp_se3(torch.from_numpy(np.concatenate([np.zeros((keyframes, 3)), angle], 1)))
    translation = -(rotation @ centre[..., None])[..., 0]
    uv = torch.from_numpy(rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40), (keyframes, points, 2)))
    inverse_depth = torch.from_numpy(1.0 / rng.uniform(2.0, 6.0, (keyframes, points)))
    truth = State(rotation, translation, inverse_depth, params)
    pairs = [(i, j) for i in range(keyframes) for j in range(keyframes) if 0 < abs(i - j) <= radius]
    source, destination = torch.tensor(pairs).T
    shape = (len(pairs), points)
    free = torch.arange(keyframes) > 0
    empty = Edges.of(source, destination, torch.zeros(*shape, 2).double(), torch.zeros(shape).double())
    intrinsics = (Intrinsic("focal", 0.0, float("inf")),)
    problem = Problem("pinhole", uv, empty, free, torch.ones(keyframes, dtype=torch.bool), intrinsics)
    target, front = bundle.transfer(problem, truth)
    inside = front & (target >= 0).all(-1) & (target <= torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])).all(-1)
    target = target + noise * torch.from_numpy(rng.standard_normal(tuple(target.shape)))
    problem = Problem("pinhole", uv, Edges(empty.source, empty.destination, target, inside.double()), free, problem.free_depth, intrinsics)
    move = 0.004 * torch.from_numpy(rng.standard_normal((keyframes, 6))) * free[:, None]
    r, t = bundle.exp_se3(move)
    shifted = (r @ translation[..., None])[..., 0] + t
    rough = inverse_depth * torch.from_numpy(np.exp(0.05 * rng.standard_normal((keyframes, points))))
    guess = params.clone()
    guess[:2] *= 1.03
    return World(problem, truth, State(r @ rotation, shifted, rough, guess))


def rms(problem: Problem, state: State) -> float:
    """Root mean square of the reprojection error in pixels, over the measurements in other keyframes than the point's own."""
    distance = bundle.residuals(problem, state)
    return float(distance[torch.isfinite(distance)].square().mean().sqrt())


def run_ours(made: World, iterations: int) -> Timed:
    schedule = Schedule((_NO_KERNEL,), (iterations,), tolerance=-1.0)
    bundle.solve(made.problem, made.start, Schedule((_NO_KERNEL,), (1,), tolerance=-1.0))
    started = time.perf_counter()
    state, report = bundle.solve(made.problem, made.start, schedule)
    seconds = time.perf_counter() - started
    return Timed(report.steps, 1e3 * seconds / max(report.steps, 1), rms(made.problem, state))


def run_ceres(made: World, iterations: int, threads: int) -> Timed:
    import pycolmap

    model, ids = _reconstruction(made)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_extra_params = False
    solver = options.ceres.solver_options
    solver.max_num_iterations, solver.num_threads = iterations, threads
    solver.function_tolerance = solver.gradient_tolerance = solver.parameter_tolerance = 0.0
    options.ceres.min_num_residuals_for_cpu_multi_threading = 0
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.images:
        config.add_image(image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_bundle_adjuster(options, config, model)
    started = time.perf_counter()
    summary = adjuster.solve()
    seconds = time.perf_counter() - started
    found = re.search(r"Iterations: (\d+)", summary.brief_report())
    count = max(1, int(found.group(1)) - 1) if found else iterations  # its report counts the evaluation of the start
    return Timed(count, 1e3 * seconds / count, _rms_of(model, ids, made))


def _reconstruction(made: World) -> tuple[Any, list[list[int]]]:
    """The start as a COLMAP model, and the id of each point by keyframe and position (-1: measured nowhere, so not part of it)."""
    import pycolmap

    problem, state = made.problem, made.start
    keyframes, points = problem.uv.shape[:2]
    model = pycolmap.Reconstruction()
    f, _, cx, cy = state.params[:4].tolist()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=WIDTH, height=HEIGHT, params=[f, cx + 0.5, cy + 0.5], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    seen: list[list[tuple[float, float]]] = [[(float(u), float(v)) for u, v in rows] for rows in problem.uv]
    tracks = [[[(i, p)] for p in range(points)] for i in range(keyframes)]
    edges = problem.edges
    for i, j, target, weight in zip(edges.source.tolist(), edges.destination.tolist(), edges.target, edges.weight, strict=True):
        for p in torch.nonzero(weight).ravel().tolist():
            tracks[i][p].append((j, len(seen[j])))
            seen[j].append((float(target[p, 0]), float(target[p, 1])))
    for k in range(keyframes):
        positions = np.array(seen[k]) + 0.5
        image = pycolmap.Image(name=str(k), keypoints=positions, camera_id=1, image_id=k + 1)
        pose = np.concatenate([state.rotation[k].numpy(), state.translation[k].numpy()[:, None]], 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    ids: list[list[int]] = []
    for i, places in enumerate(_points(problem, state)):
        ids.append([])
        for p, place in enumerate(places):
            elements = [pycolmap.TrackElement(k + 1, index) for k, index in tracks[i][p]]
            ids[-1].append(model.add_point3D(place, pycolmap.Track(elements)) if len(elements) > 1 else -1)
    return model, ids


def _points(problem: Problem, state: State) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(K, P, 3) world points."""
    rays = cameras.unproject(problem.uv, state.params, problem.model)
    local: Tensor = rays / state.inverse_depth[..., None] - state.translation[:, None]
    return np.asarray((local @ state.rotation).numpy(), np.float64)


def _rms_of(model: Any, ids: list[list[int]], made: World) -> float:
    """`rms` of a COLMAP model."""
    images, points = model.images, model.points3D
    f, cx, cy = next(iter(model.cameras.values())).params
    poses = [images[k + 1].cam_from_world().matrix() for k in range(len(ids))]
    squared, count = 0.0, 0
    edges = made.problem.edges
    for i, j, target, weight in zip(edges.source.tolist(), edges.destination.tolist(), edges.target.numpy(), edges.weight, strict=True):
        used = torch.nonzero(weight).ravel().tolist()
        world_points = np.array([points[ids[i][p]].xyz for p in used])
        local = world_points @ poses[j][:, :3].T + poses[j][:, 3]
        error = f * local[:, :2] / local[:, 2:] + [cx - 0.5, cy - 0.5] - target[used]
        squared, count = squared + float((error**2).sum()), count + len(used)
    return float(np.sqrt(squared / count))


def main() -> int:
    from benchmarks import operations  # which takes its problem from here

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = ("adjustment", "operations")
    parser.add_argument("--suite", choices=suites, action="append", help="what to run; repeatable; both when not given")
    parser.add_argument("--keyframes", type=int, action="append", help="size of a problem; repeatable; 10, 40 and 150 when not given")
    parser.add_argument("--points", type=int, default=300, help="per keyframe")
    parser.add_argument("--radius", type=int, default=3, help="how many keyframes before and behind see a point")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="of both")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    record: dict[str, Any] = {}
    for suite in asked.suite or suites:
        record[suite] = against_ceres(asked) if suite == "adjustment" else operations.record()
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def against_ceres(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Problems of each size asked for, printed line by line."""
    record = []
    print(f"{'keyframes':>10}{'measurements':>14}{'ours, ms':>10}{'Ceres, ms':>11}{'ratio':>8}{'ours, px':>10}{'Ceres, px':>11}")
    for keyframes in asked.keyframes or (10, 40, 150):
        made = world(keyframes, asked.points, asked.radius)
        ours, ceres = run_ours(made, asked.iterations), run_ceres(made, asked.iterations, asked.threads)
        count = int((made.problem.edges.weight > 0).sum())
        ratio = ours.milliseconds / ceres.milliseconds
        print(
            f"{keyframes:10}{count:14}{ours.milliseconds:10.1f}{ceres.milliseconds:11.1f}{ratio:8.2f}{ours.rms:10.4f}{ceres.rms:11.4f}",
            flush=True,
        )
        record.append({"keyframes": keyframes, "measurements": count, "ours": asdict(ours), "ceres": asdict(ceres), "ratio": ratio})
    return record


if __name__ == "__main__":
    sys.exit(main())
