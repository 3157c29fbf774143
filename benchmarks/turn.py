"""One turn of storing and settling, in a process of its own: `python benchmarks/turn.py ROOT TURN SPOOL DURABILITY BEACONS`.

The hits to store come on standard input as JSON and are stored again and again; the figures go to standard output, as JSON.
ROOT is the version of the project that is measured, maybe an earlier one: so this imports nothing of `benchmarks`, and of `proxy`
only what every version has. `stage.turn` starts it.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

import proxy
from proxy.delivery import Final
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool import open_intake, open_outlet
from proxy.spool.port import Intake, Outlet, Settlement, SpoolConfig

TOGETHER = 64
"""Beacons that wait for the same commit, at most."""
CLAIM = 256


class Spent(NamedTuple):
    """What this process has used up so far, all its threads; or, of a stretch, what a beacon took of it."""

    processor_us: float
    us: float
    bytes: float
    """Given to the kernel by write()."""
    disk_bytes: float
    """Pages that were made dirty: each counts again once the kernel has written it, so this means most where all is synced."""

    def of_each(self, before: "Spent", beacons: int) -> "Spent":
        """A beacon's part of what was used since `before`."""
        return Spent(*((now - then) / beacons for now, then in zip(self, before, strict=True)))


def spent() -> Spent:
    """Up to now."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return Spent(time.process_time() * 1e6, time.perf_counter() * 1e6, int(io["wchar"]), int(io["write_bytes"]))


async def store(intake: Intake, hits: list[Hit], beacons: int) -> None:
    """Some at a time, as requests that arrive together."""
    for first in range(0, beacons, TOGETHER):
        await asyncio.gather(*[intake.append(hits[n % len(hits)]) for n in range(first, min(first + TOGETHER, beacons))])


def settle(outlet: Outlet, beacons: int) -> None:
    """Claim and settle as delivered."""
    done = 0
    while done < beacons:
        claims = outlet.claim(CLAIM, time.time_ns() // 1_000_000)
        if not claims:
            sys.exit(f"{beacons - done} beacons that were stored are not given out")
        outlet.settle([Settlement(claim, Final(Outcome.DELIVERED, "200")) for claim in claims])
        done += len(claims)


def fill(config: SpoolConfig, hits: list[Hit], beacons: int) -> dict[str, Spent]:
    """Leave them there."""
    before = spent()
    intake = open_intake(config)
    try:
        asyncio.run(store(intake, hits, beacons))
    finally:
        intake.close()
    os.sync()  # or the disk would still be writing it while something else is measured
    return {"whole": spent().of_each(before, beacons)}


def backlog(config: SpoolConfig, hits: list[Hit], beacons: int) -> dict[str, Spent]:
    """All are stored, then all are settled."""
    opened = spent()
    intake, outlet = open_intake(config), open_outlet(config)
    before = spent()
    asyncio.run(store(intake, hits, beacons))
    stored = spent().of_each(before, beacons)
    os.sync()
    before = spent()
    settle(outlet, beacons)
    settled = spent().of_each(before, beacons)
    _close(intake, outlet, beacons)
    return {"stored": stored, "settled": settled, "whole": spent().of_each(opened, beacons)}


def steady(config: SpoolConfig, hits: list[Hit], beacons: int) -> dict[str, Spent]:
    """A claim's worth is stored, then settled, and so on."""
    opened = spent()
    intake, outlet = open_intake(config), open_outlet(config)
    with asyncio.Runner() as runner:
        for done in range(0, beacons, CLAIM):
            some = min(CLAIM, beacons - done)
            runner.run(store(intake, hits, some))
            settle(outlet, some)
    _close(intake, outlet, beacons)
    return {"whole": spent().of_each(opened, beacons)}


def _close(intake: Intake, outlet: Outlet, beacons: int) -> None:
    """Let go of the spool, which must have counted them all."""
    ledger = outlet.ledger()
    outlet.close()
    intake.close()
    found = ledger.total("received"), ledger.total("delivered"), ledger.pending
    if found != (beacons, beacons, 0):
        sys.exit(f"expected {beacons} received, as many delivered, none pending; found {found}")


TURNS: dict[str, Callable[[SpoolConfig, list[Hit], int], dict[str, Spent]]] = {"fill": fill, "backlog": backlog, "steady": steady}


def main(root: str, turn: str, spool: str, durability: str, beacons: str) -> None:
    """Print the figures."""
    if not Path(str(proxy.__file__)).resolve().is_relative_to(Path(root).resolve()):
        sys.exit(f"expected to measure {root}; found {proxy.__file__}")
    hits = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Hit])
    found = TURNS[turn](SpoolConfig(f"sqlite:{spool}", durability), hits, int(beacons))
    print(json.dumps({name: figures._asdict() for name, figures in found.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
