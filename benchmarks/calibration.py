"""Whether the standard deviation of the focal length can be believed: estimates on rendered clips and parts of them, beside the truth.

    python -m benchmarks.calibration [--only NAME...] [--cache DIR] [--width 320]

Each moving clip of benchmarks.poses is taken whole, by halves and by every second frame, at a smaller size, so that errors are large enough
to be told apart. Prints error and standard deviation of `intrinsics` and of `ba_poses`, then how often the one is within the other.
Exits 1 when fewer than nine of ten errors of either lie within two standard deviations.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.sequences import SYNTHETIC, chosen, prepare
from vipe_dag.calibration import Calibration
from vipe_dag.config import load_config
from vipe_dag.sequence import ArrayFrames
from vipe_dag.stages import ba_poses, intrinsics, keyframes

ASKED = 0.9
STAGES = ("intrinsics", "ba_poses")


def parts(folder: Path, width: int) -> Iterator[tuple[str, ArrayFrames, float]]:
    """Name, pictures and true focal length of a prepared clip and of its parts, `width` pixels wide."""
    lens = folder / "intrinsics.json"
    truth = Calibration.from_json(json.loads(lens.read_text()), str(lens))
    size = (width, round(truth.height * width / truth.width))
    listed = [line.split() for line in (folder / "rgb.txt").read_text().splitlines() if not line.startswith("#")]
    pictures = (np.asarray(cv2.imread(str(folder / name))) for _, name in listed)
    rgb = np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1] for picture in pictures])
    time, half = np.array([float(stamp) for stamp, _ in listed]), len(listed) // 2
    for name, rows in (
        ("whole", slice(None)),
        ("first half", slice(half)),
        ("second half", slice(half, None)),
        ("every 2nd", slice(0, None, 2)),
    ):
        yield name, ArrayFrames(rgb[rows], time[rows], np.arange(len(time[rows]))), float(truth.scaled(*size).params[0])


def estimates(frames: ArrayFrames) -> tuple[tuple[float, float, str], ...]:
    """Focal length, its standard deviation and the camera model, of calibration and of adjustment."""
    config = load_config()
    picked = keyframes.select(frames, config.keyframes)
    first = intrinsics.calibrate(frames, picked, config.intrinsics)
    last = ba_poses.solve(frames, picked, first, config.ba_poses)
    flags = [flag for flag in last.flags if flag.startswith("focal")]
    return (
        (float(first.params[0]), float(first.params_std[0]), first.camera_model),
        (float(last.params[0]), float(last.params_std[0]), " ".join((last.camera_model, *flags))),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these clips")
    parser.add_argument("--cache", type=Path, help="keep rendered pictures here; a temporary folder otherwise")
    parser.add_argument("--width", type=int, default=320)
    asked = parser.parse_args()
    clips = chosen([clip for clip in SYNTHETIC if clip.target is not None and not clip.target.still], asked.only)
    table = Table("clip", *(f"{stage}: {column}" for stage in STAGES for column in ("error, %", "std, %", "camera")))
    found: list[list[tuple[float, float]]] = [[], []]
    with tempfile.TemporaryDirectory() as temporary:
        for clip in clips:
            for name, frames, truth in parts(prepare(clip, asked.cache or Path(temporary)), asked.width):
                cells = []
                for stage, (focal, std, words) in zip(found, estimates(frames), strict=True):
                    stage.append((100 * (focal / truth - 1), 100 * std / truth))
                    cells += [f"{stage[-1][0]:.2f}", f"{stage[-1][1]:.2f}", words]
                table.add_row(f"{clip.name}, {name}", *cells)
    Console().print(table)
    enough = True
    for name, pairs in zip(STAGES, found, strict=True):
        error, std = np.abs(np.array(pairs)).T
        within = [float((error < n * std).mean()) for n in (1, 2)]
        enough &= within[1] >= ASKED
        print(
            f"{name}: {within[1]:.0%} of {len(error)} errors within two standard deviations (asked {ASKED:.0%}), {within[0]:.0%} within one"
        )
        print(f"{name}: median error {np.median(error):.2f} %, median standard deviation {np.median(std):.2f} %")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
