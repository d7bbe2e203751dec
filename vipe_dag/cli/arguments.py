"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from vipe_dag.placement import ROOT_VARIABLE

Store = Annotated[
    str, typer.Option("--store", envvar=ROOT_VARIABLE, metavar="ROOT", help="Directory (or fsspec URL) that holds the results.")
]
VideoId = Annotated[str, typer.Argument(metavar="VIDEO_ID", help="As `vipe-dag status` lists them.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output, all else on standard error.")
]
