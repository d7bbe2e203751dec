"""`vipe-dag view` on a long video: seconds until the server has the first picture, until all points are there, and memory.

    python -m benchmarks.viewer [--frames N] [--size WIDTH HEIGHT] [--like ROOT VIDEO_ID]

The command runs in a process of its own in which torch and OpenCV cannot be imported. The first picture is there when the viewer answers
with a page: camera path, current frame and depth are set before it listens. Exits 1 from 3 s or 1 GB.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.stores import LONG, add_arguments, long_video
from vipe_dag.store import VideoStore

WANTED_SECONDS = 3.0
WANTED_MB = 1000.0
_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["cv2"] = None
from vipe_dag.cli import main
sys.exit(main())
"""
_SETTLED_SECONDS = 3.0
_PATIENCE_SECONDS = 300.0


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def measure(store: VideoStore) -> tuple[float, float, float, float]:
    """Seconds until the page is served, CPU seconds spent on that, seconds until nothing is computed any more, and peak resident MB."""
    command = [sys.executable, "-c", _WITHOUT_TORCH, "view", LONG, "--store", store.root, "--port", "0"]
    started = time.perf_counter()
    viewer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "NO_COLOR": "1"})
    try:
        assert viewer.stdout is not None
        line = viewer.stdout.readline()
        if "http://" not in line:
            raise SystemExit(line + viewer.stdout.read())
        with urllib.request.urlopen(line.split()[0]) as page:
            page.read()
        first = time.perf_counter() - started
        process = psutil.Process(viewer.pid)
        cpu = busy = _cpu(process)
        quiet, peak = time.perf_counter(), 0.0
        while time.perf_counter() - quiet < _SETTLED_SECONDS and time.perf_counter() - started < _PATIENCE_SECONDS:
            time.sleep(0.1)
            peak = max(peak, process.memory_info().rss / 1e6)
            if _cpu(process) > busy + 0.05:
                busy, quiet = _cpu(process), time.perf_counter()
        return first, cpu, quiet - started, peak
    finally:
        viewer.send_signal(signal.SIGINT)
        viewer.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, frames=1000, width=640, height=360)
    with tempfile.TemporaryDirectory() as folder:
        asked = parser.parse_args()
        first, cpu, complete, peak = measure(long_video(asked, Path(folder)))
    print(f"{asked.frames} frames, without torch: first picture after {first:.2f} s ({cpu:.2f} s of CPU; must be {WANTED_SECONDS:.0f} s),")
    print(f"all points after {complete:.1f} s, largest resident size {peak:.0f} MB (must be {WANTED_MB:.0f})")
    return 0 if first < WANTED_SECONDS and peak < WANTED_MB else 1


if __name__ == "__main__":
    sys.exit(main())
