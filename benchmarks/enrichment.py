"""What the default enrichers cost a beacon, in microseconds.

The mix of user agents is realistic: a few make nearly all traffic (Zipf's law).
"""

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.line import Effort, Line
from proxy.beacon import Beacon, parse
from proxy.enrich import DEFAULT, load
from proxy.enrich.config import EnrichConfig
from proxy.hit import Hit

BEACONS = 20_000
AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{v}.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{m} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{m} Mobile",
    "Mozilla/5.0 (Linux; Android 14; SM-S91{m}B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{v}.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{m} Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:{v}.0) Gecko/20100101 Firefox/{v}.0",
]


def _hits(n: int) -> list[Hit]:
    chance = random.Random(7)
    agents = [agent.format(v=version, m=version % 10) for version in range(100, 140) for agent in AGENTS]
    weights = [1 / rank for rank in range(1, len(agents) + 1)]
    return [
        Hit(
            "e",
            f"_n=Viewed&_p=p{i}&Product=Teapot&Price=24.5".encode(),
            b"",
            "default",
            "shop.example",
            "198.51.100.7",
            agent,
            "https://shop.example/teapots?utm_source=news&utm_medium=mail",
            "de-CH,de;q=0.9,en;q=0.8",
            1_700_000_000_000 + i,
        )
        for i, agent in enumerate(chance.choices(agents, weights, k=n))
    ]


def measure(effort: Effort, place: Path) -> Iterator[Line]:
    """The median of fill() over many beacons, less that of fill() with nothing to do, in turn."""
    enrichment, nothing = load(EnrichConfig(DEFAULT)), load(EnrichConfig(()))
    found: list[float] = []
    for _ in range(effort.rounds):
        took: dict[str, list[float]] = {"with": [], "without": []}
        for hit in _hits(max(1_000, int(BEACONS * effort.scale))):
            beacon = parse(hit)
            assert isinstance(beacon, Beacon)
            for name, fill in (("without", nothing.fill), ("with", enrichment.fill)):
                began = time.perf_counter_ns()
                fill(beacon, hit)
                took[name].append((time.perf_counter_ns() - began) / 1000)
        found.append(statistics.median(took["with"]) - statistics.median(took["without"]))
    yield Line("default enrichers, µs a beacon (median; 200 user agents)", "none", 15, found, "{:.1f}".format, False)
