"""Measure estimates against references: trajectories through evo, depth and focal length, each result naming its alignment."""

from vipe_dag.evaluate.depth import DepthErrors, compare_depth
from vipe_dag.evaluate.references import DepthFolder, Reference, read_reference, resize_nearest
from vipe_dag.evaluate.temporal import TemporalErrors, TimedDepth, temporal_errors
from vipe_dag.evaluate.trajectory import Aligned, TrajectoryErrors, align, associate, compare, default_tolerance
from vipe_dag.evaluate.video import (
    Evaluation,
    StoredPoses,
    compare_with,
    evaluate_steadiness,
    evaluate_video,
    focal_error_percent,
    read_intrinsics,
    stored_poses,
)

__all__ = [
    "Aligned",
    "DepthErrors",
    "DepthFolder",
    "Evaluation",
    "Reference",
    "StoredPoses",
    "TemporalErrors",
    "TimedDepth",
    "TrajectoryErrors",
    "align",
    "associate",
    "compare",
    "compare_depth",
    "compare_with",
    "default_tolerance",
    "evaluate_steadiness",
    "evaluate_video",
    "focal_error_percent",
    "read_intrinsics",
    "read_reference",
    "resize_nearest",
    "stored_poses",
    "temporal_errors",
]
