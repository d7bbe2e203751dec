"""What is measured: each metric with its unit, its better direction and how much worse it may get, and the gate against a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Figures = Mapping[str, float]
"""Value of each metric that could be measured, by name."""


@dataclass(frozen=True)
class Metric:
    """A quantity of a run.

    better: which direction is better. tolerance: by what share, and slack: by what amount in `unit`, a value may be worse than the
    baseline; the larger counts. gated is False for what depends on the machine.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    tolerance: float = 0.0
    slack: float = 0.0
    gated: bool = True

    def limit(self, reference: float) -> float:
        """The worst value that passes beside `reference`."""
        allowed = max(self.tolerance * abs(reference), self.slack)
        return reference + allowed if self.better == "lower" else reference - allowed

    def worse(self, value: float, reference: float) -> bool:
        """Whether `value` is worse than `reference` by more than allowed; a value that is not finite always is."""
        if not math.isfinite(value):
            return True
        return value > self.limit(reference) if self.better == "lower" else value < self.limit(reference)


POSED, ATE, ATE_PERCENT = "posed", "ate", "ate_percent"
RPE, RPE_ROTATION, ROTATION = "rpe", "rpe_rotation", "rotation"
FOCAL, DISTORTION, FPS, PEAK = "focal", "distortion", "fps", "peak_mb"
STD_RANK = "std_rank"
ATE_RATIO, SPEED_RATIO, MEMORY_RATIO = "ate_ratio", "speed_ratio", "memory_ratio"

METRICS = (
    Metric(POSED, "posed", "share", "higher", slack=0.005),
    Metric(ATE, "ATE", "m", "lower", tolerance=0.15, slack=0.001),
    Metric(ATE_PERCENT, "ATE", "% of path", "lower", tolerance=0.15, slack=0.02),
    Metric(RPE, "RPE", "m", "lower", tolerance=0.15, slack=0.001),
    Metric(RPE_ROTATION, "RPE rot.", "deg", "lower", tolerance=0.15, slack=0.01),
    Metric(ROTATION, "rotation", "deg", "lower", tolerance=0.15, slack=0.03),
    Metric(FOCAL, "focal", "% error", "lower", tolerance=0.15, slack=0.2),
    Metric(DISTORTION, "distortion", "px error", "lower", tolerance=0.15, slack=0.1),
    Metric(STD_RANK, "std and error", "rank correlation", "higher", gated=False),
    Metric(FPS, "speed", "frames/s", "higher", gated=False),
    Metric(PEAK, "peak RSS", "MB", "lower", gated=False),
    Metric(ATE_RATIO, "ATE / peer", "ratio", "lower", tolerance=0.3, slack=0.3),
    Metric(SPEED_RATIO, "speed / peer", "ratio", "higher", tolerance=0.5),
    Metric(MEMORY_RATIO, "RSS / peer", "ratio", "lower", tolerance=0.3),
)
"""In the order of the table. Ratios are ours over the peer's, both from the same run on the same machine."""
BY_NAME = {metric.name: metric for metric in METRICS}


def ratios(ours: Figures, peer: Figures) -> dict[str, float]:
    """Ours over the peer's. An ATE is compared only where both posed nine tenths of the frames: few poses are easily accurate."""
    found = {}
    if min(ours.get(POSED, 0.0), peer.get(POSED, 0.0)) >= 0.9 and ours.get(ATE) is not None and peer.get(ATE, 0.0) > 0:
        found[ATE_RATIO] = ours[ATE] / peer[ATE]
    if FPS in ours and peer.get(FPS, 0.0) > 0:
        found[SPEED_RATIO] = ours[FPS] / peer[FPS]
    if PEAK in ours and peer.get(PEAK, 0.0) > 0:
        found[MEMORY_RATIO] = ours[PEAK] / peer[PEAK]
    return found


@dataclass(frozen=True)
class Regression:
    """A figure that got worse than the baseline allows; value is NaN where it is no longer there."""

    sequence: str
    metric: Metric
    value: float
    reference: float

    def __str__(self) -> str:
        now = "no longer there" if math.isnan(self.value) else f"{self.value:.4g} {self.metric.unit}"
        limit = f"{self.reference:.4g}, limit {self.metric.limit(self.reference):.4g}"
        return f"{self.sequence}: {self.metric.title} ({self.metric.name}) {now}; baseline {limit}"


def regressions(found: Mapping[str, Figures], baseline: Mapping[str, Figures], with_peer: bool = True) -> list[Regression]:
    """Gated figures that are worse than, or missing beside, those of the baseline, of sequences that ran and that the baseline knows.

    with_peer False leaves the ratios out, which then were not measured.
    """
    ratio_names = {ATE_RATIO, SPEED_RATIO, MEMORY_RATIO}
    worse = []
    for sequence, figures in found.items():
        for name, reference in baseline.get(sequence, {}).items():
            metric = BY_NAME.get(name)
            if metric is None or not metric.gated or (name in ratio_names and not with_peer):
                continue
            value = figures.get(name, math.nan)
            if metric.worse(value, reference):
                worse.append(Regression(sequence, metric, value, reference))
    return worse
