"""A spool with many hits in it, made quickly: a few come the ordinary way, and the file doubles them."""

import asyncio
from contextlib import closing
from pathlib import Path

from benchmarks.load import BEACON, HEADERS
from proxy.hit import Hit
from proxy.spool import open_intake
from proxy.spool.port import RECEIVED, SpoolConfig
from proxy.spool.sqlite import file

SEED = 10_000
QUERY = BEACON.partition("?")[2]


def hit(n: int) -> Hit:
    """The load's beacon, each with a time of its own."""
    agent, referer, language = HEADERS["User-Agent"], HEADERS["Referer"], HEADERS["Accept-Language"]
    query = QUERY.replace("1700000000", str(1_700_000_000 + n)).encode()
    return Hit("e", query, b"", "default", "shop.example", "127.0.0.1", agent, referer, language, 1_700_000_000_000 + n)


async def append_all(spool: Path, n: int, durability: str = "os", together: int = 64) -> None:
    """Append n hits, so many at a time."""
    intake = open_intake(SpoolConfig(f"sqlite:{spool}", durability))
    try:
        for first in range(0, n, together):
            await asyncio.gather(*[intake.append(hit(i)) for i in range(first, min(first + together, n))])
    finally:
        intake.close()


def fill(spool: Path, n: int) -> None:
    """Leave n hits pending there."""
    asyncio.run(append_all(spool, min(n, SEED), together=1024))
    with closing(file.open_file(spool / "lane-0000.db")) as db:
        filled = min(n, SEED)
        while filled < n:
            more = min(filled, n - filled)
            with file.transaction(db):
                db.execute("INSERT INTO fresh (hit) SELECT hit FROM fresh ORDER BY id LIMIT ?", (more,))
                db.execute(file.TALLY, ("default", RECEIVED, more))
            filled += more
