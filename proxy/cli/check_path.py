"""`check-path`: are the configured names blocked by filter lists?"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from proxy.cli.plain import plain
from proxy.hit import Hit
from proxy.lists import files, seen
from proxy.lists.engine import FilterList
from proxy.lists.fetch import Cache, Listing, cache_directory
from proxy.lists.sources import OFFICIAL
from proxy.lists.trial import HOST, Report, Trial, hosts_of
from proxy.settings import Settings
from proxy.spool import begun, look_into, some_hits
from proxy.spool.port import SpoolConfig, SpoolError

MOST_HITS = 5000
"""Of the spool that are looked through for what pages send."""


def run(
    settings: Settings,
    places: Sequence[Path],
    hosts: Sequence[str],
    queries: Sequence[str],
    refresh: bool,
    offline: bool,
    as_json: bool,
) -> int:
    """The exit status: 0 passes, 1 something is blocked, 2 these are hardly the right lists. Raises NoEngine or CannotRead."""
    FilterList("", "")  # is the engine there? Before anything is fetched
    listings = [Listing(*found) for found in files.read(places)] if places else _official(refresh, offline, quiet=as_json)
    for listing in listings:
        if listing.note:
            _warn(listing.note)
        elif not files.has_rules(listing.text):
            _warn(f"{listing.name}: has no rule; expected a filter list")
    lists = [FilterList(listing.name, listing.text) for listing in listings if listing.text]
    config = settings.collector()
    hits = _hits(config.spool)
    upstreams = [settings.upstream, *(site.upstream for site in settings.sites.values() if site.upstream)]
    named = [seen.event(query, config) for query in queries]
    report = Trial(lists, hosts_of(config, hosts)).run(config, upstreams, seen.queries([*named, *hits]))
    report.beacons_in_spool = len(hits)
    print(json.dumps(msgspec.to_builtins(report)) if as_json else _words(report, len(named)))
    if report.control_failed:
        _warn(
            "none of these lists blocks the vendor's own addresses, so they are hardly filter lists that visitors use, and what "
            "they let pass means nothing; expected such as easyprivacy.txt, or no LIST for the official ones"
        )
        return 2
    return 1 if report.blocked else 0


def _warn(text: str) -> None:
    print(f"beacon-proxy: {plain(text)}", file=sys.stderr)


def _hits(spool: SpoolConfig) -> list[Hit]:
    """Of the spool, if there is one that this user may look into: the check goes on without."""
    try:
        if begun(spool):
            look_into(spool)
        return some_hits(spool, MOST_HITS)
    except SpoolError as error:
        _warn(f"{error}; until then parameters are the typical ones alone")
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


def _words(report: Report, named: int) -> str:
    """For people: what is blocked first, then what was done. `named`: queries that the user gave."""
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
                blocked.example[:80],
            )
            table.add_row(*(Text(plain(cell)) for cell in row))
        Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    asked, known = len(report.control.asked), len(report.control.blocked)
    lines = [
        f"{report.addresses:,} addresses on {' and '.join(report.hosts)}, as image, ping, xhr and script.",
        f"{len(report.lists)} lists: {', '.join(report.lists)}.",
        f"Parameters: typical of the API, those of {report.beacons_in_spool:,} beacons in the spool, and of {named} --query.",
        f"Control: of {asked} hosts of the vendor these lists block {known}.",
    ]
    if not report.beacons_in_spool and not named:
        lines.append(
            "No beacon waits in the spool (they are delivered), so the names of your own properties were not looked at: "
            "say them, --query 'Product=Teapot&Price=19'."
        )
    if any(blocked.setting == HOST for blocked in report.blocked):
        lines.append('Where the setting is "host", everything on that host is blocked: no other name helps, only another host.')
    if any(blocked.setting != HOST for blocked in report.blocked):
        lines.append(
            'Something is blocked. What stands under "instead" was asked for too, and passes: put it before the old name '
            "(prefix, script, endpoints, parameters), and into new pages."
        )
    elif not report.blocked and not report.control_failed:
        lines.append("Nothing is blocked.")
    return "\n".join(plain(line) for line in lines)
