"""Random samples per second of `vipe_dag.dataset` on a local disk: decoded from the store, then from the cache of decoded frames.

    python -m benchmarks.dataset [--frames N] [--size WIDTH HEIGHT] [--like ROOT VIDEO_ID] [--side S] [--workers N] [--samples N]

Renders a video (or repeats a stored one) and draws frames of it in random order through a DataLoader. A sample is counted when it arrives
in the main process. Exits 1 below 200 per second in the second epoch, the first that finds the cache filled.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, RandomSampler

from benchmarks.stores import add_arguments, long_video
from vipe_dag.dataset import VideoDataset

WANTED = 200.0


@dataclass(frozen=True)
class Rate:
    """Samples per second of wall clock; cpu_ms: CPU time of the workers per sample, which tells what an idle machine could do."""

    per_second: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.per_second:8.0f}  {self.cpu_ms:8.1f}"


def rate(frames: VideoDataset, workers: int, samples: int | None) -> Rate:
    """In random order, after the workers have started; all frames once when `samples` is None."""
    before = _cpu_seconds()
    sampler = RandomSampler(frames, num_samples=samples)
    loader = iter(DataLoader(frames, batch_size=8, sampler=sampler, num_workers=workers))
    arrived = len(next(loader)[0])
    started, counted = time.perf_counter(), 0
    for batch in loader:
        counted += len(batch[0])
    if not counted:
        raise SystemExit(f"{arrived} samples came in one batch; ask for more than 8")
    seconds = time.perf_counter() - started
    del loader  # joins the workers
    return Rate(counted / seconds, 1e3 * (_cpu_seconds() - before) / (arrived + counted))


def _cpu_seconds() -> float:
    """Of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, frames=400, width=512, height=288)
    parser.add_argument("--side", type=int, default=512, help="longer side of a sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1000, help="drawn for each figure but the filling of the cache")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = long_video(asked, Path(folder)).root
        plain = VideoDataset(root, max_side=asked.side)
        kept = VideoDataset(root, max_side=asked.side, cache=Path(folder) / "cache")
        print(f"{len(plain)} frames of {plain.sizes[0][1]}x{plain.sizes[0][0]}, {asked.workers} workers")
        print("                     samples/s  CPU ms of one")
        print(f"  decoded each time  {rate(plain, asked.workers, asked.samples)}")
        print(f"  filling a cache    {rate(kept, asked.workers, None)}", flush=True)
        again = rate(kept, asked.workers, asked.samples)
        print(f"  from the cache     {again}  (must be {WANTED:.0f} per second)")
    return 0 if again.per_second >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
