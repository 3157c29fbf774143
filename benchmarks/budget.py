"""One beacon's budget, hop by hop: `python -m benchmarks.budget` prints the table of docs/performance.md.

Each hop is called alone, many times, in this process; the median of several stretches counts. What the kernel, the event loop
and the HTTP client cost is what the whole costs beyond that (`python -m benchmarks intake forwarding`).
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import count

from benchmarks.fill import QUERY, hit
from benchmarks.load import HEADERS
from proxy import hit as hits
from proxy.beacon import Beacon, parse
from proxy.collector.asgi import STORED
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.collector.express import encode, parse_headers
from proxy.delivery import Answer, Policy, decide
from proxy.enrich import load
from proxy.enrich.config import EnrichConfig
from proxy.forward.config import Site
from proxy.forward.pacing import Pace
from proxy.forward.sign import sign
from proxy.spool.port import SpoolConfig

TURNS, STRETCHES = 20_000, 7
Hop = tuple[str, Callable[[int], object]]


def cost_us(call: Callable[[int], object]) -> float:
    """Microseconds of one call, the loop around it left out."""
    found = []
    for _ in range(STRETCHES):
        empty = _stretch(lambda n: None)
        found.append(_stretch(call) - empty)
    return statistics.median(found)


def _stretch(call: Callable[[int], object]) -> float:
    began = time.perf_counter_ns()
    for n in range(TURNS):
        call(n)
    return (time.perf_counter_ns() - began) / 1000 / TURNS


def intake() -> list[Hop]:
    """What a collector does for a beacon."""
    collector = Collector(CollectorConfig(SpoolConfig("memory:")))
    block = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode() + b"\r\n"
    headers, query, one = parse_headers(block), QUERY.encode(), hit(1)
    assert headers is not None
    return [
        ("the headers of a browser's request, read once", lambda n: parse_headers(block)),
        (
            "`collect()`: site, limits, consent, identity, address, the facts copied",
            lambda n: collector.collect("e", query, b"", headers, "198.51.100.7", 1_700_000_000_000),
        ),
        ("the hit encoded for the spool", lambda n: hits.encode(one)),
        ("the answer made (once a second; else the one at hand is written)", lambda n: encode(STORED, [])),
    ]


def forwarding() -> list[Hop]:
    """What a forwarder does for a beacon. Each beacon is another visitor's; pages and browsers come again, as they do."""
    some = [hit(n) for n in range(TURNS)]
    blobs = [hits.encode(one) for one in some]
    beacons = [found for one in some if isinstance(found := parse(one), Beacon)]
    enrichment, site, policy, pace = load(EnrichConfig()), Site("https://vendor.example", "key"), Policy(), Pace(128)
    filled = [enrichment.fill(beacon, one) for beacon, one in zip(beacons, some, strict=True)]
    clock = count()

    def paced(n: int) -> None:
        pace.room(now := next(clock))
        pace.began()
        pace.succeeded(1.0, now)

    return [
        ("the hit decoded", lambda n: hits.decode(blobs[n])),
        ("`parse()`", lambda n: parse(some[n])),
        ("the default enrichers", lambda n: enrichment.fill(beacons[n], some[n])),
        ("`sign()`", lambda n: sign(beacons[n], filled[n], site)),
        ("the pace asked and told", paced),
        ("`decide()`", lambda n: decide(Answer(200), 1, 5, policy, 1_700_000_000_000, 0.5)),
    ]


def main() -> int:
    """The exit status."""
    for title, hops in (("at intake", intake()), ("at forwarding", forwarding())):
        print(f"| {title} | µs |\n| --- | --- |")
        costs = [(name, cost_us(call)) for name, call in hops]
        for name, cost in costs:
            print(f"| {name} | {cost:.1f} |")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
