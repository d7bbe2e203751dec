"""`vipe-dag fleet`: very many videos, taken together in shards."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Column, Table

from vipe_dag.cli.arguments import AsJson, Overrides, Preset, Store, Until
from vipe_dag.cli.terminal import console, fail, print_json
from vipe_dag.graph import STAGES
from vipe_dag.placement import configuration

fleet = typer.Typer(help="Very many videos: shards, their catalogue, questions about all of them.", no_args_is_help=True)

Shards = Annotated[list[str] | None, typer.Option("--shard", metavar="K/N", help="One shard, K from 0; repeatable. Default: all of them.")]


@fleet.command()
def add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Video files, image folders, directories of videos, URLs.")],
    store: Store,
) -> None:
    """Register videos without computing anything; prints their ids. One that cannot be read does not stop the others."""
    from vipe_dag.registration import register_sources
    from vipe_dag.store import VideoStore

    failed = False
    for added in register_sources(VideoStore(store), sources):
        if isinstance(added, str):
            typer.echo(added)
        else:
            failed = True
            fail(str(added))
    if failed:
        raise typer.Exit(1)


@fleet.command()
def run(
    store: Store,
    shard: Shards = None,
    preset: Preset = None,
    overrides: Overrides = [],  # noqa: B006  typer copies it
    until: Until = STAGES[-1].name,
    retry: Annotated[bool, typer.Option("--retry", help="Also try videos that were given up after too many failures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the videos of shards up to date, one after another, and write their catalogues. Killed, it goes on where it was."""
    from vipe_dag.fleet.run import run_shards

    screen, reports = console(sys.stderr if as_json else sys.stdout), []
    for report in run_shards(store, shard, configuration(store, preset, overrides), until, retry):
        reports.append(report)
        said = ", ".join(f"{count} {words}" for words, count in report.counts().items())
        screen.print(f"[bold]{report.shard.name}[/] {len(report.outcomes)} videos in {report.seconds:.1f} s: {said}")
        for outcome in report.failed:
            fail(outcome.reason or "no reason given")
    if as_json:
        print_json({"store": store, "shards": [report.to_json() for report in reports]})
    if any(report.failed for report in reports):
        raise typer.Exit(1)


@fleet.command()
def catalogue(store: Store, shard: Shards = None, preset: Preset = None, overrides: Overrides = []) -> None:  # noqa: B006
    """Write the catalogues of shards anew from what their videos are now. A run of a shard does this at its end."""
    from vipe_dag.fleet.run import catalogue_shards

    videos = catalogue_shards(store, shard, configuration(store, preset, overrides))
    typer.echo(f"{store}: {videos} videos in the catalogue; vipe_dag.open_fleet({store!r}) reads it")


@fleet.command()
def status(store: Store, preset: Preset = None, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show what shards have to do, by their catalogues: nothing of the videos themselves is read."""
    from vipe_dag.fleet.run import states_of

    found = states_of(store, configuration(store, preset, overrides))
    screen, counts = console(sys.stderr if as_json else sys.stdout), ("videos", "current", "new", "stale", "given_up")
    table = Table(Column("shard", no_wrap=True), *(Column(name, justify="right") for name in counts), box=None, header_style="bold")
    for state in found:
        if state.due:
            table.add_row(state.shard.name, *(str(getattr(state, name)) for name in counts))
    total = {name: sum(getattr(state, name) for state in found) for name in counts}
    table.add_row(f"all {len(found)}", *(str(count) for count in total.values()))
    screen.print(table)
    if as_json:
        print_json({"store": store, **total, "due": [state.shard.name for state in found if state.due]})
