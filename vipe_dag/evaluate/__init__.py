"""Measure estimates against references: trajectories through evo, depth and focal length, each result naming its alignment."""

from vipe_dag.evaluate.depth import DepthErrors, compare_depth
from vipe_dag.evaluate.many import (
    MEASURES,
    ReferenceFiles,
    Survey,
    references_in,
    registered_references,
    survey,
    survey_picture,
)
from vipe_dag.evaluate.references import DepthFolder, Reference, parse_reference, read_reference, resize_nearest
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
    register_reference,
    registered_reference,
    stored_poses,
)

__all__ = [
    "MEASURES",
    "Aligned",
    "DepthErrors",
    "DepthFolder",
    "Evaluation",
    "Reference",
    "ReferenceFiles",
    "StoredPoses",
    "Survey",
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
    "parse_reference",
    "read_intrinsics",
    "read_reference",
    "references_in",
    "register_reference",
    "registered_reference",
    "registered_references",
    "resize_nearest",
    "stored_poses",
    "survey",
    "survey_picture",
    "temporal_errors",
]
