"""The demo: a clip rendered from an exact world, what the pipeline made of it, and how far that is from the truth.

The run itself goes through Dagster and belongs to the caller: `prepare`, run the video, `summarise`, `write_page`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipe_dag.demo_page import write_page

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

__all__ = ["DEMO_SCENES", "DemoPaths", "DemoSummary", "Target", "prepare", "summarise", "targets", "write_page"]

DEMO_SCENES = ("room", "room_moving")
"""A walk around a table; the same walk behind a figure that covers about a fifth of the picture."""

DEPTH_EVERY = 3
"""Every third frame gets a depth map: enough to measure, a third of the disk."""


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo clip and its truth lie: an mp4, and a folder with groundtruth.txt, intrinsics.json and depth/."""

    video: Path
    truth_dir: Path


@dataclass(frozen=True)
class Target:
    """One error of the demo and the limit it must stay below; unit is what follows the numbers, limit None for one that is only shown."""

    name: str
    value: float
    limit: float | None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is no limit; an error that is not a number misses."""
        return None if self.limit is None else self.value < self.limit


@dataclass(frozen=True)
class DemoSummary:
    """What the demo measured. Lengths in metres of the world, angles in degrees, focal lengths in pixels of the stored frames.

    ate_*: after one Sim(3) alignment, percent of the path length. abs_rel, delta1: of aligned depth after one median scale for the clip,
    which is depth_scale.
    """

    video_id: str
    frames: int
    frames_posed: int
    path_length: float
    ate_rmse: float
    ate_percent: float
    rotation_mean_deg: float
    focal_estimate: float
    focal_truth: float
    focal_error_percent: float
    abs_rel: float
    delta1: float
    depth_scale: float
    depth_coverage: float
    seconds_per_stage: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds_per_stage": dict(self.seconds_per_stage)}


def prepare(out_dir: str | Path, scene: str = "room", progress: Callable[[int, int], None] | None = None, **options: Any) -> DemoPaths:
    """Render a named scene (vipe_dag.synthetic.SCENES) into out_dir as an mp4, with its truth beside it; about 20 s for the default clip.

    progress(done, total) counts frames; options go to vipe_dag.synthetic.scene (n_frames, width, height, fov, fps, noise).
    """
    from vipe_dag import synthetic

    out_dir = Path(out_dir)
    clip = synthetic.scene(scene, **options)
    video = synthetic.write_mp4(clip, out_dir / f"{scene}.mp4", progress=progress)
    return DemoPaths(video, synthetic.write_truth(clip, out_dir / "truth", DEPTH_EVERY))


def summarise(
    root: str | Path | VideoStore, video_id: str, truth_dir: str | Path, seconds_per_stage: Mapping[str, float] | None = None
) -> DemoSummary:
    """Compare a stored video with the truth that `prepare` wrote. Raises StoreError, SourceError, EstimationError."""
    from vipe_dag import evaluate
    from vipe_dag.store import VideoStore

    store, truth = root if isinstance(root, VideoStore) else VideoStore(root), Path(truth_dir)
    found = evaluate.evaluate_video(
        store, video_id, truth / "groundtruth.txt", depth_dir=truth / "depth", intrinsics=truth / "intrinsics.json"
    )
    poses = evaluate.stored_poses(store, video_id)
    camera = evaluate.read_intrinsics(truth / "intrinsics.json", *poses.source_size).scaled(poses.camera.width, poses.camera.height)
    assert found.depth is not None
    assert found.focal_error_percent is not None
    return DemoSummary(
        video_id=video_id,
        frames=len(store.depth(video_id, "aligned_depth")),
        frames_posed=len(poses.frame),
        path_length=found.trajectory.path_length,
        ate_rmse=found.trajectory.ate_rmse,
        ate_percent=found.trajectory.ate_percent if found.trajectory.ate_percent is not None else float("nan"),
        rotation_mean_deg=found.trajectory.rotation_mean_deg,
        focal_estimate=float((poses.camera.params[0] * poses.camera.params[1]) ** 0.5),
        focal_truth=float((camera.params[0] * camera.params[1]) ** 0.5),
        focal_error_percent=found.focal_error_percent,
        abs_rel=found.depth.abs_rel,
        delta1=found.depth.delta1,
        depth_scale=found.depth.scale,
        depth_coverage=found.depth.coverage,
        seconds_per_stage=dict(seconds_per_stage or {}),
    )


def targets(scene: str, summary: DemoSummary) -> tuple[Target, ...]:
    """What the demo must reach on a scene of DEMO_SCENES. Behind a moving figure only the trajectory has a limit."""
    moving = scene == "room_moving"
    return (
        Target("ATE", summary.ate_percent, 2.0 if moving else 1.0, " % of the path"),
        Target("focal length", summary.focal_error_percent, None if moving else 2.0, " %"),
        Target("AbsRel", summary.abs_rel, None if moving else 0.06),
    )
