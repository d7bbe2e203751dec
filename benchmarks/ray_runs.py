"""Two runs of shards as jobs of a local Ray, half a GPU each by name; one is ended by SIGKILL half-way, and the daemon has it taken up.

    python -m benchmarks.ray_runs [--videos N] [--folder DIR]

Everything is as a user would have it: `deploy/dagster-ray.yaml`, Dagster's daemon, the sensor `rerun_shards`, the real stages. Needs the
extra `ray`, and some two minutes. Exits 1 when a finished video was computed again, or the two runs did not go on at the same time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import dagster as dg
import psutil

from assets_defs.fleet import SHARD
from assets_defs.instance import PROCESS_TAG, open_instance, unfinished_runs
from assets_defs.rerun import PARTITION_TAG
from benchmarks.fleet import tiny_clip
from benchmarks.processes import process, wait
from vipe_dag.fleet.shards import members
from vipe_dag.graph import STAGES
from vipe_dag.placement import HOME_VARIABLE, ROOT_VARIABLE
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, open_source

EXAMPLE = Path(__file__).parents[1] / "deploy" / "dagster-ray.yaml"
SHARDS = 2
PORTS = (
    "port",
    "dashboard-port",
    "metrics-export-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
)
"""All named: Ray waits only 15 s for an agent to say which port it chose, which a busy machine does not manage."""
SETTINGS = f"rerun: {{enabled: true, every_seconds: 2}}\nfleet: {{enabled: true, shards: {SHARDS}}}\n"


def fill(root: Path, folder: Path, videos: int) -> dict[str, list[str]]:
    """Registers one tiny clip under so many names in each shard; the names by shard."""
    store = VideoStore(root)
    source = open_source(str(tiny_clip(folder)))
    names = [f"room-{number:02d}" for number in range(100)]
    found = {shard.name: mine[:videos] for shard, mine in members(names, SHARDS).items()}
    for name in sorted(name for mine in found.values() for name in mine):
        store.register(SourceRecord.of(source, video_id=name))
    (root / "operations.yaml").write_text(SETTINGS)
    return found


def free_ports(count: int) -> list[int]:
    """On loopback, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def answers(url: str) -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def finished(store: VideoStore, names: Sequence[str]) -> list[str]:
    """Videos with a result of every stage."""
    return [name for name in names if all(store.current(name, stage.name) is not None for stage in STAGES)]


def worker(instance: dg.DagsterInstance, shard: str) -> psutil.Process | None:
    """The process that computes a shard, on this machine; None before it has begun."""
    for run in unfinished_runs(instance):
        name = run.tags.get(PROCESS_TAG)
        if run.tags[PARTITION_TAG] == shard and name is not None:
            return psutil.Process(int(name.split(":")[1]))
    return None


def latest_counts(instance: dg.DagsterInstance, shard: str) -> dict[str, object]:
    """What the last run of a shard said that it did."""
    filters = dg.AssetRecordsFilter(asset_key=dg.AssetKey(SHARD), asset_partitions=[shard])
    (record,) = instance.fetch_materializations(filters, limit=1).records
    materialization = record.asset_materialization
    assert materialization is not None
    return {name: value.value for name, value in materialization.metadata.items()}


def scenario(folder: Path, videos: int) -> bool:
    """Carries it out, and prints what happened. Returns whether all of it is as it should be."""
    root, home = folder / "store", folder / "home"
    root.mkdir()
    home.mkdir()
    shutil.copy(EXAMPLE, home / "dagster.yaml")
    shards = fill(root, folder, videos)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    os.environ |= {"RAY_ADDRESS": address, ROOT_VARIABLE: str(root), HOME_VARIABLE: str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    places = ["--node-ip-address=127.0.0.1", f"--temp-dir={folder / 'ray'}", *(f"--{name}={port}" for name, port in ports.items())]
    head = ["ray", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=1", "--object-store-memory=100000000", *places]
    ray_environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    daemon = [sys.executable, "-m", "dagster._daemon", "run", "-m", "assets_defs.definitions", "--log-level", "warning"]
    store = VideoStore(root)
    with process(head, ray_environment, folder / "ray.log") as ray:
        wait("Ray's dashboard answers", lambda: answers(f"{address}/api/version"), ray)
        with process(daemon, environment, folder / "daemon.log"), open_instance(home) as instance:
            wait("both runs go on", lambda: all(worker(instance, shard) for shard in shards))
            together = len(unfinished_runs(instance)) == SHARDS
            victim, mine = next(iter(shards.items()))
            wait("half of a shard is finished", lambda: len(finished(store, mine)) >= videos // 2)
            running = worker(instance, victim)
            assert running is not None
            os.kill(running.pid, signal.SIGKILL)
            kept = {name: store.path(name, STAGES[-1].name) for name in finished(store, mine)}
            print(f"{victim}: process {running.name()} killed with {len(kept)} of {videos} videos finished; together before: {together}")
            everything = [name for names in shards.values() for name in names]
            wait("all is computed", lambda: len(finished(store, everything)) == len(everything) and not unfinished_runs(instance))
            for run in reversed(instance.get_runs()):
                print(f"{run.tags[PARTITION_TAG]}: run {run.run_id[:8]} {run.status.value}")
            counts = {shard: latest_counts(instance, shard) for shard in shards}
            print("\n".join(f"{shard}: {said}" for shard, said in counts.items()))
            again = {name: store.path(name, STAGES[-1].name) for name in kept}
    return together and again == kept and counts[victim]["current"] == len(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4, help="tiny clips in each of two shards")
    parser.add_argument("--folder", type=Path, help="where the store is made and removed; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ray-") as name:
        try:
            return 0 if scenario(Path(name), arguments.videos) else 1
        except (RuntimeError, TimeoutError):
            for log in sorted(Path(name).glob("*.log")):
                print(f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    sys.exit(main())
