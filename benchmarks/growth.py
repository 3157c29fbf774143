"""What a beacon costs in the collector and the forwarder must not grow with the number of sites, or of addresses seen."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.fill import QUERY, hit
from benchmarks.line import Effort, Line, ratios
from benchmarks.load import HEADERS
from proxy.beacon import Beacon, parse
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.enrich import ENRICHERS, load
from proxy.enrich.config import EnrichConfig
from proxy.spool.port import SpoolConfig

TURNS = 20_000
NEVER_REACHED = 10**12
"""A beacon that is over the limit costs less."""


def _cost(call: Callable[[int], object], turns: int) -> float:
    """Microseconds of a call, the median of ten stretches."""
    stretches = []
    for stretch in range(10):
        began = time.perf_counter_ns()
        for n in range(stretch * turns, (stretch + 1) * turns):
            call(n)
        stretches.append((time.perf_counter_ns() - began) / 1000 / turns)
    return statistics.median(stretches)


def _collecting(sites: int, addresses: int) -> Callable[[int], object]:
    hosts = {f"shop{n}.example": f"shop{n}" for n in range(sites)}
    collector = Collector(CollectorConfig(SpoolConfig("memory:"), hosts=hosts, rate_limit=NEVER_REACHED))
    headers = {name.lower().encode(): value.encode() for name, value in HEADERS.items()}
    query = QUERY.encode()
    names = [f"shop{n % sites}.example".encode() for n in range(1000)]
    peers = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(addresses)]

    def one(n: int) -> object:
        headers[b"host"] = names[n % 1000]
        return collector.collect("e", query, b"", headers, peers[n % addresses], 1_700_000_000_000)

    for n in range(max(1000, addresses)):
        one(n)
    return one


def measure(effort: Effort, place: Path) -> Iterator[Line]:
    """Three lines, in this process."""
    turns = max(500, int(TURNS * effort.scale))
    few, many_sites, many_addresses = _collecting(1, 1), _collecting(1000, 1), _collecting(1, 200_000)
    runs = [[_cost(call, turns) for call in (few, many_sites, many_addresses)] for _ in range(effort.rounds)]
    base, sites, addresses = (list(column) for column in zip(*runs, strict=True))
    context = {"collect_us": base}
    yield Line("collect() with 1,000 sites", "with one", 1.3, ratios(sites, base), at_least=False, context=context)
    yield Line("collect() with 200,000 addresses seen", "with one", 1.3, ratios(addresses, base), at_least=False)
    beacon = parse(hit(1))
    assert isinstance(beacon, Beacon)
    nothing, every = load(EnrichConfig(())), load(EnrichConfig(tuple(name for name in ENRICHERS if name != "geo")))
    off = [_cost(lambda n: nothing.fill(beacon, hit(1)), turns // 4) for _ in range(effort.rounds)]
    on = [_cost(lambda n: every.fill(beacon, hit(1)), turns // 4) for _ in range(effort.rounds)]
    yield Line(
        "enrichment switched off", "every enricher on", 0.5, ratios(off, on), at_least=False, context={"off_us": off, "on_us": on}
    )
