"""The pipeline on real clips, as a user runs it: one command, one table of accuracy, time and memory, each figure beside its bound.

    python -m benchmarks.clips --data DIR [--out DIR] [--case NAME]... [--json FILE]

DIR holds the clips named in CASES; each folder has rgb/, rgb.txt and, where there is one, groundtruth.txt in TUM format. Exits 1 when a
bound is missed. Trajectories are compared by evo itself, after one similarity transform, apart from the code that they judge.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run

PROGRAM = (sys.executable, "-m", "vipe_dag")
MEMORY_BOUND_MB = 2000.0
LARGEST_TIME_DIFFERENCE = 0.02
"""Seconds between an estimated and a reference pose that are taken for the same."""


@dataclass(frozen=True)
class Bound:
    """A metric and where it has to lie, ends included."""

    metric: str
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class Case:
    """A clip under the folder of data, options of `vipe-dag run`, the bounds it has to meet and the flags it has to carry."""

    name: str
    source: str
    bounds: tuple[Bound, ...] = ()
    flags: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    reference: bool = False


ALL_POSED = Bound("posed", low=1.0)
CASES = (
    Case("kitti", "kitti_seq2", (ALL_POSED, Bound("ate_percent", high=2.0)), reference=True),
    Case("7scenes", "7scenes_seq1000", (ALL_POSED, Bound("ate", high=0.04)), options=("--end", "9.98"), reference=True),
    Case("figurine", "figurine_orbit", (ALL_POSED, Bound("ate_percent", high=2.0)), reference=True),
    Case("fox", "fox_phone", reference=True),
    Case("dog", "clips/dog-example.mp4", (Bound("focal_share", 0.73, 0.82), Bound("seconds", high=90.0))),
    Case("static", "euroc_v101_micro", (Bound("known_depth", high=0.0), Bound("spread", high=1e-9)), flags=frozenset({"no_parallax"})),
    Case("tennis", "davis_tennis"),
    Case("lady", "davis_lady_running"),
    Case("cosmos", "clips/cosmos-example.mp4"),
)


@dataclass(frozen=True)
class Figure:
    """One measured metric of a case; `met` is None where no bound is set."""

    case: str
    metric: str
    value: float
    met: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What a case came to: its figures, the flags of the video, or why it failed."""

    case: str
    figures: tuple[Figure, ...]
    flags: tuple[str, ...]
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and all(figure.met is not False for figure in self.figures)


def run_case(case: Case, data: Path, store: Path) -> Outcome:
    """Run the pipeline on a case in a process of its own and measure what it left in the store."""
    source = data / case.source
    command = [*PROGRAM, "run", str(source), "--store", str(store), *case.options, "--json"]
    finished = run(command)
    lines = finished.output.strip().splitlines()
    if not lines:
        return Outcome(case.name, (), (), finished.problem or "no answer")
    video = json.loads(lines[-1])["videos"][0]
    flags = tuple(video["flags"])
    if video["status"] == "failed":
        return Outcome(case.name, (), flags, video["error"])
    measured = {"seconds": finished.seconds, "peak_mb": finished.peak_mb, **measure(store, video["video_id"])}
    if case.reference:
        measured |= trajectory_error(store, video["video_id"], source / "groundtruth.txt")
    missing = case.flags - set(flags)
    return Outcome(case.name, tuple(judged(case, measured)), flags, f"not flagged {', '.join(sorted(missing))}" if missing else "")


def judged(case: Case, measured: dict[str, float]) -> Iterator[Figure]:
    """Each metric with the verdict of its bound."""
    bounds = {bound.metric: bound for bound in (Bound("peak_mb", high=MEMORY_BOUND_MB), *case.bounds)}
    for metric, value in measured.items():
        bound = bounds.get(metric)
        yield Figure(case.name, metric, value, None if bound is None else bool(bound.low <= value <= bound.high))


def measure(store: Path, video_id: str) -> dict[str, float]:
    """posed: share of frames tracked; focal_share: fx over width; spread: RMS distance of the cameras from their mean, in the unit of the
    poses; known_depth: share of pixels with aligned depth."""
    import vipe_dag

    video = vipe_dag.open_video(str(store), video_id)
    poses, depth = video["ba_poses"].dataset, video["aligned_depth"].dataset["z_depth"]
    tracked = poses["tracked"].values
    centres = poses["cam2world"].values[tracked, :3, 3]
    known = sum(int(np.isfinite(depth[row].values).sum()) for row in range(depth.shape[0])) / depth.size
    return {
        "posed": float(tracked.mean()),
        "focal_share": float(poses["params"].values[0] / video["intrinsics"].attrs["width"]),
        "spread": float(np.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean())) if len(centres) else 0.0,
        "known_depth": known,
    }


def trajectory_error(store: Path, video_id: str, reference: Path) -> dict[str, float]:
    """ate: RMSE of positions after a similarity transform, in the unit of the reference; ate_percent: of the length of its path."""
    from evo.core import metrics, sync
    from evo.tools import file_interface

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "estimate.txt"
        subprocess.run([*PROGRAM, "export", "tum", video_id, str(file), "--store", str(store)], check=True, capture_output=True)
        found = file_interface.read_tum_trajectory_file(file)
    known = file_interface.read_tum_trajectory_file(reference)
    truth, estimate = sync.associate_trajectories(known, found, max_diff=LARGEST_TIME_DIFFERENCE)
    estimate.align(truth, correct_scale=True)
    error = metrics.APE(metrics.PoseRelation.translation_part)
    error.process_data((truth, estimate))
    ate = float(error.get_statistic(metrics.StatisticsType.rmse))
    return {"compared_poses": float(truth.num_poses), "ate": ate, "ate_percent": 100.0 * ate / truth.path_length}


def show(outcomes: list[Outcome]) -> None:
    """One line per case; a figure that misses its bound carries an exclamation mark."""
    metrics = ("seconds", "peak_mb", "posed", "focal_share", "ate", "ate_percent", "known_depth", "spread")
    print(f"{'case':10}", *(f"{metric:>12}" for metric in metrics), " flags")
    for outcome in outcomes:
        found = {figure.metric: figure for figure in outcome.figures}
        cells = [_cell(found.get(metric)) for metric in metrics]
        print(
            f"{outcome.case:10}",
            *(f"{cell:>12}" for cell in cells),
            "",
            ", ".join(outcome.flags),
            outcome.problem and f"! {outcome.problem}",
        )


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.4g}" + ("!" if figure.met is False else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--out", type=Path, help="where the stores go; a temporary folder otherwise")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these; repeatable")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    absent = [case.name for case in chosen if not (arguments.data / case.source).exists()]
    if absent:
        print(f"not in {arguments.data}: {', '.join(absent)}", file=sys.stderr)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            if case.name not in absent:
                print(f"{case.name} ...", file=sys.stderr, flush=True)
                outcomes.append(run_case(case, arguments.data, (arguments.out or Path(folder)) / case.name))
    show(outcomes)
    if arguments.json:
        record: list[dict[str, Any]] = [asdict(outcome) for outcome in outcomes]
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
