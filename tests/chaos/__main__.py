"""`python -m tests.chaos [EXPERIMENT …]`: run experiments, print what they found as JSON.

Exit status: 0, 1 if a promise was broken, 2 if an experiment cannot be made here.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import disk, laboratory
from tests.chaos.schedule import RECOVER_S
from tests.chaos.volume import KINDS, CannotMount

EXPERIMENTS = {
    "kills": laboratory.kills,
    "faults": laboratory.faults,
    "backlog": laboratory.backlog,
    "disk": disk.disk,
    "soak": laboratory.soak,
}

DEFAULT = ["kills", "faults", "backlog", "disk"]
NONE_OF = (
    "missing_upstream",
    "differing_copies",
    "ledger_off_by",
    "undrained",
    "status_unreadable",
    "refusing_in_the_end",
    "set_aside",
    "failed_starts",
    "ended_by_itself",
    "exit_status",
)


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that this experiment saw broken."""
    wrong = [name for name in NONE_OF if found.get(name, 0)]
    if found.get("recover_s", 0) > RECOVER_S:
        wrong.append(f"recover_s: over {RECOVER_S:g} s without a 200 although there was room")
    if "gif_p99_ms" in found and found["gif_p99_ms"]["faults"] > 2 * found["gif_p99_ms"]["calm"]:
        wrong.append("gif_p99_ms: during faults over twice that of the calm phase")
    return wrong


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []], help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--beacons", type=int, default=0, help="of faults (100,000) or backlog (1,000,000)")
    parser.add_argument("--minutes", type=float, default=0, help="of faults (5), disk (10) or soak (30)")
    parser.add_argument("--rate", type=float, default=0, help="beacons a second in disk (400) or soak (1500)")
    parser.add_argument("--seed", type=int, help="of disk: repeat the run that printed it (default: another one each time)")
    parser.add_argument(
        "--file-system",
        choices=KINDS,
        default="",
        help="of disk: on a loop device, or in memory (default: ext4 if it can be had)",
    )
    parser.add_argument(
        "--no-fillers", action="store_true", help="of disk: all but what fills the disk; tries the experiment itself"
    )
    parser.add_argument("--place", type=Path, metavar="DIRECTORY", help="work there, and leave spools and logs behind")
    asked = parser.parse_args()
    options: dict[str, dict[str, Any]] = {
        "kills": {"n": asked.kills},
        "faults": {"beacons": asked.beacons or 100_000, "seconds": (asked.minutes or 5) * 60},
        "backlog": {"beacons": asked.beacons or 1_000_000},
        "disk": {
            "minutes": asked.minutes or 10,
            "rate": asked.rate or 400,
            "seed": asked.seed,
            "file_system": asked.file_system,
            "fillers": not asked.no_fillers,
        },
        "soak": {"minutes": asked.minutes or 30, "rate": asked.rate or 1500},
    }
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # clean up, as for Ctrl-C
    lost = impossible = False
    for name in asked.experiments or DEFAULT:
        try:
            found = _run(name, options[name], asked.place)
        except CannotMount as error:
            print(f"{name}: {error}", file=sys.stderr)
            impossible = True
            continue
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 130
        found["broken_promises"] = broken(found)
        print(json.dumps(found, indent=2), flush=True)
        lost |= bool(found["broken_promises"])
    return 1 if lost else 2 if impossible else 0


def _run(name: str, options: dict[str, Any], place: Path | None) -> dict[str, Any]:
    """What that experiment found, with a progress bar on a terminal."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    with (
        _place(name, place) as directory,
        Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar,
    ):
        task = bar.add_task(name, total=1.0, now="")

        def tell(share: float, now: str) -> None:
            bar.update(task, completed=share, now=now)

        found: dict[str, Any] = asyncio.run(EXPERIMENTS[name](directory, tell, **options))  # type: ignore[operator]
    return found


@contextlib.contextmanager
def _place(name: str, place: Path | None) -> Iterator[Path]:
    """An empty directory for that experiment, which stays if a place was asked for."""
    if place is None:
        with tempfile.TemporaryDirectory(prefix="beacon-proxy-chaos-") as directory:
            yield Path(directory)
    else:
        place.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))


if __name__ == "__main__":
    sys.exit(main())
