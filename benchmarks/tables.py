"""Outcomes as a table on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from benchmarks.metrics import METRICS
from benchmarks.scores import Outcome

_COLUMNS = ("sequence", "engine", *(f"{metric.title}\n{metric.unit}" for metric in METRICS), "verdict", "flags and misses")


def _row(outcome: Outcome) -> list[str]:
    cells = [f"{outcome.figures[metric.name]:.3g}" if metric.name in outcome.figures else "" for metric in METRICS]
    remarks = "; ".join(part for part in (", ".join(outcome.flags), *outcome.missed, outcome.problem) if part)
    return [outcome.sequence, outcome.engine, *cells, outcome.verdict, remarks]


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """As wide as the terminal, or as the table where there is none: in a file no cell is folded."""
    table = Table(show_lines=False)
    for number, title in enumerate(_COLUMNS):
        table.add_column(title, justify="right" if 2 <= number < len(METRICS) + 2 else "left", overflow="fold", no_wrap=number < 2)
    for outcome in outcomes:
        table.add_row(*_row(outcome), style="red" if outcome.verdict == "wrong" or outcome.problem else None)
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def markdown(outcomes: Sequence[Outcome]) -> str:
    titles = tuple(title.replace("\n", ", ") for title in _COLUMNS)
    rows = [titles, tuple("---" for _ in _COLUMNS), *(_row(outcome) for outcome in outcomes)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def to_json(outcomes: Sequence[Outcome]) -> str:
    """A list of outcomes; figures by the names of benchmarks.metrics."""
    return json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n"
