"""Peak memory of `vipe-dag run` for a short and a long clip of the same walk: it must not grow with the length of a video.

    python -m benchmarks.memory [--frames N]... [--size WIDTH HEIGHT] [--until ASSET] [--out DIR] [--json FILE]

Renders the clips, runs the pipeline on each in a process of its own, and prints seconds, the largest resident size of the process, and
the largest of each stage. Exits 1 when a run needs 2 GB or more, or when two runs differ by more than 20 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import run

PROGRAM = (sys.executable, "-m", "vipe_dag")
MEMORY_BOUND_MB = 2000.0
GROWTH_BOUND = 0.2


@dataclass(frozen=True)
class Measured:
    """One run: peak_mb of the process; stage_seconds, stage_peak_mb of each stage."""

    frames: int
    seconds: float
    peak_mb: float
    stage_seconds: dict[str, float]
    stage_peak_mb: dict[str, float]


def measure(frames: int, width: int, height: int, until: str, folder: Path) -> Measured:
    """Render a clip of that many frames and run the pipeline on it in a process of its own. Raises RuntimeError when it fails."""
    from vipe_dag import synthetic

    clip = synthetic.write_mp4(synthetic.scene("room", frames, width, height, supersample=1), folder / f"room{frames}.mp4")
    finished = run([*PROGRAM, "run", str(clip), "--store", str(folder / f"store{frames}"), "--until", until, "--json"])
    lines = finished.output.strip().splitlines()
    if finished.code != 0 or not lines:
        raise RuntimeError(f"{frames} frames: vipe-dag run ended with {finished.code}: {finished.problem or 'no answer'}")
    stages = json.loads(lines[-1])["videos"][0]["stages"]
    return Measured(
        frames,
        finished.seconds,
        finished.peak_mb,
        {name: stage["compute_seconds"] for name, stage in stages.items()},
        {name: stage["peak_rss_mb"] for name, stage in stages.items()},
    )


def show(found: Measured) -> None:
    print(f"{found.frames} frames: {found.seconds:.0f} s, peak {found.peak_mb:.0f} MB")
    for name, peak in found.stage_peak_mb.items():
        print(f"  {name:14} {found.stage_seconds[name]:8.1f} s {peak:8.0f} MB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, action="append", help="length of a clip; repeatable; 600 and 3000 when not given")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--until", default="aligned_depth", help="the last asset to make")
    parser.add_argument("--out", type=Path, help="where clips and stores go; a temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    width, height = arguments.size
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in arguments.frames or (600, 3000):
            found.append(measure(frames, width, height, arguments.until, arguments.out or Path(folder)))
            show(found[-1])
    peaks = [one.peak_mb for one in found]
    growth = max(peaks) / min(peaks) - 1
    print(f"largest {max(peaks):.0f} MB (must be below {MEMORY_BOUND_MB:.0f}), difference {growth:.1%} (at most {GROWTH_BOUND:.0%})")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    return 0 if max(peaks) < MEMORY_BOUND_MB and growth <= GROWTH_BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
