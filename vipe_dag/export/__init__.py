"""Results in the formats of other programs: one module per format, found by its name.

`export_video(store, "room-0a1b2c3d", "ply", "room.ply")` is what `vipe-dag export ply` does. A module `vipe_dag.export.NAME` has a
function `export(store, video_id, out, **options) -> Exported`; its keywords are the options of the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipe_dag.config_words import did_you_mean
from vipe_dag.errors import ConfigError

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore


@dataclass(frozen=True)
class Exported:
    """What an export left: the file or folder, and sentences on what the format could not take."""

    path: Path
    notes: tuple[str, ...] = ()


FORMATS: dict[str, str] = {
    "tum": "trajectory, a text file",
    "kitti": "trajectory, a text file",
    "ply": "coloured point cloud, one file",
    "nerfstudio": "transforms.json, images and a cloud, a folder",
    "colmap": "reconstruction with observations and tracks, a folder",
    "vipe": "ViPE's tree of results, a folder",
    "rerun": "recording for Rerun's viewer, one file",
    "mp4": "film of the frames with their depth, one file",
    "zarr": "all assets as one Zarr group, a folder",
}
"""Name of each format and what it is, in words."""

FILE_NAMES: dict[str, str] = {
    "tum": "tum.txt",
    "kitti": "kitti.txt",
    "ply": "cloud.ply",
    "nerfstudio": "nerfstudio",
    "colmap": "colmap",
    "vipe": "vipe",
    "rerun": "recording.rrd",
    "mp4": "film.mp4",
    "zarr": "assets.zarr",
}
"""What an export of each format is called where nobody gives it a name."""


def export_video(store: VideoStore, video_id: str, name: str, out: str | Path, **options: Any) -> Exported:
    """Write a video of a store in the format `name`; options are those of its module.

    `out` appears when it is complete, and an export that fails leaves nothing. Raises ConfigError for an unknown format, StoreError for an
    unknown video or an asset that is not there, SourceError for a target that exists or cannot be written and for a source that is gone.
    """
    if name not in FORMATS:
        raise ConfigError(f"no export format {name!r}{did_you_mean(name, FORMATS)}; there are: {', '.join(FORMATS)}")
    result: Exported = import_module(f"vipe_dag.export.{name}").export(store, video_id, Path(out), **options)
    return result
