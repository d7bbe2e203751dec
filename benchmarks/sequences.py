"""What the engines run on: folders and videos that are pointed at, and rendered clips with exact truth, all made into one layout on disk.

NAME/rgb/000000.png ...   pictures at working resolution, lossless, the same for every engine
NAME/rgb.txt              timestamp in seconds, file
NAME/groundtruth.txt      TUM, camera to world, OpenCV axes; where there is a reference
NAME/intrinsics.json      the reference camera at working resolution; where there is one
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vipe_dag.calibration import Calibration

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Target:
    """What an answer must reach: largest ATE in % of the path or in metres, rotation error in degrees, focal error in %.

    still: the camera does not translate, so the right answer says that there is no parallax; translations are then not compared.
    """

    ate_percent: float | None = None
    ate: float | None = None
    rotation: float | None = None
    focal: float | None = None
    still: bool = False


@dataclass(frozen=True)
class Sequence:
    """A named sequence: a file or folder (source), or a scene of vipe_dag.synthetic with its options. over: what lies over its pictures,
    one of OVER. peer: whether the peer runs too."""

    name: str
    source: Path | None = None
    scene: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    over: str = ""
    target: Target | None = None
    peer: bool = True


def _caption(rgb: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
    """White letters along the lower edge and coloured ones in the upper right corner, as of a dashboard camera or a broadcast."""
    import cv2

    drawn, (height, width) = rgb.copy(), rgb.shape[:2]
    size = width / 480
    cv2.putText(drawn, "REC 12:34 CAMERA 01", (10, height - 20), cv2.FONT_HERSHEY_SIMPLEX, 0.7 * size, (255, 255, 255), 2, cv2.LINE_AA)
    cv2.putText(drawn, "NEWS", (width - width // 5, 40), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 200, 0), 3, cv2.LINE_AA)
    return drawn


def _fade(rgb: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
    """From black within fifteen frames."""
    return (rgb * min(1.0, row / 15)).astype(np.uint8)


OVER: Mapping[str, Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]] = {"caption": _caption, "fade": _fade}
"""What may lie over a picture (H, W, 3), by the number of its row."""

_SHARP = Target(ate_percent=0.3, focal=1.0)
_TURNING = Target(rotation=0.5, focal=1.0, still=True)
_PLACE: Mapping[str, Any] = {"n_frames": 60, "width": 640, "height": 480, "fps": 15.0}
_ROAD: Mapping[str, Any] = {**_PLACE, "fps": 10.0}
_CAMCORDER: Mapping[str, Any] = {"n_frames": 80, "width": 480, "height": 270, "fps": 10.0, "noise": 1.0, "supersample": 1}

SYNTHETIC = (
    Sequence("syn_drive", scene="street", options=_ROAD, target=_SHARP),
    Sequence("syn_straight", scene="straight", options=_ROAD, target=_SHARP),
    Sequence("syn_orbit", scene="orbit", options={**_PLACE, "n_frames": 100, "fps": 11.0}, target=_SHARP),
    Sequence("syn_wide", scene="orbit", options={**_PLACE, "n_frames": 20, "fps": 2.2}, target=_SHARP),
    Sequence("syn_rotation", scene="rotation", options=_PLACE, target=_TURNING),
    Sequence("syn_static", scene="static", options={**_PLACE, "n_frames": 40}, target=Target(rotation=0.1, focal=1.0, still=True)),
    Sequence("syn_shake", scene="shake", options=_PLACE, target=_SHARP),
    Sequence("syn_plain", scene="plain", options=_PLACE, target=_SHARP),
    Sequence("syn_swerve", scene="swerve", options=_CAMCORDER, target=_SHARP),
    Sequence("syn_turn", scene="turn_then_walk", options={**_PLACE, "n_frames": 90}, target=_SHARP),
    Sequence("syn_caption", scene="swerve", options=_CAMCORDER, over="caption", target=_SHARP),
    Sequence("syn_fade", scene="room", options=_PLACE, over="fade", target=_SHARP),
    Sequence("syn_repeated", scene="hall", options=_PLACE, target=_SHARP),
    Sequence("syn_moving", scene="room_moving", options={**_PLACE, "moving_share": 0.3}, target=_SHARP),
    Sequence("syn_cut", scene="cut", options={**_ROAD, "n_frames": 80}, target=_SHARP),
    Sequence("syn_barrel", scene="room_barrel", options=_PLACE, target=_SHARP),
    Sequence("syn_fisheye", scene="room_fisheye", options={**_PLACE, "fov": 90.0}, target=_SHARP),
    Sequence("syn_focal35", scene="room", options={**_PLACE, "fov": 35.0}, target=_SHARP),
    Sequence("syn_focal60", scene="room", options={**_PLACE, "fov": 60.0}, target=_SHARP),
    Sequence("syn_focal90", scene="room", options={**_PLACE, "fov": 90.0}, target=_SHARP),
)
LONG = Sequence(
    "syn_long",
    scene="room",
    options={"n_frames": 12_000, "width": 320, "height": 240, "fps": 20.0, "supersample": 1},
    target=_SHARP,
    peer=False,
)
"""Ten minutes. The peer would take hours."""

TARGETS: Mapping[str, Target] = {
    "kitti_seq2": Target(ate=0.36, focal=3.0),
    "7scenes_seq1000": Target(ate=0.047),
    "figurine_orbit": Target(ate_percent=0.2),
    "fox_phone": Target(ate_percent=0.3),
    "euroc_v101_micro": Target(still=True),
}
"""What is asked of the public sequences, by the name of their folder; others are measured without a verdict."""


def discover(folder: Path) -> list[Sequence]:
    """Every sequence under a folder: subfolders that hold rgb/, and video files directly or one level below."""
    found = []
    for entry in sorted(folder.iterdir()):
        if (entry / "rgb").is_dir():
            found.append(Sequence(entry.name, entry, target=TARGETS.get(entry.name)))
        files = [entry] if entry.is_file() else sorted(path for path in entry.iterdir() if path.is_file())
        found += [Sequence(path.stem, path) for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    return found


def chosen(available: Iterable[Sequence], names: Iterable[str]) -> list[Sequence]:
    """The named ones in the order of `available`; all when no name is given. Raises ValueError for a name that is not there."""
    available, names = list(available), list(names)
    unknown = sorted(set(names) - {sequence.name for sequence in available})
    if unknown:
        known = ", ".join(sequence.name for sequence in available)
        raise ValueError(f"no sequence {', '.join(unknown)}; there are: {known}")
    return [sequence for sequence in available if not names or sequence.name in names]


@dataclass(frozen=True)
class Truth:
    """Reference of a prepared sequence: time (N,), cam2world (N, 4, 4), or None; the camera at working resolution, or None."""

    time: NDArray[np.float64] | None
    cam2world: NDArray[np.float64] | None
    camera: Calibration | None


def read_truth(prepared: Path) -> Truth:
    """What `prepare` left beside the pictures."""
    from vipe_dag.calibration import Calibration
    from vipe_dag.export import tum

    track, lens = prepared / "groundtruth.txt", prepared / "intrinsics.json"
    time, cam2world = tum.read(track) if track.exists() else (None, None)
    camera = Calibration.from_json(json.loads(lens.read_text()), str(lens)) if lens.exists() else None
    return Truth(time, cam2world, camera)


def prepare(sequence: Sequence, cache: Path) -> Path:
    """Render or decode a sequence into `cache`, unless an equal one is there already; returns its folder."""
    final = cache / sequence.name
    recipe = json.dumps([sequence.scene, dict(sequence.options), str(sequence.source or ""), sequence.over], sort_keys=True)
    made = final / "recipe.json"
    if made.exists() and made.read_text() == recipe:
        return final
    work = cache / f"{sequence.name}.part"
    for folder in (work, final):
        shutil.rmtree(folder, ignore_errors=True)
    (work / "rgb").mkdir(parents=True)
    if sequence.source is None:
        _render(sequence, work)
    else:
        _decode(sequence.source, work)
    (work / "recipe.json").write_text(recipe)
    work.rename(final)
    return final


def _write(folder: Path, number: int, rgb: NDArray[np.uint8]) -> str:
    import cv2

    name = f"rgb/{number:06d}.png"
    if not cv2.imwrite(str(folder / name), rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{folder / name}: cannot be written")
    return name


def _render(sequence: Sequence, folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from vipe_dag import synthetic

    clip = synthetic.scene(sequence.scene, **sequence.options)
    lines = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(clip), 16):
            rows = range(start, min(start + 16, len(clip)))
            for row, rgb in zip(rows, pool.map(clip.rgb, rows), strict=True):
                shown = OVER[sequence.over](rgb, row) if sequence.over else rgb
                lines.append(f"{clip.time[row]:.6f} {_write(folder, row, shown)}")
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    synthetic.write_truth(clip, folder, depth_every=len(clip))


def _decode(source: Path, folder: Path) -> None:
    from vipe_dag.calibration import Calibration
    from vipe_dag.config import load_config
    from vipe_dag.stages import frames
    from vipe_dag.video import open_source

    decoder = frames.decode(open_source(str(source)), load_config().frames)
    lines: list[str] = []
    for block in decoder:
        for time, rgb in zip(block.time, block.rgb, strict=True):
            lines.append(f"{time:.6f} {_write(folder, len(lines), rgb)}")
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    info = decoder.info
    track, lens = source / "groundtruth.txt", source / "intrinsics.json"
    if track.exists():
        shutil.copyfile(track, folder / "groundtruth.txt")
    if lens.exists():
        camera = Calibration.from_json(json.loads(lens.read_text()), str(lens), info.source_width, info.source_height)
        (folder / "intrinsics.json").write_text(json.dumps(camera.scaled(info.width, info.height).to_json(), indent=2) + "\n")
