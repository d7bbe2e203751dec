"""What is asserted about each result before anything is built on it: names, limits, outcomes. vipe_dag.verdicts decides them.

A blocking check that fails stops the stages below; a warning is only shown. Degenerate
video (no parallax, a cut, a focal length the motion does not determine) is flagged data: it warns and never blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_RESIDUAL_PX = 5.0
"""Median reprojection residual, at working resolution, beyond which poses explain nothing."""
MIN_DEPTH_SHARE = 0.02
"""Share of pixels with depth in a video that has parallax."""
MAX_ALIGNMENT_RESIDUAL = 0.25
"""Median relative residual of the depth alignment."""

MAX_ATE_PERCENT, MAX_ROTATION_DEG = 2.0, 2.0
"""Position error relative to the path, and mean rotation error, beyond which poses do not agree with a registered reference."""


@dataclass(frozen=True)
class CheckSpec:
    """A check that a stage reports: always all of the stage's specs, in their order."""

    stage: str
    name: str
    blocking: bool
    description: str


@dataclass(frozen=True)
class Check:
    """The outcome of one check, with the numbers it was decided by."""

    name: str
    passed: bool
    blocking: bool
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Check:
        """The inverse of `to_json`."""
        numbers = {name: float("nan") if number is None else float(number) for name, number in value["numbers"].items()}
        return cls(str(value["name"]), bool(value["passed"]), bool(value["blocking"]), str(value["message"]), numbers)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes None."""
        numbers = {name: float(number) if math.isfinite(number) else None for name, number in self.numbers.items()}
        return {"name": self.name, "passed": self.passed, "blocking": self.blocking, "message": self.message, "numbers": numbers}


@dataclass(frozen=True)
class Outcome:
    """What a stage saw while writing: counts, numbers with units in their names, flags of the data contract, checks."""

    counts: Mapping[str, int]
    numbers: Mapping[str, float]
    flags: tuple[str, ...]
    checks: tuple[Check, ...]


CHECKS: tuple[CheckSpec, ...] = (
    CheckSpec("frames", "timestamps_monotonic", True, "Timestamps are finite and strictly increasing."),
    CheckSpec("frames", "complete", False, "The source was decoded to its end."),
    CheckSpec("keyframes", "single_shot", False, "No cut splits the video into segments."),
    CheckSpec("keyframes", "moves", False, "The picture moves."),
    CheckSpec("intrinsics", "parameters_finite", True, "Parameters are finite and focal lengths positive."),
    CheckSpec("intrinsics", "focal_observable", False, "The motion (or a given calibration) determines the focal length."),
    CheckSpec("ba_poses", "poses_finite", True, "Every tracked pose is finite, its rotation orthonormal with determinant 1."),
    CheckSpec("ba_poses", "residual", True, f"The median reprojection residual is at most {MAX_RESIDUAL_PX} px."),
    CheckSpec("ba_poses", "parallax", False, "Every segment has the parallax that depth needs."),
    CheckSpec("ba_poses", "single_segment", False, "All frames share one coordinate frame."),
    CheckSpec("ba_poses", "all_tracked", False, "Every frame was tracked."),
    CheckSpec("dense_depth", "depth_share", True, f"At least {MIN_DEPTH_SHARE:.0%} of the pixels have depth, if there is parallax."),
    CheckSpec("dense_depth", "depth_positive", True, "Known depth is positive."),
    CheckSpec("aligned_depth", "depth_share", True, f"At least {MIN_DEPTH_SHARE:.0%} of the pixels have depth, if there is parallax."),
    CheckSpec("aligned_depth", "depth_positive", True, "Known depth is positive."),
    CheckSpec("aligned_depth", "alignment_residual", False, f"The median alignment residual is at most {MAX_ALIGNMENT_RESIDUAL:.0%}."),
)


def specs(stage: str) -> tuple[CheckSpec, ...]:
    """The checks that a stage reports."""
    return tuple(spec for spec in CHECKS if spec.stage == stage)


def failed_blocking(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Those that forbid building on the result."""
    return tuple(check for check in checks if check.blocking and not check.passed)
