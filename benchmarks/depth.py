"""Dense and aligned depth on an exact world with true cameras: error against the truth, and frames per second.

    python -m benchmarks.depth [--scene NAME] [--frames N]

True cameras keep the errors of pose estimation out of the figures. One median scale for the clip, as in the bounds of the demo.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from depth_worlds import DepthRun, joined, true_poses
from vipe_dag import synthetic
from vipe_dag.config import AlignedDepthConfig, DenseDepthConfig
from vipe_dag.stages import aligned_depth, dense_depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="room", choices=synthetic.SCENES)
    parser.add_argument("--frames", type=int, default=40)
    asked = parser.parse_args()
    clip = synthetic.scene(asked.scene, n_frames=asked.frames)
    frames, poses = clip.frames(), true_poses(clip, spacing=24)
    marks = [(time.perf_counter(), time.process_time())]
    dense = joined(list(dense_depth.triangulate(frames, poses, DenseDepthConfig())))
    marks.append((time.perf_counter(), time.process_time()))
    blocks = list(aligned_depth.align(frames, dense, poses, AlignedDepthConfig()))
    marks.append((time.perf_counter(), time.process_time()))
    truth, body = (np.stack(column) for column in zip(*(clip.truth(row) for row in range(len(clip))), strict=True))
    truth = np.where(body == 0, truth, np.inf).astype(np.float32)
    found = DepthRun(dense, joined(blocks), np.concatenate([block.scale for block in blocks]), truth)
    print(f"{'':10}{'frames/s':>10}{'CPU ms':>10}{'AbsRel':>10}{'measured':>10}{'share':>10}")
    for name, depth, before, after in (("dense", found.dense, marks[0], marks[1]), ("aligned", found.aligned, marks[1], marks[2])):
        error = found.error(depth)
        rate, cpu = len(clip) / (after[0] - before[0]), 1e3 * (after[1] - before[1]) / len(clip)
        share = depth.measured.mean()
        print(f"{name:10}{rate:10.1f}{cpu:10.0f}{np.nanmean(error):10.4f}{np.nanmean(error[depth.measured]):10.4f}{share:10.2f}")


if __name__ == "__main__":
    main()
