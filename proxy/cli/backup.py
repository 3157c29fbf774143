"""`backup`: a copy of the spool's directory while it runs, with a bar, and what it holds and what it does not in words."""

import sys
from pathlib import Path

import msgspec

from proxy.cli.options import lanes_here
from proxy.cli.plain import plain
from proxy.spool.port import beacons_wait
from proxy.spool.sqlite.backup import BackUp, back_up

ON_SERVERS = "the streams on the nats:// servers, which hold all but this host's fallback: back them up with `nats stream backup`"


def run(config: Path | None, target: Path, as_json: bool) -> int:
    """The exit status: 0 all is copied, 1 a lane is damaged. Raises SpoolError."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    directory, disk, is_fallback = lanes_here(config)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    quiet = as_json or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("back-up", total=None)
        report = back_up(directory, target, disk, lambda size: bar.update(task, total=size), lambda size: bar.advance(task, size))
    if is_fallback:
        report.not_covered = ON_SERVERS
    print(msgspec.json.encode(report).decode() if as_json else _words(report))
    return 0 if report.is_whole else 1


def _words(report: BackUp) -> str:
    waiting, dead = sum(lane.pending for lane in report.lanes), sum(lane.dead for lane in report.lanes)
    lines = [
        f"{len(report.lanes):,} lane{'s' * (len(report.lanes) != 1)}, checked: {beacons_wait(waiting)}, {dead:,} dead letters; "
        f"{report.bytes / 1024**2:,.1f} MiB "
        f"in {report.seconds:,.1f} s, in {plain(report.directory)}."
    ]
    lines += [
        f"{name} is damaged ({plain(why)}): stop beacon-proxy and save it with `beacon-proxy lanes recover`."
        for name, why in report.damaged.items()
    ]
    if report.not_covered:
        lines.append(f"Not covered: {report.not_covered}.")
    return "\n".join(lines)
