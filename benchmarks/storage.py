"""What it costs to store a beacon and to settle it: processor time, time, and bytes written from receipt to delivery.

Each turn is a process of its own on one core, with a new spool. Against another version the two take turns (A B A B …).
"""

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks import stage
from benchmarks.checkout import OURS, Checkout
from benchmarks.fill import hit
from benchmarks.line import Effort, Line, ratios
from proxy.hit import Hit

QUERY_BYTES = (600, 2_000)
DURABILITIES = ("os", "disk")
CLAIMS = 160
"""A backlog, in claims of 256 beacons."""
HITS = 1_000
"""Different ones."""


class Turn(NamedTuple):
    """What is done to a spool."""

    name: str
    """"backlog" or "steady", see turn.py."""
    durability: str
    query_bytes: int


class Figure(NamedTuple):
    """A figure of a turn, and what it should be against another version's."""

    turn: Turn
    what: str
    part: str
    """"stored", "settled" or "whole"."""
    of: str
    """A field of turn.Spent, of each beacon."""
    reach: float | None = None
    """Of a cost in time: how many times less; of bytes: the share of the other's."""


def _hits(query_bytes: int) -> list[Hit]:
    """Beacons with a query of so many bytes each."""
    found = [hit(n) for n in range(HITS)]
    return [msgspec.structs.replace(one, query=(one.query + b"&text=").ljust(query_bytes, b"x")) for one in found]


def _figures() -> Iterator[Figure]:
    for part, what, reach in (("stored", "storing", 1.0), ("settled", "claiming and settling", 1.4)):
        for size, durability in product(QUERY_BYTES, DURABILITIES):
            turn, whole = Turn("backlog", durability, size), f"{what}, query of {size:,} bytes, durability={durability}"
            yield Figure(turn, f"{whole}: processor µs", part, "processor_us", reach)
            yield Figure(turn, f"{whole}: µs", part, "us")
    for size in QUERY_BYTES:
        soon, late, synced = Turn("steady", "os", size), Turn("backlog", "os", size), Turn("steady", "disk", size)
        query, share = f"query of {size:,} bytes", {600: None, 2_000: 0.5}[size]
        yield Figure(soon, f"bytes written a beacon, {query}, settled soon", "whole", "bytes", share)
        yield Figure(late, f"bytes written a beacon, {query}, a backlog", "whole", "bytes")
        yield Figure(synced, f"bytes on the disk a beacon, {query}, settled soon", "whole", "disk_bytes")


def measure(effort: Effort, place: Path, other: Checkout | None = None) -> Iterator[Line]:
    """A line for each figure: absolute, or against the other version."""
    figures = list(_figures())
    versions = [OURS, other] if other else [OURS]
    beacons = max(4, int(CLAIMS * effort.scale)) * 256
    hits = {size: _hits(size) for size in QUERY_BYTES}
    runs: dict[Turn, list[list[stage.Found]]] = {figure.turn: [[] for _ in versions] for figure in figures}
    for _ in range(effort.rounds):
        for turn, found in runs.items():
            for version, of_version in zip(versions, found, strict=True):
                with tempfile.TemporaryDirectory(dir=place) as spool:
                    of_version.append(
                        stage.turn(version, turn.name, Path(spool), hits[turn.query_bytes], beacons, turn.durability)
                    )
    for figure in figures:
        yield _line(figure, [[run[figure.part][figure.of] for run in found] for found in runs[figure.turn]], other)


def _line(figure: Figure, found: list[list[float]], other: Checkout | None) -> Line:
    """`found`: the figures of each version, ours first."""
    is_time = figure.of in ("processor_us", "us")
    form = "{:,.1f}".format if is_time else "{:,.0f}".format
    if other is None:
        return Line(figure.what, "—", None, found[0], form, at_least=False)
    ours, theirs = found
    of_each = f"({form(median(theirs))} there, {form(median(ours))} here)"
    context = {"here": ours, "there": theirs}
    if is_time:
        return Line(figure.what, f"{other.name}: times less {of_each}", figure.reach, ratios(theirs, ours), context=context)
    against, share = f"{other.name}: share of it {of_each}", ratios(ours, theirs)
    return Line(figure.what, against, figure.reach, share, at_least=False, context=context)
