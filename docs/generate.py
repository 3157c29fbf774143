"""Writes the tables that are made from the code into the documents: `make docs`. With --check it only tells what is stale."""

import argparse
import sys
from pathlib import Path

from proxy import settings
from proxy.outcome import Outcome

ROOT = Path(__file__).resolve().parent.parent


def outcomes_table() -> str:
    """Every way a hit can end, as a Markdown table."""
    rows = ["| outcome | ending | what it means |", "| --- | --- | --- |"]
    return "\n".join([*rows, *(f"| `{outcome}` | {outcome.ending} | {outcome.meaning} |" for outcome in Outcome)])


TABLES = {"README.md": ("settings", settings.table), "docs/outcomes.md": ("outcomes", outcomes_table)}


def main() -> int:
    """Exit status 1 if --check found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    check = parser.parse_args().check
    stale = []
    for name, (marker, table) in TABLES.items():
        file = ROOT / name
        text = file.read_text("utf-8")
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        fresh = f"{head}{begin}\n{table()}\n{end}{tail}"
        if fresh != text:
            stale.append(name)
            if not check:
                file.write_text(fresh, "utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
