"""A command in a process of its own: its wall clock, its largest resident size, what it printed."""

from __future__ import annotations

import os
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


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run to the end. environment: variables added to those of this process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as output, tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **(environment or {})})
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        return Finished(process.returncode, seconds, peak, output.read(), errors.read())
