"""Run as a script: writes a generation again and again, killed each time one file operation later, until it survives.

`python crash_writer.py BASE` makes BASE/before (a store with generation OLD) and BASE/001, BASE/002, ...: copies in which the writer of
generation NEW was killed by SIGKILL just before its first, second, ... change of the file system. The last copy is the one that survived.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import vipe_dag.store.reader
import vipe_dag.store.writer  # noqa: F401  imported before the forks, so that each child only writes
from store_contract import NEW, OLD, pixels, write_frames
from vipe_dag.store import VideoStore

FRAMES = 40
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def write(root: Path, fingerprint: str) -> None:
    """Commits `frames` of two shards, the pixels seeded by the fingerprint."""
    write_frames(VideoStore(root), fingerprint, pixels(int(fingerprint[0], 16), FRAMES))


def die_before_change(number: int, root: Path) -> None:
    """Kills this process before its number-th change below root, seen through the interpreter's own audit events."""
    seen = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not (event in CHANGES or (event == "open" and _writes(arguments))):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike) or not os.fsdecode(arguments[0]).startswith(str(root)):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in (mode or "") for letter in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def in_child(root: Path, work: Callable[[], object], die_at: int | None) -> bool:
    """Works in a forked process; True when it survived."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if die_at is not None:
                die_before_change(die_at, root)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return survived(child, root)


def survived(child: int, root: Path) -> bool:
    """Waits for the end of a child; False when it was killed. Fails the script when it ended by an error."""
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if status != 0 and not killed:
        raise SystemExit(f"the writer in {root} ended with wait status {status}")
    return not killed


def main(base: Path) -> None:
    in_child(base / "before", lambda: write(base / "before", OLD), None)
    number, survived = 0, False
    while not survived:
        number += 1
        root = base / f"{number:03d}"
        shutil.copytree(base / "before", root)
        survived = in_child(root, partial(write, root, NEW), number)
    print(number - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
