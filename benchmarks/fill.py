"""A spool with many hits in it, made quickly: a few come the ordinary way, and the file doubles them."""

import asyncio
import json
import os
from contextlib import closing
from pathlib import Path

from benchmarks.load import BEACON, HEADERS
from proxy.hit import Hit
from proxy.spool import open_intake
from proxy.spool.port import RECEIVED, SpoolConfig
from proxy.spool.sqlite import database, file

SEED = 10_000
QUERY = BEACON.partition("?")[2]


def hit(n: int) -> Hit:
    """The load's beacon, but each from a visitor and at a time of its own; pages and browsers follow Zipf's law, as they do."""
    time_s, page, version = 1_700_000_000 + n, int(2_000 ** chance(n)), int(200 ** chance(n + 1))
    query = f"_n=Viewed+Product&Product=Teapot+{page}&Price=24.5&_p=visitor{n}%40example.com&_t={time_s}&_d=1".encode()
    agent = HEADERS["User-Agent"].replace("Chrome/", f"Chrome/{version}")
    referer, language = f"{HEADERS['Referer']}&id={page}", HEADERS["Accept-Language"]
    return Hit("e", query, b"", "default", "shop.example", "127.0.0.1", agent, referer, language, time_s * 1000)


def chance(n: int) -> float:
    """Below 1, evenly spread, and the same for the same n (Knuth's multiplicative hash)."""
    return (n * 2_654_435_761 + n * n * 40_503) % 2**32 / 2**32


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
            with database.transaction(db):
                db.execute("INSERT INTO fresh (hit) SELECT hit FROM fresh ORDER BY id LIMIT ?", (more,))
                db.execute(file.TALLY, (json.dumps([("default", RECEIVED, more)]),))
            filled += more
        database.checkpoint(db, truncate=True)  # the log of so large a transaction is as large as the file
    os.sync()  # or the disk would still be writing it while something else is measured
