"""`vipe-dag export FORMAT VIDEO_ID OUT`: one command per format, with the options of that format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vipe_dag.cli.arguments import Store, VideoId
from vipe_dag.cli.terminal import console

if TYPE_CHECKING:
    from vipe_dag.export.cloud import Thinning

export = typer.Typer(help="Write results in the formats of other programs.", no_args_is_help=True)

OutFile = Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Segment = Annotated[int | None, typer.Option(metavar="N", help="Which segment; by default the one with most frames.")]
Png = Annotated[bool, typer.Option("--png", help="Frames of a video as lossless PNG, not as JPEG of quality 95.")]
Every = Annotated[int, typer.Option(min=1, metavar="N", help="Cloud: every N-th frame.")]
Stride = Annotated[int, typer.Option(min=1, metavar="N", help="Cloud: every N-th pixel along both axes.")]
Measured = Annotated[bool, typer.Option("--measured-only/--all-depth", help="Cloud: triangulated depth alone, or completed depth too.")]
Confidence = Annotated[int, typer.Option(min=0, max=255, metavar="C", help="Cloud: lowest confidence of depth.")]
Voxel = Annotated[float, typer.Option(min=0, max=1, metavar="S", help="Cloud: one point per cube of S times the median depth; 0: all.")]


def _thinning(
    every: Every = 4, stride: Stride = 2, measured_only: Measured = True, min_confidence: Confidence = 64, voxel: Voxel = 0.005
) -> Thinning:
    """The options of a cloud, as every format with a cloud has them."""
    from vipe_dag.export.cloud import Thinning

    return Thinning(every, stride, measured_only, min_confidence, voxel)


def _with_cloud(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `_thinning` where it has a parameter `thinning`."""
    options = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in _parameters(_thinning)]

    @wraps(command)
    def complete(**arguments: Any) -> None:
        chosen = {option.name: arguments.pop(option.name) for option in options}
        command(**arguments, thinning=_thinning(**chosen))

    shown: list[Parameter] = []
    for parameter in _parameters(command):
        shown += options if parameter.name == "thinning" else [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    complete.__signature__ = Signature(shown)  # type: ignore[attr-defined]  # what typer reads
    complete.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return complete


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Parameters with their annotations as objects, for typer; the class that is not imported to start quickly is left open."""
    return list(signature(function, eval_str=True, locals={"Thinning": Any}).parameters.values())


@export.command()
def tum(video_id: VideoId, out: OutFile, store: Store, overwrite: Overwrite = False) -> None:
    """The trajectory: timestamp tx ty tz qx qy qz qw, camera to world, every tracked frame, timestamps of the source."""
    _export("tum", store, video_id, out, overwrite=overwrite)


@export.command()
def kitti(video_id: VideoId, out: OutFile, store: Store, overwrite: Overwrite = False) -> None:
    """The trajectory: twelve numbers per line, camera to world, a line for every frame."""
    _export("kitti", store, video_id, out, overwrite=overwrite)


@export.command()
@_with_cloud
def ply(
    video_id: VideoId,
    out: OutFile,
    store: Store,
    thinning: Thinning,
    segment: Segment = None,
    overwrite: Overwrite = False,
) -> None:
    """A coloured point cloud with confidence, from aligned_depth."""
    _export("ply", store, video_id, out, thinning=thinning, segment=segment, overwrite=overwrite)


@export.command()
@_with_cloud
def nerfstudio(
    video_id: VideoId,
    out: OutFolder,
    store: Store,
    thinning: Thinning,
    segment: Segment = None,
    png: Png = False,
) -> None:
    """transforms.json with distortion, images at source resolution, and the cloud: for nerfstudio, gsplat and their kin."""
    _export("nerfstudio", store, video_id, out, thinning=thinning, segment=segment, encoding="png" if png else "jpg")


@export.command()
def colmap(
    video_id: VideoId,
    out: OutFolder,
    store: Store,
    text: Annotated[bool, typer.Option("--text", help="Text files, not binary ones.")] = False,
    png: Png = False,
) -> None:
    """images and sparse/K, a model for each segment, with points and tracks measured in the keyframes."""
    _export("colmap", store, video_id, out, text=text, encoding="png" if png else "jpg")


@export.command()
def vipe(video_id: VideoId, out: OutFolder, store: Store, segment: Segment = None) -> None:
    """ViPE's tree: pose and intrinsics npz, depth as a zip of half-float EXR, rgb mp4."""
    _export("vipe", store, video_id, out, segment=segment)


@export.command()
@_with_cloud
def rerun(video_id: VideoId, out: OutFile, store: Store, thinning: Thinning, overwrite: Overwrite = False) -> None:
    """A recording for Rerun: camera, picture and depth over time, keyframes, segments, and the cloud. Needs vipe-dag[rerun]."""
    _export("rerun", store, video_id, out, thinning=thinning, overwrite=overwrite)


@export.command()
def mp4(video_id: VideoId, out: OutFile, store: Store, overwrite: Overwrite = False) -> None:
    """A film: each frame with its depth in colours beside it."""
    _export("mp4", store, video_id, out, overwrite=overwrite)


@export.command()
def zarr(video_id: VideoId, out: OutFolder, store: Store) -> None:
    """All assets as one Zarr v3 group, in codecs that every reader of Zarr has."""
    _export("zarr", store, video_id, out)


def _export(name: str, store: str, video_id: str, out: Path, **options: Any) -> None:
    from vipe_dag.export import export_video
    from vipe_dag.store import VideoStore

    written = export_video(VideoStore(store), video_id, name, out, **options)
    for note in written.notes:
        console(sys.stderr).print(note, markup=False)
    typer.echo(written.path)
