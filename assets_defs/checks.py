"""The checks of vipe_dag.checks in Dagster's words. They are evaluated in the step that computes the asset, never by reading it again."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from vipe_dag.checks import Check, specs


def check_specs(stage: str) -> list[dg.AssetCheckSpec]:
    """What the asset of that stage promises to report."""
    return [dg.AssetCheckSpec(spec.name, asset=stage, blocking=spec.blocking, description=spec.description) for spec in specs(stage)]


def check_results(stage: str, checks: Iterable[Check]) -> list[dg.AssetCheckResult]:
    """Outcomes; a failed check that does not block is a warning."""
    return [
        dg.AssetCheckResult(
            passed=check.passed,
            check_name=check.name,
            asset_key=stage,
            severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
            description=check.message,
            metadata={name: float(number) for name, number in check.numbers.items()},
        )
        for check in checks
    ]
