"""`vipe-dag evaluate`: one video against a reference, or every video that has one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vipe_dag.cli.arguments import AsJson, Store
from vipe_dag.cli.terminal import console, fail, finite, print_json
from vipe_dag.errors import SourceError

if TYPE_CHECKING:
    from vipe_dag.evaluate import Evaluation, Survey
    from vipe_dag.store import VideoStore


def evaluate(
    store: Store,
    video_id: Annotated[
        str | None, typer.Argument(metavar="VIDEO_ID", help="One video; without it every video that has a reference.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Trajectory: TUM lines, or KITTI lines (one per source frame). Without VIDEO_ID a folder of VIDEO_ID.txt, or a .csv. "
            "Default: what is registered in the store.",
        ),
    ] = None,
    register: Annotated[bool, typer.Option("--register", help="Keep the reference in the store: checks and later calls use it.")] = False,
    alignment: Annotated[
        Literal["sim3", "se3"], typer.Option(help="sim3 moves, turns and scales the estimate; se3 does not scale it.")
    ] = "sim3",
    depth_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Reference depth maps, named like the frames.")] = None,
    depth_alignment: Annotated[
        Literal["metric", "median", "scale", "scale_shift_disp"],
        typer.Option(help="One for the whole clip: none, a factor (median or least squares), or scale and shift of inverse depth."),
    ] = "median",
    depth_unit: Annotated[float, typer.Option(metavar="LENGTH", help="One step of a 16-bit PNG, in the reference's unit.")] = 0.001,
    intrinsics: Annotated[Path | None, typer.Option(metavar="FILE", help="True calibration, to compare the focal length with.")] = None,
    tolerance: Annotated[float | None, typer.Option(metavar="S", help="Largest difference of two times taken for one.")] = None,
    temporal: Annotated[bool, typer.Option("--temporal/--no-temporal", help="How steady depth is, which needs no reference.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Also write evaluation.json, and of many videos evaluation.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare with references: ATE and RPE through evo, depth with --depth-dir, and how steady depth is over time."""
    from vipe_dag.store import VideoStore

    opened = VideoStore(store)
    options: dict[str, Any] = {
        "alignment": alignment,
        "depth_alignment": depth_alignment,
        "depth_unit": depth_unit,
        "tolerance": tolerance,
        "temporal": temporal,
    }
    _check_usage(video_id, reference, register, depth_dir, intrinsics)
    if video_id is None:
        _evaluate_many(opened, reference, options, out, as_json)
    else:
        _evaluate_one(opened, video_id, reference, register, {**options, "depth_dir": depth_dir, "intrinsics": intrinsics}, out, as_json)


def _check_usage(video_id: str | None, reference: Path | None, register: bool, depth_dir: Path | None, intrinsics: Path | None) -> None:
    if register and (video_id is None or reference is None):
        raise typer.BadParameter("--register keeps the reference of one video; give VIDEO_ID and --reference FILE")
    if video_id is None and (depth_dir or intrinsics):
        raise typer.BadParameter("--depth-dir and --intrinsics are of one video; of many, the folder or table of --reference names them")


def _evaluate_one(
    store: VideoStore, video_id: str, reference: Path | None, register: bool, options: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    from vipe_dag.evaluate import evaluate_video, register_reference

    found = evaluate_video(store, video_id, reference, **options)
    if register and reference is not None:
        register_reference(store, video_id, reference)
    console(sys.stderr if as_json else sys.stdout).print(_table_of_one(found))
    _write(out, found.to_dict())
    if as_json:
        print_json(found.to_dict())


def _table_of_one(found: Evaluation) -> Table:
    table = Table("measure", "value", "of", box=None, header_style="bold")
    content = found.to_dict()
    for group in ("trajectory", "depth", "temporal"):
        for name, value in (content[group] or {}).items():
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value), group)
    if found.focal_error_percent is not None:
        table.add_row("focal_error_percent", f"{found.focal_error_percent:.4g}", "focal length")
    return table


def _evaluate_many(store: VideoStore, reference: Path | None, options: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from vipe_dag.evaluate import references_in, registered_references, survey, survey_picture

    references = registered_references(store) if reference is None else references_in(reference, store.videos())

    def tell(video_id: str, outcome: Evaluation | str) -> None:
        if isinstance(outcome, str):
            fail(outcome if video_id in outcome else f"{video_id}: {outcome}")

    found = survey(store, references, progress=tell, **options)
    screen = console(sys.stderr if as_json else sys.stdout)
    if found.evaluations:
        screen.print(_table_of_many(found))
    screen.print(
        f"{len(found.evaluations)} evaluated, {len(found.failures)} failed, {len(found.unreferenced)} of the store without a reference"
    )
    _write(out, found.to_dict(), survey_picture(found) if found.evaluations else None)
    if as_json:
        print_json(found.to_dict())
    if found.failures:
        raise typer.Exit(1)


def _table_of_many(found: Survey) -> Table:
    from vipe_dag.evaluate import MEASURES

    medians = found.medians()
    table = Table(box=None, header_style="bold")
    table.add_column("video", no_wrap=True)
    for name in medians:
        table.add_column(escape(MEASURES[name][1]), justify="right")
    values = {name: found.values(name) for name in medians}
    for video_id in found.evaluations:
        table.add_row(video_id, *(f"{values[name][video_id]:.4g}" if video_id in values[name] else "" for name in medians))
    table.add_row("median", *(f"{value:.4g}" for value in medians.values()), style="bold")
    return table


def _write(out: Path | None, content: dict[str, Any], picture: bytes | None = None) -> None:
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if picture is not None:
            (out / "evaluation.png").write_bytes(picture)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
