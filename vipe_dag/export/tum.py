"""TUM trajectories: one line `timestamp tx ty tz qx qy qz qw` per frame, cam2world, as evo and the TUM RGB-D tools read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vipe_dag.errors import SourceError
from vipe_dag.export import Exported
from vipe_dag.export.target import complete_file

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore


def export(store: VideoStore, video_id: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write the tracked frames of a video, with the timestamps of its source."""
    from vipe_dag.export.estimate import estimate_of

    estimate = estimate_of(store, video_id)
    return Exported(write(out, estimate.time, estimate.poses.cam2world, estimate.poses.tracked, overwrite), estimate.lost_note)


def write(
    out: str | Path,
    time: NDArray[np.float64],
    cam2world: NDArray[np.float64],
    tracked: NDArray[np.bool_] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the tracked frames of a trajectory; returns the path.

    time (T,) float64 seconds of the source; cam2world (T, 4, 4) float64, OpenCV axes; tracked (T,) bool, all when None.
    Numbers keep nine decimals (a nanosecond, a nanometre), so that reading back is exact to 1e-8.
    Raises SourceError when `out` exists and `overwrite` is False, when its folder does not exist, and when no frame is tracked.
    """
    out = Path(out)
    keep = np.ones(len(time), bool) if tracked is None else np.asarray(tracked, bool)
    if not keep.any():
        raise SourceError(f"{out}: no frame of the trajectory is tracked, there is nothing to write")
    poses = np.asarray(cam2world, np.float64)[keep]
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True)
    table = np.column_stack([np.asarray(time, np.float64)[keep], poses[:, :3, 3], quaternions])
    with complete_file(out, overwrite) as unfinished:
        np.savetxt(unfinished, table, fmt="%.9f", header="timestamp tx ty tz qx qy qz qw")
    return out


def read(path: str | Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a TUM file: time (N,) float64 seconds, ascending, and cam2world (N, 4, 4) float64. Lines that start with # are skipped.

    Raises SourceError for a file that is missing, empty, or has a line that is not eight finite numbers with a quaternion.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a TUM trajectory ({error})") from error
    return parse(text, str(path))


def parse(text: str, origin: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `read` returns, from the text of a file that errors call `origin`. Raises SourceError."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != 8 or not np.isfinite(values).all() or np.linalg.norm(values[4:]) < 1e-9:
            raise SourceError(f"{origin}, line {number}: expected `timestamp tx ty tz qx qy qz qw`, found {line.strip()[:80]!r}")
        rows.append(values)
    if not rows:
        raise SourceError(f"{origin}: holds no pose; expected lines `timestamp tx ty tz qx qy qz qw`")
    table = np.array(rows, np.float64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    poses = np.tile(np.eye(4), (len(table), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(table[:, 4:]).as_matrix()
    poses[:, :3, 3] = table[:, 1:4]
    return table[:, 0], poses
