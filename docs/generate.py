"""Writes the tables that are made from the code into the documents: `make docs`. With --check it only tells what is stale."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cluster import cluster_tables

from proxy import settings
from proxy.admin.config import AdminConfig
from proxy.admin.metrics import Reading, Seen, families
from proxy.admin.report import Report, StatsReport, UpstreamReport
from proxy.delivery import Answer, Final, Policy, decide
from proxy.histogram import SECONDS, Histogram
from proxy.outcome import Outcome
from proxy.spool.port import IntakeStats, Ledger, SpoolConfig

ROOT = Path(__file__).resolve().parent.parent


def outcomes_table() -> str:
    """Every way a hit can end, as a Markdown table."""
    rows = ["| outcome | ending | what it means |", "| --- | --- | --- |"]
    return "\n".join([*rows, *(f"| `{outcome}` | {outcome.ending} | {outcome.meaning} |" for outcome in Outcome)])


def verdicts_table() -> str:
    """What decide() makes of each kind of answer, as a Markdown table: asked of the function itself."""
    policy = Policy()

    def say(answer: Answer, **circumstances: Any) -> str:
        facts = {"attempt": 1, "age_ms": 0, "policy": policy, "now_ms": 0, "jitter": 0.999999, **circumstances}
        verdict = decide(answer, **facts)
        if isinstance(verdict, Final):
            return f"{verdict.outcome.ending} (`{verdict.outcome}`)"
        return f"again within {(verdict.due_ms + 1) / 1000:g} s" + ("" if verdict.counted else ", attempt not counted")

    answers = [Answer(status) for status in (200, 204, 304, 301, 302, 400, 401, 403, 404, 408, 425, 429, 500, 502, 503, 504)]
    by_row: dict[tuple[str, ...], list[str]] = {}
    for answer in [*answers, Answer(failure="no connection, a timeout, half an answer")]:
        row = (
            say(answer),
            say(answer, attempt=4),
            say(answer, attempt=9, blamed=False),
            say(answer, attempt=policy.max_attempts),
            say(answer, age_ms=policy.max_age_ms + 1),
        )
        by_row.setdefault(row, []).append(str(answer))
    head = (
        "the upstream answers",
        "1st attempt",
        "4th attempt",
        "while it fails everything",
        "attempt 20, others pass",
        "older than max_age",
    )
    rows = [head, tuple("---" for _ in head), *((", ".join(answers), *row) for row, answers in by_row.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def metrics_table() -> str:
    """Every family of `/metrics`, as a Markdown table: told by the code that tells them, for a spool with a bit of everything."""
    stats = StatsReport({"200": 1}, Histogram(SECONDS), Histogram(SECONDS))
    told = Report(0, {"http://vendor.example": UpstreamReport("closed", stats=stats)})
    seen = Seen(Ledger({}, 0, None), told, IntakeStats(), 0, 0)
    rows = ["| metric | type | labels | what it is |", "| --- | --- | --- | --- |"]
    for family in families(Reading(AdminConfig(SpoolConfig("memory:"), ("default",)), 0.0, True, seen)):
        labels = dict.fromkeys(name for sample in family.samples for name in sample.labels if name != "le")
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {family.documentation} |")
    return "\n".join(rows)


TABLES = {
    "README.md": ("settings", settings.table),
    "docs/settings.md": ("settings", settings.table),
    "docs/metrics.md": ("metrics", metrics_table),
    "docs/outcomes.md": ("outcomes", outcomes_table),
    "docs/delivery.md": ("verdicts", verdicts_table),
    "docs/scale-out.md": ("measured", cluster_tables),
}


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
