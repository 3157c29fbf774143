"""`dead list|replay|discard`: what ended undelivered, and what to do with it. All are safe while everything runs."""

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from proxy.beacon import parameters
from proxy.cli.options import ConfigOption, existing_spool
from proxy.outcome import Ending, Outcome
from proxy.spool import open_dead_letters
from proxy.spool.port import DeadFilter, DeadLetter, DeadLetters

app = typer.Typer(name="dead", help="Dead letters: beacons that ended undelivered, with the reason.", no_args_is_help=True)

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
REASONS = [outcome.value for outcome in Outcome if outcome.ending is Ending.DEAD]


def _age(text: str) -> float:
    """ "7d" → seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", text.strip())
    if match is None:
        raise typer.BadParameter(f"found {text!r}; expected an age such as 90s, 30m, 12h, 7d or 2w")
    return float(match[1]) * UNITS[match[2]]


def _reason(text: str) -> str:
    if text not in REASONS:
        raise typer.BadParameter(f"found {text!r}; expected one of {', '.join(REASONS)}")
    return text


Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As `dead list` shows them; none stands for all.")]
Reason = Annotated[str | None, typer.Option(parser=_reason, metavar="REASON", help=f"Only this reason: {', '.join(REASONS)}.")]
Site = Annotated[str, typer.Option(help="Only this site.")]
Older = Annotated[float | None, typer.Option(parser=_age, metavar="AGE", help="Only those that died longer ago than, say, 7d.")]
Newer = Annotated[float | None, typer.Option(parser=_age, metavar="AGE", help="Only those that died within, say, the last 2h.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.command("list")
def list_(
    config: ConfigOption = None,
    ids: Ids = None,
    reason: Reason = None,
    site: Site = "",
    older: Older = None,
    newer: Newer = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the latest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show dead letters. With --json: one object a line, with all that was received but the visitor's address."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    letters, wanted = _open(config), _filter(ids, reason, site, older, newer)
    found = letters.list(wanted, limit)
    if as_json:
        for letter in found:
            print(json.dumps(_plain(letter)))
        return
    count = letters.count(wanted)
    if not count:
        print("No dead letters." if wanted == DeadFilter() else "No dead letters match.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "died (UTC)", "reason", "answer", "attempts", "site", "what"):
        table.add_column(column, overflow="fold", justify="right" if column == "attempts" else "left")
    for letter in found:
        died = datetime.fromtimestamp(letter.died_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        row = (letter.id, died, letter.outcome, letter.answer, str(letter.attempts), letter.site, _what(letter))
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    if count > len(found):
        print(f"{len(found):,} of {count:,}; more with --limit.")


@app.command()
def replay(
    config: ConfigOption = None,
    ids: Ids = None,
    reason: Reason = None,
    site: Site = "",
    older: Older = None,
    newer: Newer = None,
    as_json: AsJson = False,
) -> None:
    """Make dead letters pending again: all, or those that match. Their times and contents stay, so nothing counts twice.

    They are delivered by the forwarder that runs, or by the next one.
    """
    letters, wanted = _open(config), _filter(ids, reason, site, older, newer)
    n = _with_progress(letters, wanted, lambda told: letters.replay(wanted, time.time_ns() // 1_000_000, told), as_json)
    print(json.dumps({"replayed": n}) if as_json else f"{n:,} dead letters are pending again.")


@app.command()
def discard(
    config: ConfigOption = None,
    ids: Ids = None,
    reason: Reason = None,
    site: Site = "",
    older: Older = None,
    newer: Newer = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Throw dead letters away for good: all, or those that match. Asks first."""
    letters, wanted = _open(config), _filter(ids, reason, site, older, newer)
    count = letters.count(wanted)
    if count and not yes and not typer.confirm(f"Throw {count:,} dead letters away for good?", err=True):
        print("Nothing was thrown away.", file=sys.stderr)
        raise typer.Exit(1)
    n = _with_progress(letters, wanted, lambda told: letters.discard(wanted, told), as_json)
    print(json.dumps({"discarded": n}) if as_json else f"{n:,} dead letters were thrown away.")


def _open(config: Any) -> DeadLetters:
    return open_dead_letters(existing_spool(config))


def _filter(ids: list[str] | None, reason: str | None, site: str, older: float | None, newer: float | None) -> DeadFilter:
    for id in ids or ():
        if not re.fullmatch(r"lane-\d{4}:\d{1,18}", id):
            raise typer.BadParameter(f"found {id!r}; expected an id as `dead list` shows it, such as lane-0000:17")
    now_ms = time.time_ns() // 1_000_000
    return DeadFilter(
        tuple(ids or ()),
        reason or "",
        site,
        None if older is None else int(now_ms - older * 1000),
        None if newer is None else int(now_ms - newer * 1000),
    )


def _with_progress(letters: DeadLetters, wanted: DeadFilter, work: Callable[[Callable[[int], None]], int], quiet: bool) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("dead letters", total=letters.count(wanted))
        return work(lambda n: bar.advance(task, n))


def _what(letter: DeadLetter) -> str:
    """The call and the event's name, harmless on a terminal."""
    if letter.hit is None:
        return "(unreadable)"
    name = next((value for name, value in parameters(letter.hit) if name == "_n"), "")
    return "".join(c if c.isprintable() else "\ufffd" for c in f"/{letter.hit.kind} {name}")[:80]


def _plain(letter: DeadLetter) -> dict[str, Any]:
    hit = letter.hit
    facts: dict[str, Any] = {
        "id": letter.id,
        "reason": letter.outcome,
        "answer": letter.answer,
        "attempts": letter.attempts,
        "site": letter.site,
        "died_ms": letter.died_ms,
    }
    if hit is not None:
        facts |= {
            "kind": hit.kind,
            "query": hit.query.decode("latin-1"),
            "body": hit.body.decode("latin-1"),
            "host": hit.host,
            "received_ms": hit.received_ms,
        }
    return facts
