"""What a person sees: consoles that survive the muting of libraries, progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vipe_dag.pipeline import StageReport
from vipe_dag.runner import VideoResult

FILE_WIDTH = 400
"""Columns where there is no terminal to say how many: enough for any table to keep its words whole."""


def console(stream: TextIO) -> Console:
    """A console that `muted` does not silence. Colours on a terminal only; honours NO_COLOR."""
    try:
        copy: TextIO = os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")
    except (OSError, ValueError):
        copy = stream
    return Console(file=copy, highlight=False, soft_wrap=True, width=None if copy.isatty() else FILE_WIDTH)


def fail(message: str) -> None:
    """One line on standard error."""
    console(sys.stderr).print(f"[bold red]error:[/] {_plain(message)}")


def print_json(value: dict[str, Any]) -> None:
    """One line of strict JSON on standard output: a number that is not finite becomes null."""
    sys.stderr.flush()
    print(json.dumps(finite(value), allow_nan=False), flush=True)


def finite(value: Any) -> Any:
    """The same dictionaries and lists with None for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str) -> str:
    """Text in which rich sees no markup, on one line."""
    return " ".join(text.split()).replace("[", r"\[")


class RunDisplay:
    """Progress of `vipe-dag run`. Bars on standard error when that is a terminal, else one line per stage; results on `results`."""

    def __init__(self, results: Console, keep_output: bool) -> None:
        self._results, self._keep_output = results, keep_output
        self._errors = console(sys.stderr)
        self._live = self._errors.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def source_started(self, source: str) -> None:
        self._replace("reading")
        self._results.print(f"[bold]{_plain(source)}[/]")

    def stage_started(self, video_id: str, stage: str) -> None:
        self._replace(stage)

    def stage_progress(self, video_id: str, stage: str, done: int, total: int | None) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def stage_finished(self, report: StageReport) -> None:
        self._remove()
        self._line(report)

    def video_finished(self, result: VideoResult) -> None:
        self._remove()
        if result.status == "current":
            for report in result.reports:
                self._line(report)
        if result.status == "failed":
            self._results.print(f"  [red]failed[/] in {result.seconds:.1f} s")
            fail(result.error or "no reason given")
            if result.trace is not None and self._keep_output:
                self._errors.print(result.trace, markup=False)
        else:
            word = "[green]done[/]" if result.status == "computed" else "[green]nothing to do[/]"
            self._results.print(f"  {word} in {result.seconds:.1f} s: [bold]{result.video_id}[/]")

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Points file descriptors 1 and 2 to nowhere, for what C libraries and Dagster's child processes write as well as Python."""
        if self._keep_output:
            yield
            return
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for descriptor, _ in kept:
                os.dup2(nowhere, descriptor)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)
            os.close(nowhere)

    def _line(self, report: StageReport) -> None:
        style = {"computed": "cyan", "flipped": "cyan", "current": "dim"}[report.status]
        failed = [check for check in report.checks if not check.passed]
        warnings = "".join(f"  [yellow]{_plain(check.name)}: {_plain(check.message)}[/]" for check in failed)
        self._results.print(f"  {report.stage:<14} [{style}]{report.status:<9}[/] {report.seconds:6.1f} s{warnings}")

    def _replace(self, description: str) -> None:
        self._remove()
        self._task = self._bars.add_task(description, total=None)

    def _remove(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
