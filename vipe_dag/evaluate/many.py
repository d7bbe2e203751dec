"""Many videos against their references: each alone, then medians and what failed. One bad video does not stop the others."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vipe_dag.errors import SourceError, VipeDagError
from vipe_dag.evaluate.video import Evaluation, evaluate_video

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

COLUMNS = ("video_id", "reference", "depth_dir", "intrinsics")
"""Header of a table of references; the last two may be absent or empty."""
_DIGEST = re.compile(r"-[0-9a-f]{8}$")

MEASURES: Mapping[str, tuple[str, str]] = {
    "ate_percent": ("trajectory", "ATE [% of path]"),
    "ate_rmse": ("trajectory", "ATE [unit of reference]"),
    "rpe_translation": ("trajectory", "RPE [unit of reference]"),
    "rpe_rotation_deg": ("trajectory", "RPE rotation [deg]"),
    "rotation_mean_deg": ("trajectory", "rotation [deg]"),
    "focal_error_percent": ("", "focal length [%]"),
    "abs_rel": ("depth", "AbsRel"),
    "rmse": ("depth", "RMSE [unit of reference]"),
    "delta1": ("depth", "delta1"),
    "tae_percent": ("temporal", "TAE [%]"),
    "tau5": ("temporal", "tau5"),
    "flicker_percent": ("temporal", "flicker [%]"),
}
"""What is aggregated: name, the part of an Evaluation that it is in, title with unit."""


@dataclass(frozen=True)
class ReferenceFiles:
    """What one video is compared with. trajectory None: the registered one."""

    trajectory: Path | None = None
    depth_dir: Path | None = None
    intrinsics: Path | None = None


@dataclass(frozen=True)
class Survey:
    """evaluations by video; failures: a sentence for each video that could not be judged; unreferenced: videos without a reference."""

    evaluations: Mapping[str, Evaluation]
    failures: Mapping[str, str]
    unreferenced: tuple[str, ...]

    def values(self, measure: str) -> dict[str, float]:
        """One of MEASURES by video, where it is known."""
        part = MEASURES[measure][0]
        found = {}
        for video_id, evaluation in self.evaluations.items():
            group = evaluation.to_dict() if not part else evaluation.to_dict()[part] or {}
            if group.get(measure) is not None:
                found[video_id] = float(group[measure])
        return found

    def medians(self) -> dict[str, float]:
        """Of every measure that some video has, over the videos that have it."""
        return {name: float(np.median(list(values.values()))) for name in MEASURES if (values := self.values(name))}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: counts, medians with how many videos are behind each, every evaluation, every failure."""
        return {
            "videos": len(self.evaluations) + len(self.failures),
            "evaluated": len(self.evaluations),
            "failed": len(self.failures),
            "unreferenced": list(self.unreferenced),
            "medians": {name: {"median": value, "videos": len(self.values(name))} for name, value in self.medians().items()},
            "evaluations": [evaluation.to_dict() for evaluation in self.evaluations.values()],
            "failures": dict(self.failures),
        }


def registered_references(store: VideoStore) -> dict[str, ReferenceFiles]:
    """The videos with a registered reference. Raises SourceError when there is none."""
    found = {video_id: ReferenceFiles() for video_id in store.referenced()}
    if not found:
        raise SourceError(
            f"{store.root}: no video has a registered reference; name a folder or table with --reference, or register one: "
            "vipe-dag evaluate VIDEO_ID --reference FILE --register"
        )
    return found


def references_in(place: str | Path, videos: Sequence[str]) -> dict[str, ReferenceFiles]:
    """References of many videos: a folder of trajectories, or a table.

    In a folder, NAME.txt is the trajectory of the video NAME (its id, or its id without the digest), NAME.depth a folder of depth maps,
    NAME.intrinsics.json the true calibration. A table is a .csv with the columns of COLUMNS, paths relative to it; a line may name a video
    that the store does not have, which then fails. Raises SourceError: neither, empty, a name that fits several videos, a malformed table.
    """
    place = Path(place)
    if place.is_dir():
        return _from_folder(place, videos)
    if place.suffix.lower() == ".csv":
        return _from_table(place)
    raise SourceError(f"{place}: expected a folder of trajectories or a .csv with the columns {', '.join(COLUMNS)}")


def survey(
    store: VideoStore,
    references: Mapping[str, ReferenceFiles],
    *,
    progress: Callable[[str, Evaluation | str], None] = lambda video_id, outcome: None,
    **options: Any,
) -> Survey:
    """Evaluate every video that has a reference. options: of evaluate_video. progress hears each result, or why there is none."""
    evaluations: dict[str, Evaluation] = {}
    failures: dict[str, str] = {}
    for video_id, files in references.items():
        try:
            found = evaluate_video(store, video_id, files.trajectory, depth_dir=files.depth_dir, intrinsics=files.intrinsics, **options)
            evaluations[video_id] = found
            progress(video_id, found)
        except VipeDagError as error:
            failures[video_id] = str(error)
            progress(video_id, str(error))
    return Survey(evaluations, failures, tuple(name for name in store.videos() if name not in references))


def survey_picture(found: Survey) -> bytes:
    """PNG with the spread of every measure over the videos: sorted values, the median marked."""
    from vipe_dag.plots import spreads

    return spreads([(MEASURES[name][1], list(found.values(name).values())) for name in found.medians()])


def _from_folder(folder: Path, videos: Sequence[str]) -> dict[str, ReferenceFiles]:
    trajectories = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if not trajectories:
        raise SourceError(f"{folder}: holds no trajectory; expected VIDEO_ID.txt files with TUM or KITTI lines")
    by_name: dict[str, list[str]] = {}
    for video_id in videos:
        by_name.setdefault(_DIGEST.sub("", video_id), []).append(video_id)
    found = {}
    for name, path in trajectories.items():
        fitting = [name] if name in videos else by_name.get(name, [])
        if len(fitting) > 1:
            raise SourceError(f"{path}: fits {len(fitting)} videos, {', '.join(fitting)}; name it after one of them")
        depth, intrinsics = folder / f"{name}.depth", folder / f"{name}.intrinsics.json"
        found[fitting[0] if fitting else name] = ReferenceFiles(
            path, depth if depth.is_dir() else None, intrinsics if intrinsics.is_file() else None
        )
    return found


def _from_table(table: Path) -> dict[str, ReferenceFiles]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, restkey="more"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table}: cannot be read as a table ({error})") from error
    if not lines:
        raise SourceError(f"{table}: holds no line; expected the columns {', '.join(COLUMNS)} and a line per video")
    header = {str(name) for name in lines[0]} - {"more"}
    if not header.issuperset(COLUMNS[:2]) or not header.issubset(COLUMNS):
        raise SourceError(f"{table}: has the columns {', '.join(sorted(header))}; expected {', '.join(COLUMNS)}, the last two if wanted")
    found: dict[str, ReferenceFiles] = {}
    for number, line in enumerate(lines, 2):
        cells = {name: (line.get(name) or "").strip() for name in COLUMNS}
        if "more" in line or not cells["video_id"] or not cells["reference"]:
            raise SourceError(f"{table}, line {number}: expected a video_id and a reference, and no more cells than columns")
        if cells["video_id"] in found:
            raise SourceError(f"{table}, line {number}: {cells['video_id']} was named before; one line per video")
        trajectory, depth, intrinsics = (table.parent / cells[name] if cells[name] else None for name in COLUMNS[1:])
        found[cells["video_id"]] = ReferenceFiles(trajectory, depth, intrinsics)
    return found
