"""Commands in processes of their own: what one took and printed that ran to its end, and programs that go on until they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_SECONDS = 1800.0


@dataclass(frozen=True)
class Finished:
    """code: exit code; seconds: wall clock from start to end; cpu: seconds on the processor, with those of its children that it waited for;
    peak_mb: largest resident size; output, complaint: stdout and stderr.
    """

    code: int
    seconds: float
    cpu: float
    peak_mb: float
    output: str
    complaint: str

    @property
    def problem(self) -> str:
        """The last line of stderr, or the exit code where there is none; empty when the process succeeded."""
        if self.code == 0:
            return ""
        lines = self.complaint.strip().splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


_LAUNCHER = """
import os, sys
with open(sys.argv[1], "w") as report:
    child = os.fork()
    if child == 0:
        os.execvp(sys.argv[2], sys.argv[2:])
    _, status, usage = os.wait4(child, 0)
    report.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime}")
"""
"""Starts the command from a small process: on Linux a new process begins with the peak memory of the one that it was forked from."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run to the end. environment: variables added to those of this process."""
    with tempfile.TemporaryFile("w+", errors="replace") as output, tempfile.TemporaryFile("w+", errors="replace") as errors:
        with tempfile.NamedTemporaryFile("r") as report:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, report.name, *command]
            started = time.perf_counter()
            process = subprocess.Popen(
                launcher, stdout=output, stderr=errors, env={**os.environ, **(environment or {})}, start_new_session=True
            )
            try:
                process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            seconds = time.perf_counter() - started
            code, peak, cpu = report.read().split()
        output.seek(0)
        errors.seek(0)
        megabytes = int(peak) / (1e6 if sys.platform == "darwin" else 1e3)
        return Finished(int(code), seconds, float(cpu), megabytes, output.read(), errors.read())


@contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[psutil.Process]:
    """A program with everything that it starts, ended by SIGKILL. Raises RuntimeError when it ended by itself."""
    with log.open("ab") as output:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        found = psutil.Process(child.pid)
        try:
            yield found
            if child.poll() is not None:
                raise RuntimeError(f"{command[0]} ended by itself")
        finally:
            family = [*found.children(recursive=True), found] if child.poll() is None else []
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            child.wait()


def wait(what: str, done: Callable[[], bool], *alive: psutil.Process) -> None:
    """Raises TimeoutError that says what did not happen, and RuntimeError when one of `alive` ended meanwhile."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        for child in alive:
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError(f"a process ended, and so not: {what}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(0.2)
