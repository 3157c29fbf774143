"""`lanes list|recover`: the files in which beacons wait, and how to bring back one that is not delivered any more."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from proxy.cli.options import ConfigOption, lanes_here
from proxy.cli.plain import plain

if TYPE_CHECKING:
    from proxy.spool.sqlite.recovery import Recovered

app = typer.Typer(
    name="lanes",
    help="Lanes: the files of the spool directory (of a nats:// spool: of its fallback) in which beacons wait.",
    no_args_is_help=True,
)
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
MEANINGS = {
    "collector": "a collector stores in it",
    "orphan": "no collector has it; what it holds is delivered",
    "copy": "not delivered: a copy",
    "newer": "not delivered: of a newer version",
    "unreadable": "cannot be read",
    "set aside": "not delivered: corrupt; see `lanes recover`",
    "recovered": "saved into another lane; can be deleted",
}


@app.command("list")
def list_(config: ConfigOption = None, as_json: AsJson = False) -> None:
    """Show each lane, who has it, what it holds and its size on the disk. With --json: one object a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from proxy.spool.sqlite.inventory import lanes

    found = lanes(lanes_here(config).directory)
    if as_json:
        for lane in found:
            print(msgspec.json.encode(lane).decode())
        return
    if not found:
        print("No lanes yet.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("lane", "pending", "dead", "MiB", "state"):
        table.add_column(column, overflow="fold", justify="left" if column in ("lane", "state") else "right")
    for lane in found:
        counts = ["" if n is None else f"{n:,}" for n in (lane.pending, lane.dead)]
        state = MEANINGS[lane.state] + (f" ({plain(lane.why)})" if lane.why else "")
        table.add_row(*map(Text, (plain(lane.name), *counts, f"{lane.bytes / 1024**2:,.1f}", state)))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


@app.command(epilog="Example: beacon-proxy lanes recover /var/lib/beacon-proxy/lane-0000.db.corrupt-1760000000000")
def recover(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The lane; its log (…-wal), if there is one, lies beside it.")],
    config: ConfigOption = None,
    certain_only: Annotated[
        bool, typer.Option("--certain-only", help="Leave out what may have been delivered before the damage.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; count what can be saved.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save what can be read of a lane into a new lane of the spool, where it is delivered. Safe while `serve` runs.

    FILE was set aside as corrupt, or no process uses it: a copy of another lane, a lane from another machine or a back-up. Then
    it is renamed to ….recovered-…, so that it is not taken twice; delete it when its beacons are delivered. Of some rows of a
    damaged lane it is not certain that they were still there; they are taken too, since a beacon that is delivered twice counts
    once. Run it as the user that runs beacon-proxy.
    Exit status: 0 all was saved, 1 something was lost (pages or rows that cannot be read), 2 wrong use, or nothing was done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from proxy.spool.sqlite import recovery
    from proxy.spool.sqlite.survey import look_for_owner

    directory, disk, _ = lanes_here(config)
    look_for_owner(directory)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = as_json or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("pages", total=None)
        report = recovery.recover(
            path,
            directory,
            disk,
            certain_only,
            dry_run,
            lambda pages: bar.update(task, total=pages),
            lambda pages: bar.advance(task, pages),
        )
    print(msgspec.json.encode(report).decode() if as_json else _words(report))
    raise typer.Exit(0 if report.is_whole else 1)


def _words(report: "Recovered") -> str:
    name = plain(report.file)
    if report.finished_earlier_run:
        done = "would be renamed" if report.dry_run else f"is renamed to {plain(Path(report.renamed_to).name)}"
        return f"An earlier run saved {name} into {report.lane}, whole, and was ended before it could rename it; it {done} now."
    into = "would be saved" if report.dry_run else f"are saved into {report.lane}"
    lines = [f"{report.fresh + report.waiting:,} beacons that wait and {report.dead:,} dead letters {into}."]
    if report.doubtful:
        lines.append(
            f"Of these {report.doubtful:,} are doubtful: they may have been delivered before; the vendor absorbs copies."
        )
    if report.left_out:
        lines.append(f"{report.left_out:,} doubtful ones are left out.")
    lost = [
        f"{n:,} {what}"
        for n, what in ((report.damaged_pages, "damaged pages"), (report.unreadable_rows, "rows that cannot be read"))
        if n
    ]
    if report.log_damaged:
        lost.append("a damaged log")
    if lost:
        lines.append(f"Lost: what was on {', '.join(lost)}.")
    if report.missing:
        lines.append(f"By its own counts at least {report.missing:,} beacons are lost.")
    if not report.counts_restored:
        lines.append("Its other counts (delivered, dropped …) are not taken over: they were lost, or another lane has them.")
    if report.renamed_to:
        lines.append(f"{name} is now {plain(Path(report.renamed_to).name)}; delete it when its beacons are delivered.")
    return "\n".join(lines)
