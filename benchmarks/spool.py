"""The spool with ten million hits waiting, against an empty one: appending, and claiming and settling."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fill import append_all, fill
from benchmarks.line import Effort, Line, ratios
from proxy.delivery import Final
from proxy.outcome import Outcome
from proxy.spool import open_outlet
from proxy.spool.port import Settlement, SpoolConfig

WAITING = 10_000_000
SAMPLE = 40_000
CLAIM = 512


def claimed_and_settled(spool: Path, n: int) -> float:
    """Hits a second."""
    outlet = open_outlet(SpoolConfig(f"sqlite:{spool}"))
    try:
        outlet.claim(1, time.time_ns() // 1_000_000)
        began, done = time.perf_counter(), 0
        while done < n:
            claims = outlet.claim(CLAIM, time.time_ns() // 1_000_000)
            outlet.settle([Settlement(claim, Final(Outcome.DELIVERED)) for claim in claims])
            done += len(claims)
        return done / (time.perf_counter() - began)
    finally:
        outlet.close()


def appended(spool: Path, n: int) -> float:
    """Hits a second."""
    began = time.perf_counter()
    asyncio.run(append_all(spool, n))
    return n / (time.perf_counter() - began)


def measure(effort: Effort, place: Path) -> Iterator[Line]:
    """Two lines. Each round appends a sample to either spool and claims as many."""
    n = max(2_000, int(SAMPLE * effort.scale))
    inserts: dict[str, list[float]] = {"empty": [], "full": []}
    claims: dict[str, list[float]] = {"empty": [], "full": []}
    with tempfile.TemporaryDirectory(dir=place) as full, tempfile.TemporaryDirectory(dir=place) as empty:
        fill(Path(full), int(WAITING * effort.scale))
        for _ in range(2 * effort.rounds):
            for name, spool in (("empty", Path(empty)), ("full", Path(full))):
                inserts[name].append(appended(spool, n))
                claims[name].append(claimed_and_settled(spool, n - CLAIM - 1))
    waiting = f"spool with {int(WAITING * effort.scale):,} waiting"
    for what, found in (("append", inserts), ("claim and settle", claims)):
        yield Line(f"{waiting}: {what}", "empty", 0.9, ratios(found["full"], found["empty"]), context=found)
