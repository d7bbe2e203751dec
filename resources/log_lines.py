"""The log of runs as lines of JSON, for whatever collects logs: an instance file names the formatter, see docs/platform.md."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipe_dag.pipeline import StageReport

FACTS = "vipe_dag"
"""Attribute of a log record that holds facts by name."""


def facts(report: StageReport) -> Mapping[str, Mapping[str, Any]]:
    """What a finished stage adds to its line, to be given as `extra`."""
    numbers = {"seconds": report.seconds, "compute_seconds": report.compute_seconds, "peak_rss_mb": report.peak_rss_mb}
    numbers |= {"frames_per_second": report.frames_per_second, **report.numbers}
    known = {name: value for name, value in numbers.items() if math.isfinite(value)}
    failed = [check.name for check in report.checks if not check.passed]
    about = {"video_id": report.video_id, "stage": report.stage, "status": report.status, "fingerprint": report.fingerprint}
    return {FACTS: {**about, **known, **report.counts, "flags": list(report.flags), "failed_checks": failed}}


class JsonLines(logging.Formatter):
    """One object per line: time (UTC), level, message, run, job, step, the facts of a finished stage, the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        meta: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": meta.get("orig_message") or record.getMessage(),
            "run_id": meta.get("run_id"),
            "job": meta.get("job_name"),
            "step": meta.get("step_key"),
            **getattr(record, FACTS, {}),
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in line.items() if value is not None}, default=str)
