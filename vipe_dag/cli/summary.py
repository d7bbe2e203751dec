"""One table after a run over several videos: what became of them, and what each stage cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.table import Column, Table

from vipe_dag.graph import STAGES
from vipe_dag.runner import VideoResult


def summary(results: Sequence[VideoResult]) -> Table:
    """A row per stage that was reached. Seconds, frames per second and memory are of what was computed in this run."""
    kinds = Counter(result.status for result in results)
    told = ", ".join(f"{kinds[status]} {status}" for status in ("computed", "current", "failed") if kinds[status])
    numbers = ("computed", "brought back", "current", "warnings", "seconds", "frames/s", "peak MB", "residual px")
    title = f"{len(results)} videos: {told}; {sum(result.seconds for result in results):.1f} s"
    table = Table("stage", *(Column(name, justify="right") for name in numbers), title=title, title_justify="left", box=None)
    for stage in STAGES:
        reports = [report for result in results for report in result.reports if report.stage == stage.name]
        computed = [report for report in reports if report.status == "computed"]
        if not reports:
            continue
        seconds = sum(report.compute_seconds for report in computed)
        frames = sum(report.counts.get("frames", 0) for report in computed)
        residuals = sorted(found for report in reports if math.isfinite(found := report.numbers.get("residual_px", math.nan)))
        states = Counter(report.status for report in reports)
        cells = (
            *(str(states[status] or "") for status in ("computed", "flipped", "current")),
            str(sum(not check.passed for report in reports for check in report.checks) or ""),
            f"{seconds:.1f}" if computed else "",
            f"{frames / seconds:.1f}" if frames and seconds > 0 else "",
            f"{max(report.peak_rss_mb for report in computed):.0f}" if computed else "",
            f"{residuals[len(residuals) // 2]:.2f}" if residuals else "",
        )
        table.add_row(stage.name, *cells)
    return table
