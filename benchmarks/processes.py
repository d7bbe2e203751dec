"""A command in a process of its own: its wall clock, its largest resident size, what it printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """code: exit code; seconds: wall clock from start to end; peak_mb: largest resident size; output, complaint: stdout and stderr."""

    code: int
    seconds: float
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
    report.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
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
            code, peak = report.read().split()
        output.seek(0)
        errors.seek(0)
        return Finished(int(code), seconds, int(peak) / (1e6 if sys.platform == "darwin" else 1e3), output.read(), errors.read())
