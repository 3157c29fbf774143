"""Forwarding on one core: claim → parse → default enrichment → sign → send → settle, against a plain loop of httpx."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stage
from benchmarks.checkout import OURS, Checkout
from benchmarks.fill import QUERY, SEED, hit
from benchmarks.line import Effort, Line, ratios
from proxy.spool import ledger_of
from proxy.spool.port import SpoolConfig

IN_FLIGHT = 64
BEACONS = 100_000


def forwarded(spool: Path, upstream: str, beacons: int, version: Checkout = OURS) -> float:
    """Beacons a second, without the first and the last tenth. That version fills the spool too; any later one can read it."""
    stage.turn(version, "fill", spool, [hit(n) for n in range(min(SEED, beacons))], beacons)
    config = SpoolConfig(f"sqlite:{spool}")
    began = at = 0.0
    first = left = beacons
    with stage.forwarder(spool, upstream, version=version, concurrency=IN_FLIGHT):
        deadline = time.monotonic() + 120
        while left > beacons // 10:
            time.sleep(0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the forwarder has {left} beacons left after two minutes")
            left, at = ledger_of(config).pending, time.monotonic()
            if not began and left < beacons * 9 // 10:
                began, first = at, left
    return (first - left) / (at - began) if at > began else 0.0


def plain_httpx(upstream: str, seconds: float) -> float:
    """The loop, in a process on the same core."""
    command = ["taskset", "-c", str(stage.MEASURED), sys.executable, "-m", "benchmarks.forwarding", upstream, str(seconds)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(effort: Effort, place: Path, other: Checkout | None = None) -> Iterator[Line]:
    """Two lines: as a ratio, and a second; and one against another version."""
    beacons = max(5_000, int(BEACONS * effort.scale))
    ours: list[float] = []
    others: list[float] = []
    theirs: list[float] = []
    with stage.vendor() as upstream:
        for _ in range(effort.rounds):
            for version, found in ((OURS, ours), (other, others)):
                if version is not None:
                    with tempfile.TemporaryDirectory(dir=place) as spool:
                        found.append(forwarded(Path(spool), upstream, beacons, version))
            theirs.append(plain_httpx(upstream, effort.seconds))
    context = {"forwarder_per_second": ours, "httpx_per_second": theirs}
    yield Line(
        "forwarding on one core", "a loop of httpx.AsyncClient.get", 20, ratios(ours, theirs), "{:.1f}".format, context=context
    )
    yield Line("forwarding on one core, beacons/s", "—", 10_000, ours, "{:,.0f}".format)
    if other is not None:
        context = {"here_per_second": ours, "there_per_second": others}
        yield Line("forwarding on one core", other.name, None, ratios(ours, others), context=context)


async def _loop(url: str, seconds: float) -> float:
    import httpx

    done = 0
    async with httpx.AsyncClient() as client:

        async def one_after_another(until: float) -> None:
            nonlocal done
            while time.monotonic() < until:
                await client.get(url)
                done += 1

        await client.get(url)
        began = time.monotonic()
        await asyncio.gather(*[one_after_another(began + seconds) for _ in range(IN_FLIGHT)])
        return done / (time.monotonic() - began)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_loop(f"{sys.argv[1]}/e?{QUERY}&_k=key", float(sys.argv[2])))))
