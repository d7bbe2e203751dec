"""`vipe-dag import FORMAT`: results of other programs become assets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipe_dag.cli.arguments import Store
from vipe_dag.cli.terminal import fail
from vipe_dag.errors import SourceError

imports = typer.Typer(help="Bring results of other programs into a store, to view, evaluate and export them.", no_args_is_help=True)


@imports.callback()
def group() -> None:
    """Bring results of other programs into a store, to view, evaluate and export them."""


@imports.command()
def vipe(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with ViPE's rgb, pose, intrinsics and depth.")],
    store: Store,
    name: Annotated[list[str], typer.Option("--name", metavar="NAME", help="Only this video of the folder; repeatable.")] = [],  # noqa: B006
) -> None:
    """Every video of a tree of ViPE's results; prints their ids. One bad video does not stop the others."""
    from vipe_dag.importing.vipe import import_video, names_in
    from vipe_dag.store import VideoStore

    known, opened, failed = names_in(root), VideoStore(store), False
    for unknown in sorted(set(name) - set(known)):
        raise SourceError(f"{root}: has no video {unknown}; there are: {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}")
    for wanted in name or known:
        try:
            typer.echo(import_video(opened, root, wanted))
        except SourceError as error:
            failed = True
            fail(str(error))
    if failed:
        raise typer.Exit(1)


@imports.command()
def colmap(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a COLMAP model, or the one that holds sparse.")],
    store: Store,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with the images of the model; by default DIR/images.")] = None,
) -> None:
    """A reconstruction of COLMAP's, binary or text, with its images; each model becomes a segment. Prints the id of the video."""
    from vipe_dag.importing.colmap import import_video
    from vipe_dag.store import VideoStore

    typer.echo(import_video(VideoStore(store), root, images))
