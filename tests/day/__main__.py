"""`make day`, or `python -m tests.day`: an operator's day, with traffic all the while, and an account at the end.

The package is built and installed into an environment of its own; a service manager's part is played by a few lines that hold the
sockets; nginx with TLS stands in front with the files of deploy/nginx. Then: the upstream is away for minutes, the service is
restarted, upgraded, dead letters are replayed, the key is rotated, every collector is gone for a while and what nginx kept is
ingested. At the end each beacon that was answered 200 must be at the vendor, once or in identical copies, and the ledger balance.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.day.play import Day


def main() -> int:
    """The exit status: 0 when the account balances."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.day", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=200, help="beacons a second (default 200)")
    parser.add_argument("--away", type=float, default=120, help="seconds for which the upstream is away (default 120)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="screenshots of the status page go there (needs chromium)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the account as JSON")
    asked = parser.parse_args()
    console, began = Console(highlight=False), time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}", soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="beacon-proxy-day-") as place:
        account = asyncio.run(Day(Path(place), asked.rate, asked.away, asked.pictures, tell).run())
    for name, value in account.items():
        console.print(f"{name:<22} {json.dumps(value)}", soft_wrap=True)
    if asked.keep:
        command = f"python -m tests.day --rate {asked.rate:g} --away {asked.away:g}"
        asked.keep.write_text(json.dumps({"command": command, **account}, indent=1) + "\n")
    good = not (account["missing"] or account["copies_that_differ"] or account["ledger_off"])
    console.print("[green]The account balances.[/]" if good else "[red]THE ACCOUNT DOES NOT BALANCE.[/]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
