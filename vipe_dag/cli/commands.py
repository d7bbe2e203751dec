"""The commands and their options. Each reads its options, makes one call into the package, and prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from vipe_dag.cli.arguments import AsJson, Overrides, Preset, Store, Until, VideoId, asset_name
from vipe_dag.cli.evaluate import evaluate
from vipe_dag.cli.export import export
from vipe_dag.cli.fleet import fleet
from vipe_dag.cli.imports import imports
from vipe_dag.cli.summary import summary
from vipe_dag.cli.terminal import RunDisplay, console, print_json
from vipe_dag.graph import STAGES
from vipe_dag.placement import configuration

if TYPE_CHECKING:
    from vipe_dag.runner import VideoResult

app = typer.Typer(
    name="vipe-dag",
    help="Camera poses, intrinsics and dense depth from any video, kept as Zarr assets that Dagster keeps the book of.",
    epilog="Exit codes: 0 all went well, 1 a video or a request failed, 2 wrong usage or configuration, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(export, name="export")
app.add_typer(imports, name="import")
app.add_typer(fleet, name="fleet")


@app.command()
def run(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Video files, image folders, directories of videos, URLs.")],
    store: Store,
    preset: Preset = None,
    overrides: Overrides = [],  # noqa: B006  typer copies it
    until: Until = STAGES[-1].name,
    video_id: Annotated[str | None, typer.Option(metavar="ID", help="Name of the video in the store; for one source.")] = None,
    start: Annotated[float | None, typer.Option(metavar="S", help="First second of the clip.")] = None,
    end: Annotated[float | None, typer.Option(metavar="S", help="Second at which the clip ends.")] = None,
    stride: Annotated[int, typer.Option(metavar="N", help="Take every N-th frame.")] = 1,
    intrinsics: Annotated[str | None, typer.Option(metavar="FILE", help="Known calibration; else NAME.intrinsics.json beside it.")] = None,
    as_json: AsJson = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show Dagster's log and tracebacks.")] = False,
) -> None:
    """Turn videos into assets. What the store already has is not computed again; one bad video does not stop the others."""
    from vipe_dag.runner import Request, run_sources
    from vipe_dag.video import Clip

    request = Request(configuration(store, preset, overrides), until, video_id, Clip(start, end, stride), intrinsics, log=debug)
    _run_and_print(store, lambda display: run_sources(store, sources, request, display), as_json, debug)


@app.command()
def backfill(
    store: Store,
    videos: Annotated[list[str] | None, typer.Argument(metavar="VIDEO_ID", help="Default: every video of the store.")] = None,
    preset: Preset = None,
    overrides: Overrides = [],  # noqa: B006  typer copies it
    until: Until = STAGES[-1].name,
    as_json: AsJson = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show Dagster's log and tracebacks.")] = False,
) -> None:
    """Bring videos that the store has to what the configuration asks for, computing only the stages that are behind."""
    from vipe_dag.runner import Request, run_videos

    request = Request(configuration(store, preset, overrides), until, log=debug)
    _run_and_print(store, lambda display: run_videos(store, videos or [], request, display), as_json, debug)


@app.command()
def gc(
    store: Store,
    retention_days: Annotated[
        float | None, typer.Option(metavar="D", help="Keep what was replaced within so many days; else as operations.yaml says.")
    ] = None,
    keep: Annotated[int | None, typer.Option(metavar="N", help="Newest results of each asset to keep.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove results that are not current and were replaced long ago. Going back to them would compute them again."""
    from vipe_dag.operations import collect_garbage

    removed = collect_garbage(store, retention_days, keep, dry_run)
    megabytes = sum(piece.bytes for piece in removed) / 1e6
    screen = console(sys.stderr if as_json else sys.stdout)
    for piece in removed:
        screen.print(f"{piece.bytes / 1e6:10.1f} MB  {piece.key}")
    screen.print(f"{'would remove' if dry_run else 'removed'} {len(removed)} results, {megabytes:.1f} MB")
    if as_json:
        print_json({"store": store, "dry_run": dry_run, "removed": [{"key": piece.key, "bytes": piece.bytes} for piece in removed]})


@app.command()
def status(store: Store, preset: Preset = None, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show which assets each video has, and whether they are what the configuration asks for."""
    from vipe_dag.pipeline import states
    from vipe_dag.store import VideoStore

    config, opened = configuration(store, preset, overrides), VideoStore(store)
    rows = {video_id: states(opened, video_id, config) for video_id in opened.videos()}
    styles = {"current": "[green]current[/]", "stored": "[cyan]stored[/]", "stale": "[yellow]stale[/]", "missing": "[dim]missing[/]"}
    table = Table(*(Column(name, no_wrap=True) for name in ("video", *(entry.name for entry in STAGES))), box=None, header_style="bold")
    for video_id, found in rows.items():
        table.add_row(video_id, *(styles[found[entry.name]] for entry in STAGES))
    screen = console(sys.stderr if as_json else sys.stdout)
    screen.print(table if rows else f"{opened.root}: no videos yet; make some with `vipe-dag run SOURCE --store {store}`")
    if as_json:
        print_json({"store": opened.root, "videos": [{"video_id": video_id, "assets": found} for video_id, found in rows.items()]})


@app.command()
def path(video_id: VideoId, asset: Annotated[str, typer.Argument(parser=asset_name, metavar="ASSET")], store: Store) -> None:
    """Print where the current generation of an asset is, for anything that reads Zarr."""
    from vipe_dag.store import VideoStore

    typer.echo(VideoStore(store).path(video_id, asset))


app.command()(evaluate)


@app.command()
def report(
    video_id: VideoId,
    out: Annotated[Path, typer.Argument(metavar="OUT.html", help="Page to write.")],
    store: Store,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.html if it exists.")] = False,
) -> None:
    """Write one page about a video: path, motion, focal length, residuals, depth, checks, configuration."""
    from vipe_dag.report import write_report

    typer.echo(write_report(out, store, video_id, overwrite).resolve())


@app.command()
def doctor(
    store: Annotated[str | None, typer.Option("--store", metavar="ROOT", help="Also examine this store.")] = None, as_json: AsJson = False
) -> None:
    """Examine the installation: versions, codecs, device, name collisions, disk. Exits 1 when something is broken."""
    from vipe_dag.doctor import examine

    findings = examine(store)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[bold red]broken[/]"}
    table = Table(box=None, show_header=False)
    for finding in findings:
        table.add_row(marks[finding.level], finding.subject, finding.message)
    console(sys.stderr if as_json else sys.stdout).print(table)
    if as_json:
        print_json({"findings": [finding.to_json() for finding in findings]})
    if any(finding.level == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command()
def ui(
    store: Store,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on. Dagster has no login: keep it on loopback.")] = "127.0.0.1",
) -> None:
    """Open Dagster's UI on a store: the asset graph, runs, checks, plots. Ctrl-C ends it."""
    from vipe_dag.cli.ui import serve

    raise typer.Exit(serve(store, host, port))


@app.command()
def view(
    store: Store,
    video_id: Annotated[
        str | None, typer.Argument(metavar="[VIDEO_ID]", help="The first to show, as `vipe-dag status` lists them; others by the picker.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. The viewer has no login: keep it on loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trajectory to draw beside the estimate: TUM lines, or KITTI lines.")
    ] = None,
) -> None:
    """Look at cameras, depth and points in a browser. Ctrl-C ends it."""
    from vipe_dag.cli.view import serve

    serve(store, video_id, host, port, reference)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", file_okay=False, help="Where everything goes.")] = Path("demo_out"),
    scene: Annotated[
        Literal["room", "room_moving"], typer.Option(help="room_moving: behind a figure that covers a fifth of the picture.")
    ] = "room",
) -> None:
    """Render a clip whose cameras are known, run the pipeline, compare with the truth, write a page. Exits 1 when a target is missed."""
    from vipe_dag import demo as the_demo
    from vipe_dag.runner import Request, run_sources
    from vipe_dag.store import VideoStore

    root, screen = str(out / "store"), console(sys.stdout)
    request = Request(configuration(root))
    with RunDisplay(screen, keep_output=False) as display:
        display.stage_started(scene, "rendering")
        paths = the_demo.prepare(out / scene, scene, lambda done, total: display.stage_progress(scene, "rendering", done, total))
        (result,) = run_sources(root, [str(paths.video)], request, display)
    if result.status == "failed" or result.video_id is None:
        raise typer.Exit(1)
    store, seconds = VideoStore(root), {report.stage: report.compute_seconds for report in result.reports}
    summary = the_demo.summarise(store, result.video_id, paths.truth_dir, seconds)
    found = the_demo.targets(scene, summary)
    marks = {None: "", True: "[green]pass[/]", False: "[bold red]fail[/]"}
    table = Table("error", "value", "must be", "", box=None, header_style="bold")
    for target in found:
        limit = "" if target.limit is None else f"< {target.limit:g}{target.unit}"
        table.add_row(target.name, f"{target.value:.3g}{target.unit}", limit, marks[target.met])
    screen.print(table)
    page = the_demo.write_page(out / f"{scene}.html", store, result.video_id, paths.truth_dir, summary, found)
    typer.echo(page.resolve())
    if any(target.met is False for target in found):
        raise typer.Exit(1)


def _run_and_print(store: str, run: Callable[[RunDisplay], Iterable[VideoResult]], as_json: bool, debug: bool) -> None:
    """Shows a run while it goes on, and where there were several videos one table of all. Exits with 1 when a video failed."""
    screen = console(sys.stderr if as_json else sys.stdout)
    with RunDisplay(screen, keep_output=debug) as display:
        results = list(run(display))
    if len(results) > 1:
        screen.print(summary(results))
    failed = sum(result.status == "failed" for result in results)
    if as_json:
        print_json({"store": store, "videos": [result.to_json() for result in results], "failed": failed})
    if failed:
        raise typer.Exit(1)
