"""`python -m tests.chaos [EXPERIMENT …]`: run experiments, print what they found as JSON, exit 1 if a promise was broken."""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import laboratory

EXPERIMENTS = {
    "kills": laboratory.kills,
    "faults": laboratory.faults,
    "backlog": laboratory.backlog,
    "soak": laboratory.soak,
}


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that this experiment saw broken."""
    wrong = [name for name in ("missing_upstream", "differing_copies", "ledger_off_by", "exit_status") if found.get(name, 0)]
    if "gif_p99_ms" in found and found["gif_p99_ms"]["faults"] > 2 * found["gif_p99_ms"]["calm"]:
        wrong.append("gif_p99_ms: during faults over twice that of the calm phase")
    return wrong


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []], help="default: kills, faults, backlog")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--beacons", type=int, default=0, help="of faults (100,000) or backlog (1,000,000)")
    parser.add_argument("--minutes", type=float, default=0, help="of faults (5) or soak (30)")
    parser.add_argument("--rate", type=float, default=1500, help="beacons a second in soak")
    asked = parser.parse_args()
    options: dict[str, dict[str, Any]] = {
        "kills": {"n": asked.kills},
        "faults": {"beacons": asked.beacons or 100_000, "seconds": (asked.minutes or 5) * 60},
        "backlog": {"beacons": asked.beacons or 1_000_000},
        "soak": {"minutes": asked.minutes or 30, "rate": asked.rate},
    }
    status = 0
    columns = (TextColumn("{task.description:8}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    for name in asked.experiments or ["kills", "faults", "backlog"]:
        with (
            tempfile.TemporaryDirectory(prefix="beacon-proxy-chaos-") as place,
            Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar,
        ):
            task = bar.add_task(name, total=1.0, now="")

            def tell(share: float, now: str, bar: Progress = bar, task: Any = task) -> None:
                bar.update(task, completed=share, now=now)

            found = asyncio.run(EXPERIMENTS[name](Path(place), tell, **options[name]))  # type: ignore[operator]
        found["broken_promises"] = broken(found)
        print(json.dumps(found, indent=2), flush=True)
        status |= bool(found["broken_promises"])
    return status


if __name__ == "__main__":
    sys.exit(main())
