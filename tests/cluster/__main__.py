"""`make chaos-cluster`, or `python -m tests.cluster`: a cluster on this machine, broken on purpose, and an account at the end.

Three nats-servers with JetStream (three replicas), two hosts with collectors, two forwarders, a vendor that counts, and load.
Without options: 100 kills, an outage of 60 s, and every mishap once. Exit status 0 if every beacon that was answered 200 arrived,
copies are identical to the byte, and the ledger balances; else 1.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.__main__ import machine
from proxy.cli.cluster import Missing
from tests.cluster import experiments, throughput
from tests.cluster.laboratory import Found, broken


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, metavar="N", help="kill -9 so often: collector, forwarder, leading broker, any broker"
    )
    parser.add_argument("--outage", type=float, metavar="SECONDS", help="all three brokers are gone for so long")
    parser.add_argument("--mishaps", action="store_true", help="leader frozen, cut off; disk full (as root); restarts; power cut")
    parser.add_argument(
        "--throughput", action="store_true", help="two collectors and two forwarders against one of each, in turn"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of --throughput (default 5)")
    parser.add_argument("--rate", type=float, default=300, help="beacons a second, but for --throughput (default 300)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="put the figures into that file, beside those of other experiments"
    )
    asked = parser.parse_args()
    wanted: dict[str, Callable[..., Any]] = {}
    everything = not (asked.kills or asked.outage or asked.mishaps or asked.throughput)
    if asked.kills or everything:
        wanted["kills"] = lambda place, tell: experiments.kills(place, tell, asked.kills or 100, asked.rate)
    if asked.outage or everything:
        wanted["outage"] = lambda place, tell: experiments.outage(place, tell, asked.outage or 60.0, asked.rate)
    if asked.mishaps or everything:
        wanted["mishaps"] = lambda place, tell: experiments.mishaps(place, tell, asked.rate)
    if asked.throughput:
        wanted["throughput"] = lambda place, tell: throughput.measure(place, tell, asked.rounds)
    console, status = Console(stderr=True, highlight=False), 0
    for name, experiment in wanted.items():
        try:
            found = _run(name, experiment, console)
        except Missing as missing:
            console.print(str(missing))
            return 2
        found["broken_promises"] = broken(found)
        status |= bool(found["broken_promises"])
        if asked.keep:
            _keep(asked.keep, name, found)
        print(json.dumps(found if asked.json else _shown(found), indent=2), flush=True)
    return status


def _run(name: str, experiment: Callable[..., Any], console: Console) -> Found:
    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    with (
        tempfile.TemporaryDirectory(prefix="beacon-proxy-cluster-", ignore_cleanup_errors=True) as place,
        Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar,
    ):
        task = bar.add_task(name, total=1.0, now="")
        found: Found = asyncio.run(experiment(Path(place), lambda share, now: bar.update(task, completed=share, now=now)))
        return found


def _shown(found: Found) -> Found:
    return {name: value for name, value in found.items() if name != "raw"}


def _keep(file: Path, name: str, found: Found) -> None:
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept |= {"machine": machine(), name: {"load_average": round(os.getloadavg()[0], 1), **found}}
    file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
