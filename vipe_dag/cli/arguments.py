"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from vipe_dag.config_words import did_you_mean
from vipe_dag.graph import STAGES
from vipe_dag.placement import ROOT_VARIABLE


def asset_name(name: str) -> str:
    """The name itself. Raises typer.BadParameter when no asset has it."""
    names = [entry.name for entry in STAGES]
    if name not in names:
        raise typer.BadParameter(f"{name!r} is no asset{did_you_mean(name, names)}; there are: {', '.join(names)}")
    return name


Store = Annotated[
    str, typer.Option("--store", envvar=ROOT_VARIABLE, metavar="ROOT", help="Directory (or fsspec URL) that holds the results.")
]
VideoId = Annotated[str, typer.Argument(metavar="VIDEO_ID", help="As `vipe-dag status` lists them.")]
Preset = Annotated[str | None, typer.Option(metavar="P", help="default, fast or quality.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="One value of the configuration; repeatable.")]
Until = Annotated[str, typer.Option(parser=asset_name, metavar="ASSET", help="The last asset to make.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output, all else on standard error.")
]
