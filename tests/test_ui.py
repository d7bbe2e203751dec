"""`vipe-dag ui` on a user's store, seen through a browser: the graph, a video from the folder to a changed configuration, a clean end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
import yaml

import chromium
from clips import write_clip
from vipe_dag.cli.ui import Follower, built_from
from vipe_dag.config import load_config
from vipe_dag.graph import STAGES
from vipe_dag.pipeline import wanted
from vipe_dag.placement import CONFIG_VARIABLE, HOME_VARIABLE
from vipe_dag.placement import configuration as configured
from vipe_dag.store import VideoStore

START_SECONDS = 300.0
TESTS = Path(__file__).parent
QUICK = "import quick_stages\n\nquick_stages.stand_in()\n"
"""What each process of the server does first: the numbers are not what is looked at here."""


@dataclass(frozen=True)
class Served:
    """A running `vipe-dag ui`."""

    process: subprocess.Popen[str]
    url: str
    store: VideoStore
    videos: Path
    """The folder that it watches."""


def serve(root: Path, first: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts it in a session of its own and waits for the address that it prints. first: a folder that Python looks into first."""
    environment = {name: value for name, value in os.environ.items() if name not in (HOME_VARIABLE, CONFIG_VARIABLE)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (first, TESTS, TESTS.parent)))
    command = [sys.executable, "-m", "vipe_dag", "ui", "--store", str(root), "--port", "0"]
    log = root / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"(http://127\.0\.0\.1:\d+)/", log.read_text())
        if found:
            return process, found[1]
        time.sleep(0.25)
    end(process)
    raise AssertionError(f"no address within {START_SECONDS:.0f} s:\n{log.read_text()}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def end(process: subprocess.Popen[str]) -> None:
    """The process and everything it started."""
    children = family(process) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        if child.is_running():
            child.kill()


class Server:
    """Started for the first test that needs it, and again after a test that ended it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._served: Served | None = None

    def served(self) -> Served:
        if self._served is None or self._served.process.poll() is not None:
            store = self._folder / "store"
            self._served = Served(*serve(store, self._folder), VideoStore(store), self._folder / "videos")
        return self._served

    def end(self) -> None:
        if self._served is not None:
            end(self._served.process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On a store without videos, which takes in what appears in a folder."""
    folder = tmp_path_factory.mktemp("ui")
    (folder / "sitecustomize.py").write_text(QUICK)
    for name in ("store", "videos"):
        (folder / name).mkdir()
    watched = {"ingest": {"location": str(folder / "videos"), "every_seconds": 1}, "rerun": {"every_seconds": 1}}
    (folder / "store" / "operations.yaml").write_text(yaml.safe_dump(watched))
    server = Server(folder)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def served(server: Server) -> Served:
    return server.served()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_the_graph_shows_six_assets(served: Served, page: chromium.Page) -> None:
    page.open(f"{served.url}/asset-groups")
    page.wait_for_text("Global asset lineage", *(stage.name for stage in STAGES))


def test_a_video_is_added_computed_looked_at_and_redone_below_what_changed(served: Served, page: chromium.Page) -> None:
    def partitions(stage: str, video_id: str = "") -> str:
        return f"{served.url}/assets/{stage}?view=partitions" + (f"&partition={video_id}" if video_id else "")

    page.open_for(partitions("aligned_depth"), "Missing (0)")
    write_clip(served.videos / "slide.mp4", 12)
    page.open_for(partitions("aligned_depth"), "Missing (1)", "slide-")
    (video_id,) = served.store.videos()

    page.open(f"{served.url}/asset-groups")
    page.click("//button[contains(., 'Materialize all')]")
    page.click_for("//button[.='Missing']", "Launch 1 run")
    page.click("//button[contains(., 'Launch 1 run')]")
    page.wait_until_gone("Launch 1 run", "Launching")
    page.open_for(partitions("aligned_depth"), "Materialized (1)", "Missing (0)")

    first = wanted(served.store, video_id, load_config())
    page.open_for(partitions("frames", video_id), "View all historical events (1)", first["frames"], "peak_rss_mb", "store_path")
    page.click("//*[text()='[Show Markdown]']")
    assert all(width > 0 for width in page.wait_for_pictures())
    page.open_for(f"{served.url}/assets/ba_poses?view=checks", "residual\nSucceeded", "12 of 12 frames tracked")
    page.open_for(f"{served.url}/assets/ba_poses", "residual_px")
    page.click("//button[contains(., 'Plots')]")
    page.wait_for_drawings()

    configuration = Path(served.store.root) / "config.yaml"
    configuration.write_text("ba_poses: {grid_columns: 20}\n")
    second = wanted(served.store, video_id, configured(served.store.root))
    page.open(f"{served.url}/locations/assets_defs.definitions/sensors/rerun")
    page.click("//label[.//input[@type='checkbox']]")
    for stage, times in {"aligned_depth": 2, "ba_poses": 2, "intrinsics": 1}.items():
        events = f"View all historical events ({times})"
        page.open_for(partitions(stage, video_id), events, "computed", second[stage], without="Unsynced")
    page.open_for(f"{served.url}/runs", "vipe_dag/stages: ba_poses dense_depth aligned_depth")

    configuration.unlink()
    page.open_for(partitions("ba_poses", video_id), "View all historical events (3)", "brought back", first["ba_poses"])


def test_it_listens_on_loopback_only(served: Served) -> None:
    listening = [
        connection.laddr.ip
        for process in family(served.process)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_the_web_server_loads_its_definitions_anew_when_a_file_behind_them_changes(tmp_path: Path) -> None:
    asked: list[bytes] = []

    class Dagster(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if len(asked) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def say(name: str, text: str) -> int:
        """Writes a file of the store, looks twice, and returns how often Dagster was asked so far."""
        (tmp_path / name).write_text(text)
        follower.look()
        follower.look()
        return len(asked)

    with HTTPServer(("127.0.0.1", 0), Dagster) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        follower = Follower(str(tmp_path), f"http://127.0.0.1:{server.server_port}", built_from(str(tmp_path)))
        assert say("notes.txt", "nothing of ours") == 0
        assert say("config.yaml", "ba_poses: {grid_columns: 20}") == 2, "the first was not answered"
        assert say("config.yaml", "ba_poses: {grid_colums: 16}") == 2, "not valid"
        assert say("config.yaml", "ba_poses: {grid_columns: 16}") == 3
        assert say("operations.yaml", "exports: {formats: [tum], folder: /exports}") == 4
        server.shutdown()
    assert all(b"reloadWorkspace" in body for body in asked)


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "vipe_dag", "ui", "--store", str(tmp_path), "--port", str(port)]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 2
    assert re.fullmatch(rf"error: --host 127.0.0.1 --port {port}: Address already in use; .*\n", found.stderr)


def test_ctrl_c_ends_all_its_processes(served: Served) -> None:
    children = family(served.process)
    assert children
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(served.url, timeout=5)
