"""What is saved of a damaged lane: each row on sound pages, no row that was never stored, and no traceback, whatever the damage."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import hit as hits
from proxy.hit import Hit
from proxy.spool.sqlite import file
from proxy.spool.sqlite.salvage import PAGE, Row, Salvage

COLUMNS = {"fresh": "id, hit", "waiting": "id, site, due_ms, attempts, hit", "ledger": "site, name, n"}
COLUMNS["dead"] = "id, site, outcome, answer, attempts, died_ms, hit"
SIZES = (0, 40, 300, 900, 2_000, 4_000, 4_100, 9_000, 60_000)
"""Bytes of a body: many to a page, one to a page, and on up to 15 pages more."""

Plain = tuple[str, tuple[Any, ...]]
"""A table and a row of it."""


class Lane:
    """A lane under work, by its own SQL, and each row that was ever in it."""

    def __init__(self, path: Path, seed: int = 1) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.db = apsw.Connection(str(path))
        self.db.execute("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0")
        self.db.execute(f"BEGIN; {file.SCHEMA} PRAGMA user_version = 1; COMMIT")
        self.ever: set[Plain] = set()

    def store(self, number: int, size: int | None = None) -> None:
        for _ in range(number):
            self.insert(hit(self.random.randbytes(self.random.choice(SIZES) if size is None else size)))

    def insert(self, blob: bytes) -> None:
        self.db.execute("INSERT INTO fresh (hit) VALUES (?)", (blob,))

    def move(self, where: str) -> None:
        """Fresh rows become waiting ones and dead ones, by turns."""
        self.db.execute(f"INSERT INTO waiting SELECT id, 'shop', id * 1000, 2, hit FROM fresh WHERE id % 2 AND {where}")
        self.db.execute(f"INSERT INTO dead SELECT id, 'shop', 'rejected', '400 no', 9, -id, hit FROM fresh WHERE NOT id % 2 AND {where}")
        self.db.execute(f"DELETE FROM fresh WHERE {where}")

    def count(self, sites: int) -> None:
        rows = [(f"site-{site}-{'x' * (site % 1500)}", name, site * 7) for site in range(sites) for name in ("received", "delivered")]
        self.db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)

    def note(self) -> set[Plain]:
        """What SQL says is in it now."""
        now = {(table, row) for table, columns in COLUMNS.items() for row in self.db.execute(f"SELECT {columns} FROM {table}")}
        self.ever |= now
        return now

    def checkpoint(self, mode: str = "TRUNCATE") -> None:
        self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def copy(self, name: str = "copy.db") -> Path:
        """File and log as they are on the disk now."""
        copy = self.path.with_name(name)
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy}{suffix}")
        return copy


class Found(NamedTuple):
    rows: list[Row]
    salvage: Salvage

    @property
    def plain(self) -> set[Plain]:
        return set(map(plain, self.rows))

    @property
    def certain(self) -> set[Plain]:
        return {plain(row) for row in self.rows if not row.doubtful}


def plain(row: Row) -> Plain:
    return row.table, row.values


def hit(body: bytes, **over: Any) -> bytes:
    fields = {"site": "shop", "host": "shop.example", "address": "192.0.2.1", "user_agent": "Browser/1", "referer": "", "language": ""}
    return hits.encode(Hit("e", b"n=1", body, received_ms=1_700_000_000_000, **{**fields, **over}))


def salvage(path: Path) -> Found:
    with Salvage(path) as opened:
        rows = list(opened.rows())
    keys = [(row.table, row.values[:2] if row.table == "ledger" else row.id) for row in rows]
    assert len(keys) == len(set(keys)), "no row comes twice"
    return Found(rows, opened)


def busy(path: Path) -> Lane:
    """A lane after some work: rows in each table, free pages, trees with inner pages, and a log that is not in the file yet."""
    lane = Lane(path)
    lane.count(40)
    lane.store(90)
    lane.store(120, 700)
    lane.note()
    lane.move("id BETWEEN 20 AND 130")
    lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id < 12; DELETE FROM dead WHERE id BETWEEN 80 AND 124")
    lane.checkpoint()
    lane.store(25)
    lane.note()
    lane.db.execute("DELETE FROM waiting WHERE id < 31; UPDATE waiting SET attempts = 3, due_ms = 0 WHERE id < 51")
    lane.store(25)
    lane.note()
    return lane


@pytest.fixture(params=["log", "checkpointed"])
def lane(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lane]:
    lane = busy(tmp_path / "lane-0000.db")
    if request.param == "checkpointed":
        lane.checkpoint()
    yield lane
    lane.db.close()


def view(path: Path) -> list[bytes]:
    """The file's pages."""
    content = path.read_bytes()
    return [content[at : at + PAGE] for at in range(0, len(content), PAGE)]


def write(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(content)


def overwrite_page(path: Path, number: int, content: bytes) -> None:
    write(path, (number - 1) * PAGE, content)


def test_all_rows_of_a_sound_lane_come_back_and_equal_what_sql_says(lane: Lane) -> None:
    """The rules are SQLite's, so on a sound file the two must agree on each byte, with the log in the file or beside it."""
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note()
    assert {len(row.pages) for row in found.rows} >= {1, 2, 3, 15}, "hits of all sizes were among them"
    assert (found.salvage.damaged, found.salvage.unreadable, found.salvage.skipped) == (0, 0, 0)
    assert not found.salvage.log_cut
