"""`vipe-dag ui`: Dagster's web server and daemon on a user's store, as one process group that ends with this process."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from rich.console import Console

from vipe_dag.cli.terminal import console
from vipe_dag.errors import ConfigError, StoreError, VipeDagError
from vipe_dag.graph import config_digest
from vipe_dag.operations import Operations, load_operations
from vipe_dag.placement import HOME_VARIABLE, ROOT_VARIABLE, configuration, dagster_home, is_local, local_path

START_SECONDS = 300.0
STOP_SECONDS = 15.0
LOOK_SECONDS = 5.0
"""Between two looks at the files from which definitions are built."""
RELOAD = json.dumps({"query": "mutation { reloadWorkspace { __typename } }"}).encode()


def serve(root: str, host: str, port: int) -> int:
    """Serves until interrupted or until Dagster ends; returns the exit code. Raises ConfigError for bad configuration, settings or port."""
    from vipe_dag.runner import prepare_book

    screen = console(sys.stdout)
    root = str(local_path(root)) if is_local(root) else root
    loaded = built_from(root)
    port = free_port(host, port)
    videos = prepare_book(root)
    warn_unless_loopback(screen, host, port, "can start runs and delete results")
    group = _Group(_command(host, port), _environment(root))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    try:
        screen.print(f"{root}: {videos} video{'' if videos == 1 else 's'}; starting Dagster ...")
        if not _answers(group, url):
            raise StoreError(f"Dagster did not answer at {url}; what it said is above")
        screen.print(f"[bold]{url}/asset-groups[/]  (Ctrl-C to stop)")
        return group.wait(Follower(root, url, loaded).look)
    finally:
        group.stop()


def _command(host: str, port: int) -> list[str]:
    return [
        sys.executable,
        "-W",
        "ignore:Function",
        "-m",
        "dagster",
        "dev",
        "-m",
        "assets_defs.definitions",
        "-h",
        host,
        "-p",
        str(port),
        "--log-level",
        "warning",
    ]


def _environment(root: str) -> dict[str, str]:
    ours = {ROOT_VARIABLE: root, HOME_VARIABLE: str(dagster_home(root)), "DAGSTER_DISABLE_TELEMETRY": "yes", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours}


def built_from(root: str) -> tuple[str, Operations]:
    """All from which the definitions of a store are built. Raises ConfigError."""
    return config_digest(configuration(root)), load_operations(root)


class Follower:
    """Has the web server load the definitions anew when their files changed: it would call new results unsynced, and refuse to compute."""

    def __init__(self, root: str, url: str, loaded: tuple[str, Operations]) -> None:
        self._root, self._url, self._loaded = root, url, loaded

    def look(self) -> None:
        """A file that is not valid, which sensors say, and a server that does not answer wait for the next look."""
        with suppress(VipeDagError, OSError):
            present = built_from(self._root)
            if present != self._loaded:
                request = urllib.request.Request(f"{self._url}/graphql", RELOAD, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=START_SECONDS).close()
                self._loaded = present


def _answers(group: _Group, url: str) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and group.running:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/server_info", timeout=5):
            return True
        time.sleep(0.25)
    return False


def warn_unless_loopback(screen: Console, host: str, port: int, what: str) -> None:
    """Says who can reach a server without a login."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        screen.print(f"[yellow]warning:[/] {host} is not loopback: whoever reaches port {port} {what}, there is no login")


def free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0. Raises ConfigError when it is taken or the address is not of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port}: {error.strerror or error}; choose another with --port, 0 takes a free one"
            ) from error
        return int(probe.getsockname()[1])


class _Group:
    """`dagster dev` with all its children in a process group of its own, so that none of them outlives it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, interrupt)
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, meanwhile: Callable[[], None]) -> int:
        """Until it ends by itself (its exit code) or somebody interrupts (0); calls `meanwhile` now and then."""
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return self._process.wait(LOOK_SECONDS)
                meanwhile()
        except KeyboardInterrupt:
            return 0

    def stop(self) -> None:
        """Asks, then insists. Returns when no process of the group is left."""
        for name, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if not self._signal(name):
                return
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self._process.poll()
                if not self._signal(0):
                    return
                time.sleep(0.1)

    def _signal(self, name: int) -> bool:
        """Sends to the whole group; False when nothing of it is left."""
        try:
            os.killpg(self._process.pid, name)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that makes any signal what Ctrl-C is."""
    raise KeyboardInterrupt
