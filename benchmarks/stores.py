"""Long stored videos for measuring readers: a short one repeated, so that nothing has to be rendered or estimated at length."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr

from vipe_dag import synthetic
from vipe_dag.schema import asset_schema
from vipe_dag.store import VideoStore

LONG = "long-0a1b2c3d"
_FINGERPRINT = "0123456789abcdef"
_BLOCK = 32
_READ = ("frames", "ba_poses", "aligned_depth")


def add_arguments(parser: argparse.ArgumentParser, frames: int, width: int, height: int) -> None:
    """Options that say of what the long video is made."""
    parser.add_argument("--frames", type=int, default=frames)
    parser.add_argument("--size", type=int, nargs=2, default=(width, height), metavar=("WIDTH", "HEIGHT"), help="of the rendered room")
    parser.add_argument("--like", nargs=2, metavar=("ROOT", "VIDEO_ID"), help="repeat a video of this store instead of rendering one")


def long_video(arguments: argparse.Namespace, root: Path) -> VideoStore:
    """A store below `root` whose video LONG has the asked number of frames."""
    if arguments.like:
        source, video_id = VideoStore(arguments.like[0]), str(arguments.like[1])
    else:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from stored_clip import VIDEO, store_clip

        width, height = arguments.size
        source, video_id = VideoStore(root / "short"), VIDEO
        store_clip(source, synthetic.scene("room", 40, width, height, supersample=1))
    target = VideoStore(root / "long")
    for asset in _READ:
        _repeat(source.open(video_id, asset), asset, target, arguments.frames)
    return target


def _repeat(short: xr.Dataset, asset: str, target: VideoStore, frames: int) -> None:
    """One asset of the short video with its rows walked to and fro; keyframes and what hangs on them stay those of the first pass."""
    there = np.arange(len(short["time"]) if "time" in short else short.sizes["frame"])
    rows = np.resize(np.concatenate([there, there[-2:0:-1]]), frames)
    ramps = {"frame": np.arange(frames), "time": np.arange(frames) / 25}
    with target.begin(LONG, asset, _FINGERPRINT, sizes={"frame": frames}) as writer:
        images = [variable.name for variable in asset_schema(asset).variables if variable.sharded and variable.name in short.variables]
        for start in range(0, frames, _BLOCK):
            chosen = rows[start : start + _BLOCK]
            held, place = np.unique(chosen, return_inverse=True)
            writer.append({name: short[name].isel(frame=held).values[place] for name in images})
        for variable in asset_schema(asset).variables:
            if variable.name in images or variable.constant is not None or variable.name not in short.variables:
                continue
            values = short[variable.name].values
            if variable.name in ramps:
                values = ramps[variable.name]
            elif variable.dims[0] == "frame":
                values = values[rows]
            writer.put(variable.name, values)
        wanted = {attribute.name for attribute in asset_schema(asset).attributes}
        writer.attrs({name: value for name, value in short.attrs.items() if name in wanted})
