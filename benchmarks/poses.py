"""Poses, focal length, speed and memory of our engine and of COLMAP on the same pictures in the same run: one command, one table.

    python -m benchmarks.poses [--data DIR] [--only NAME...] [--no-peer] [--no-synthetic] [--long] [--given]
                               [--cache DIR] [--json FILE] [--markdown FILE] [--gate] [--update-baseline]

Each engine runs in a process of its own, so that its peak memory is its own. The peer needs `pip install -e '.[bench]'`.
With --gate: exits 1 when an accuracy or a ratio is worse than benchmarks/baseline.json allows, or an engine of ours failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks import engines, metrics, scores, tables
from benchmarks.estimates import Estimate
from benchmarks.processes import Finished, run
from benchmarks.scores import Outcome
from benchmarks.sequences import LONG, SYNTHETIC, chosen, discover, prepare, read_truth
from benchmarks.sequences import Sequence as Clip

BASELINE = Path(__file__).with_name("baseline.json")
DATA = Path(__file__).parents[2] / "shared" / "data"


def run_engine(engine: str, folder: Path, out: Path, *features: Path) -> Finished:
    """One engine on a prepared sequence; its Estimate is at `out` when the code is 0."""
    return run([sys.executable, "-m", "benchmarks.engines", engine, str(folder), str(out), *map(str, features)])


def measure(clip: Clip, folder: Path, work: Path, with_peer: bool, given: bool) -> Iterator[Outcome]:
    """Ours first, then the peer's mappers; ours is compared with the incremental one, which is the peer's default."""
    ours = _outcome(clip, engines.OURS, folder, work)
    peers: list[Outcome] = []
    if with_peer and clip.peer:
        features = work / f"{clip.name}.features.npz"
        extracted = run_engine(engines.FEATURES, folder, features)
        for mapper in engines.MAPPERS:
            if extracted.code:
                peers.append(Outcome(clip.name, mapper, {}, problem=extracted.problem))
            else:
                peers.append(_outcome(clip, mapper, folder, work, features, extracted.peak_mb))
    if peers:
        ours = replace(ours, figures={**ours.figures, **metrics.ratios(ours.figures, peers[0].figures)})
    yield ours
    if given and read_truth(folder).camera is not None:
        yield _outcome(clip, engines.GIVEN, folder, work)
    yield from peers


def _outcome(clip: Clip, engine: str, folder: Path, work: Path, features: Path | None = None, peak_mb: float = 0.0) -> Outcome:
    out = work / f"{clip.name}.{engine}.npz"
    finished = run_engine(engine, folder, out, *([features] if features else []))
    if finished.code:
        return Outcome(clip.name, engine, {}, problem=finished.problem)
    estimate = Estimate.load(out)
    still = clip.target is not None and clip.target.still
    figures = scores.score(estimate, read_truth(folder), max(peak_mb, finished.peak_mb), still)
    std, error = scores.uncertainty(estimate, read_truth(folder))
    if len(std) > 2:
        figures[metrics.STD_RANK] = scores.rank_correlation(std, error)
    verdict, missed = scores.judge(figures, estimate.flags, clip.target)
    return Outcome(clip.name, engine, figures, estimate.flags, verdict, missed, "", tuple(std.tolist()), tuple(error.tolist()))


def baseline_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Gated figures of our engine by sequence, rounded to four digits, which is finer than any tolerance."""
    return {
        outcome.sequence: {
            metric.name: float(f"{outcome.figures[metric.name]:.4g}")
            for metric in metrics.METRICS
            if metric.gated and metric.name in outcome.figures
        }
        for outcome in outcomes
        if outcome.engine == engines.OURS and not outcome.problem
    }


def gate(outcomes: Sequence[Outcome], with_peer: bool, baseline: Path = BASELINE) -> list[str]:
    """What is worse than the baseline allows, a line each; sequences that the baseline does not know pass."""
    ours = [outcome for outcome in outcomes if outcome.engine == engines.OURS]
    failed = [f"{outcome.sequence}: {outcome.problem}" for outcome in ours if outcome.problem]
    whole = {sequence.name for sequence in SYNTHETIC} <= {outcome.sequence for outcome in ours}
    if whole and not (rank := told_rank(ours)) >= scores.STD_RANK_ASKED:
        failed.append(f"position_std over the rendered set: rank correlation {rank:.2f} with the error; asked {scores.STD_RANK_ASKED}")
    found = {outcome.sequence: outcome.figures for outcome in ours if not outcome.problem}
    return failed + [str(one) for one in metrics.regressions(found, json.loads(baseline.read_text()), with_peer)]


def told_rank(outcomes: Sequence[Outcome]) -> float:
    """Rank correlation of position_std with the true error over all frames of the rendered sequences that ran, by our engine."""
    rendered = {sequence.name for sequence in (*SYNTHETIC, LONG)}
    ours = [outcome for outcome in outcomes if outcome.engine == engines.OURS and outcome.sequence in rendered]
    return scores.rank_correlation(*([value for outcome in ours for value in getattr(outcome, name)] for name in ("std", "error")))


def update_baseline(outcomes: Sequence[Outcome], baseline: Path = BASELINE) -> None:
    """Replace the figures of the sequences that ran; a metric that was not measured this time keeps its value."""
    known = json.loads(baseline.read_text()) if baseline.exists() else {}
    for name, figures in baseline_of(outcomes).items():
        known[name] = {**known.get(name, {}), **figures}
    baseline.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.poses", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, help="folder of sequences and videos; ../shared/data when it exists")
    found.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these sequences")
    found.add_argument("--no-peer", action="store_true", help="leave COLMAP out")
    found.add_argument("--no-synthetic", action="store_true", help="only what --data holds")
    found.add_argument("--long", action="store_true", help="also the ten-minute clip")
    found.add_argument("--given", action="store_true", help="also with the reference camera given")
    found.add_argument("--cache", type=Path, help="keep rendered and decoded pictures here; a temporary folder otherwise")
    found.add_argument("--json", type=Path, help="also write all outcomes here")
    found.add_argument("--markdown", type=Path, help="also write the table here")
    found.add_argument("--gate", action="store_true", help="exit 1 when worse than the baseline allows")
    found.add_argument("--update-baseline", action="store_true", help="record the figures of this run in benchmarks/baseline.json")
    return found


def select(arguments: argparse.Namespace) -> list[Clip]:
    """The sequences that the command line asks for. Raises ValueError with one line that says what is wrong."""
    if arguments.data is not None and not arguments.data.is_dir():
        raise ValueError(f"--data {arguments.data}: is no folder; name one that holds sequences (NAME/rgb/) or videos")
    data = arguments.data or (DATA if DATA.is_dir() else None)
    available = [] if arguments.no_synthetic else [*SYNTHETIC]
    if arguments.long or LONG.name in arguments.only:
        available.append(LONG)
    available += discover(data) if data else []
    if not available:
        raise ValueError("nothing to run: give --data DIR, or leave --no-synthetic out")
    return chosen(available, arguments.only)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    console, errors = Console(), Console(stderr=True)
    try:
        clips = select(arguments)
    except ValueError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    with_peer = not arguments.no_peer
    if with_peer and find_spec("pycolmap") is None:
        errors.print("pycolmap is not installed: pip install -e '.[bench]', or run with --no-peer", style="red", markup=False)
        return 2
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        cache = arguments.cache or work / "cache"
        for clip in clips:
            errors.print(f"{clip.name} ...", highlight=False)
            folder = prepare(clip, cache)
            for outcome in measure(clip, folder, work, with_peer, arguments.given):
                outcomes.append(outcome)
                if arguments.json:
                    arguments.json.write_text(tables.to_json(outcomes))
                if arguments.markdown:
                    arguments.markdown.write_text(tables.markdown(outcomes))
    tables.show(outcomes, console)
    console.print(f"position_std and error over all rendered frames: rank correlation {told_rank(outcomes):.2f}", highlight=False)
    if arguments.update_baseline:
        update_baseline(outcomes)
    if not arguments.gate:
        return 0
    problems = gate(outcomes, with_peer)
    for line in problems:
        errors.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
