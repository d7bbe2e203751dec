"""`vipe-dag view`: the viewer until somebody interrupts."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from vipe_dag.cli.terminal import console
from vipe_dag.cli.ui import free_port, interrupt, warn_unless_loopback
from vipe_dag.store import VideoStore


def serve(root: str, video_id: str | None, host: str, port: int, reference: Path | None) -> None:
    """Serves until interrupted. Raises ConfigError for a port that is taken, and what Viewer raises, before anything is served."""
    from vipe_dag.viewer.app import Viewer

    screen = console(sys.stdout)
    viewer = Viewer(VideoStore(root), video_id, host, free_port(host, port), reference)
    try:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, interrupt)
        shown = f"[{host}]" if ":" in host else host
        warn_unless_loopback(screen, host, viewer.port, "sees the videos")
        screen.print(f"[bold]http://{'127.0.0.1' if host == '0.0.0.0' else shown}:{viewer.port}[/]  (Ctrl-C to stop)")
        viewer.wait()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.stop()
