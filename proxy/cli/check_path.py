"""`check-path`: are the configured names blocked by filter lists?"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from proxy.hit import Hit
from proxy.lists import files, seen
from proxy.lists.engine import FilterList
from proxy.lists.fetch import Cache, Listing, cache_directory
from proxy.lists.sources import OFFICIAL
from proxy.lists.trial import Report, Trial, hosts_of
from proxy.settings import Settings
from proxy.spool import begun, look_into, some_hits
from proxy.spool.port import SpoolConfig, SpoolError

MOST_HITS = 5000
"""Of the spool that are looked through for what pages send."""


def run(settings: Settings, places: Sequence[Path], hosts: Sequence[str], refresh: bool, offline: bool, as_json: bool) -> int:
    """The exit status: 0 passes, 1 something is blocked. Raises NoEngine or CannotRead."""
    FilterList("", "")  # is the engine there? Before anything is fetched
    listings = [Listing(*found) for found in files.read(places)] if places else _official(refresh, offline, quiet=as_json)
    for listing in listings:
        if listing.note:
            print(f"beacon-proxy: {listing.note}", file=sys.stderr)
    lists = [FilterList(listing.name, listing.text) for listing in listings if listing.text]
    config = settings.collector()
    hits = _hits(config.spool)
    upstreams = [settings.upstream, *(site.upstream for site in settings.sites.values() if site.upstream)]
    report = Trial(lists, hosts_of(config, hosts)).run(config, upstreams, seen.queries(hits))
    print(msgspec.json.encode(report).decode("utf-8") if as_json else _words(report, len(hits)))
    if not report.control.blocked:
        print(
            "beacon-proxy: none of these lists blocks the vendor's own addresses, so they are hardly those that visitors use; "
            "without LIST the official ones are asked",
            file=sys.stderr,
        )
    return 1 if report.blocked else 0


def _hits(spool: SpoolConfig) -> list[Hit]:
    """Of the spool, if there is one that this user may look into: the check goes on without."""
    try:
        if begun(spool):
            look_into(spool)
        return some_hits(spool, MOST_HITS)
    except SpoolError as error:
        print(f"beacon-proxy: {error}; until then parameters are the typical ones alone", file=sys.stderr)
        return []


def _official(refresh: bool, offline: bool, quiet: bool) -> list[Listing]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    sources = tuple(source for source in OFFICIAL)
    columns = (TextColumn("filter lists: {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=len(sources))
        begun = 0

        def progress(name: str, of: int) -> None:
            nonlocal begun
            bar.update(task, description=name, total=of, completed=begun)
            begun += 1

        return Cache(cache_directory(os.environ), sources).lists(refresh=refresh, offline=offline, progress=progress)


def _words(report: Report, hits: int) -> str:
    """For people: what is blocked first, then what was done."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if report.blocked:
        table = Table(box=None, pad_edge=False)
        for column in ("setting", "found", "instead", "blocked as", "by the rule", "of", "for example"):
            table.add_column(column, overflow="fold")
        for blocked in report.blocked:
            row = (
                blocked.setting,
                blocked.found,
                blocked.instead or "(none found)",
                " ".join(blocked.types),
                blocked.rule[:80],
                blocked.list,
                _plain(blocked.example)[:80],
            )
            table.add_row(*(Text(_plain(cell)) for cell in row))
        Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    asked, known = len(report.control.asked), len(report.control.blocked)
    lines = [
        f"{report.addresses:,} addresses on {' and '.join(report.hosts)}, as image, ping, xhr and script.",
        f"{len(report.lists)} lists: {', '.join(report.lists)}.",
        f"Parameters: those typical of the API, and those of {hits:,} beacons in the spool.",
        f"Control: of {asked} hosts of the vendor these lists block {known}.",
    ]
    if report.blocked:
        lines.append(
            'Something is blocked. What stands under "instead" was asked for too, and passes: put it before the old name '
            "(prefix, script, endpoints, parameters), and into new pages."
        )
    else:
        lines.append("Nothing is blocked.")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Harmless on a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
