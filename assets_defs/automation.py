"""Dagster's own way to say when an asset is due, so that the UI explains each partition. The sensor `rerun` is the one that acts.

The automation sensor is stopped unless somebody starts it; with both running, some work would be requested twice.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

AUTOMATION_SENSOR = "rerun_by_condition"
SECONDS_BETWEEN_TICKS = 60


def rerun_on_change() -> dg.AutomationCondition[Any]:
    """Due when newly added, when its code version changed, or when something above it changed or is about to; then once."""
    condition = dg.AutomationCondition
    upstream = condition.any_deps_match(condition.data_version_changed() | condition.will_be_requested())
    due: dg.AutomationCondition[Any] = condition.newly_missing() | condition.code_version_changed() | upstream
    return due.since_last_handled() & ~condition.any_deps_missing() & ~condition.any_deps_in_progress() & ~condition.in_progress()


def build_automation_sensor(group: str) -> dg.AutomationConditionSensorDefinition:
    """One run per video with all stages that are due; emitted backfills do not survive this graph."""
    return dg.AutomationConditionSensorDefinition(
        AUTOMATION_SENSOR,
        target=dg.AssetSelection.groups(group),
        emit_backfills=False,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
