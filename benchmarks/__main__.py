"""`python -m benchmarks [GROUP …]`: measure, and print one table. It never fails for a time, only for a wrong answer.

Two programs are compared in one run, in turn; what counts is the ratio, and the spread tells how far to believe it.

With --against DIR the other program is another version of this one (git worktree add DIR COMMIT). Both run with the libraries of
this environment. Groups that compare no versions measure as ever.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import enrichment, forwarding, growth, intake, latency, spool, storage, whole
from benchmarks.checkout import checkout
from benchmarks.line import QUICK, Effort, Line
from benchmarks.load import WrongAnswers
from benchmarks.stage import Missing

GROUPS: dict[str, Callable[..., Iterator[Line]]] = {
    "enrichment": enrichment.measure,
    "growth": growth.measure,
    "intake": intake.measure,
    "scaling": intake.scaling,
    "latency": latency.states,
    "nginx": latency.behind_nginx,
    "forwarding": forwarding.measure,
    "whole": whole.measure,
    "spool": spool.measure,
    "storage": storage.measure,
}
"""Each is given the effort and a place for spools."""
COMPARED = ("storage", "intake", "forwarding")
"""Those that can measure another version in turn: they are also given that, or None."""


def machine() -> dict[str, str | int]:
    """Where this was measured."""
    names = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line}
    return {
        "processor": ", ".join(sorted(names)),
        "cores": os.cpu_count() or 0,
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
    }


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"default: all of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each line (default 5)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of load in each turn (default 4)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one short round; the figures mean little")
    parser.add_argument("--place", type=Path, default=Path.cwd(), help="where spools are made; a real disk (default: here)")
    compared = ", ".join(COMPARED)
    against = f"a checkout of another version, measured in turn with this one; for {compared}"
    parser.add_argument("--against", type=checkout, metavar="DIR", help=against)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep table and raw figures as JSON")
    asked = parser.parse_args()
    if unknown := set(asked.groups) - set(GROUPS):
        parser.error(f"found {', '.join(sorted(unknown))}; expected some of {', '.join(GROUPS)}")
    if asked.against and asked.groups and not set(asked.groups) & set(COMPARED):
        parser.error(f"--against is for {compared}; found {', '.join(asked.groups)}")
    effort = QUICK if asked.quick else Effort(asked.rounds, asked.seconds)
    progress, lines = Console(stderr=True), list[Line]()
    try:
        with tempfile.TemporaryDirectory(dir=asked.place, prefix=".bench-") as place:
            for group in asked.groups or GROUPS:
                began = time.monotonic()
                with progress.status(f"measuring: {group}"):
                    other = (asked.against,) if group in COMPARED else ()
                    lines += GROUPS[group](effort, Path(place), *other)
                progress.print(f"{group}: {time.monotonic() - began:.0f} s")
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    except WrongAnswers as wrong:
        print(f"NOT ALL ANSWERS WERE RIGHT: {wrong}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd))}: {failed.stderr}", file=sys.stderr)
        return 1
    table = Table("measure", "against", "reach", "found: median (least–greatest)", "holds")
    for line in lines:
        table.add_row(*line.row())
    Console(width=None if sys.stdout.isatty() else 170).print(table)
    if asked.keep:
        raw = [{**line._asdict(), "form": None, "holds": line.holds, "shown": line.spread()} for line in lines]
        kept = {"machine": machine(), "command": " ".join(["python -m benchmarks", *sys.argv[1:]]), "lines": raw}
        asked.keep.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
