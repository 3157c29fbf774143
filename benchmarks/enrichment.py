"""What the default enrichers cost a beacon, in microseconds.

The mix of user agents is realistic: a few make nearly all traffic (Zipf's law).
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from proxy.beacon import Beacon, parse
from proxy.enrich import DEFAULT, load
from proxy.enrich.config import EnrichConfig
from proxy.hit import Hit

AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{v}.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{m} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{m} Mobile",
    "Mozilla/5.0 (Linux; Android 14; SM-S91{m}B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{v}.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{m} Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:{v}.0) Gecko/20100101 Firefox/{v}.0",
]


def main() -> None:
    """Prints median and 99th percentile of fill() over many beacons, in turn with no enrichers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beacons", type=int, default=50_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    asked = parser.parse_args()
    chance = random.Random(7)
    agents = [agent.format(v=version, m=version % 10) for version in range(100, 140) for agent in AGENTS]
    weights = [1 / rank for rank in range(1, len(agents) + 1)]
    hits = [
        Hit(
            "e",
            f"_n=Viewed&_p=p{n}&Product=Teapot&Price=24.5".encode(),
            b"",
            "default",
            "shop.example",
            "198.51.100.7",
            agent,
            "https://shop.example/teapots?utm_source=news&utm_medium=mail",
            "de-CH,de;q=0.9,en;q=0.8",
            1_700_000_000_000 + n,
        )
        for n, agent in enumerate(chance.choices(agents, weights, k=asked.beacons))
    ]
    enrichment, nothing = load(EnrichConfig(DEFAULT)), load(EnrichConfig(()))
    took: dict[str, list[float]] = {"with": [], "without": []}
    for hit in hits:
        beacon = parse(hit)
        assert isinstance(beacon, Beacon)
        for name, fill in (("without", nothing.fill), ("with", enrichment.fill)):
            began = time.perf_counter_ns()
            fill(beacon, hit)
            took[name].append((time.perf_counter_ns() - began) / 1000)
    median = statistics.median(took["with"]) - statistics.median(took["without"])
    p99 = sorted(took["with"])[int(asked.beacons * 0.99)]
    found = {"median_us": round(median, 2), "p99_us": round(p99, 2), "user_agents": len(agents)}
    print(f"default enrichers, a beacon: {median:.1f} µs (median), {p99:.1f} µs (99th percentile); {len(agents)} user agents")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
