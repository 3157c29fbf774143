"""The operator's half of the embedded spool: dead letters, listed, replayed or discarded, also while everything runs."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from proxy import hit as hits
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.port import DeadFilter, DeadLetter, Progress
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.database import Connection
from proxy.spool.sqlite.disk import Disk, in_pieces

BATCH = 500
"""Rows moved in one transaction: short enough that collectors hardly notice."""


class SqliteDeadLetters:
    """Over all lanes of the directory. Ids are LANE:NUMBER."""

    def __init__(self, directory: str | Path, disk: Disk | None = None) -> None:
        self._directory = Path(directory)
        self._disk = disk or Disk(self._directory)

    @database.plain_errors()
    def count(self, wanted: DeadFilter) -> int:
        query = "SELECT count(*) FROM dead WHERE"
        return sum(database.row(db, f"{query} {where}", values)[0] for _, db, where, values in self._lanes(wanted))

    @database.plain_errors()
    def list(self, wanted: DeadFilter, limit: int) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        for path, db, where, values in self._lanes(wanted):
            columns = "id, site, outcome, answer, attempts, died_ms, hit"
            rows = db.execute(
                f"SELECT {columns} FROM dead WHERE {where} ORDER BY died_ms DESC, id DESC LIMIT ?", (*values, limit)
            )
            found += [
                DeadLetter(f"{path.stem}:{id}", site, outcome, answer, attempts, died_ms, _read(blob))
                for id, site, outcome, answer, attempts, died_ms, blob in rows
            ]
        return sorted(found, key=lambda letter: letter.died_ms, reverse=True)[:limit]

    def replay(self, wanted: DeadFilter, now_ms: int, progress: Progress) -> int:
        def move(db: Connection, ids: str) -> None:
            db.execute(f"INSERT OR IGNORE INTO waiting SELECT id, site, {int(now_ms)}, 0, hit FROM dead WHERE id IN ({ids})")

        return self._take(wanted, move, None, progress)

    def discard(self, wanted: DeadFilter, progress: Progress) -> int:
        return self._take(wanted, lambda db, ids: None, Outcome.DISCARDED, progress)

    @database.plain_errors()
    def _take(
        self, wanted: DeadFilter, move: Callable[[Connection, str], None], becomes: Outcome | None, progress: Progress
    ) -> int:
        """Take the wanted rows out in batches, each row looked at once, so that what dies again meanwhile is not taken again."""
        taken: list[int] = []

        def take(path: Path, db: Connection, ids: Sequence[int]) -> None:
            taken.append(self._take_some(path, db, move, becomes, ids))
            progress(taken[-1])

        for path, db, where, values in self._lanes(wanted):
            of_lane, last = functools.partial(take, path, db), 0
            query = f"SELECT id FROM dead WHERE {where} AND id > ? ORDER BY id LIMIT {BATCH}"
            while ids := [int(id) for (id,) in database.rows(db, query, (*values, last))]:
                last = ids[-1]
                self._disk.settle(functools.partial(in_pieces, ids, of_lane, self._disk.is_full), db)
        return sum(taken)

    def _take_some(
        self, path: Path, db: Connection, move: Callable[[Connection, str], None], becomes: Outcome | None, ids: Sequence[int]
    ) -> int:
        """In one transaction. How many were still there."""
        wanted = ",".join(map(str, ids))
        if becomes is None:  # they are written before they are deleted
            (copied,) = database.row(db, f"SELECT total(length(hit)) FROM dead WHERE id IN ({wanted})")
            self._disk.make_room(path, file.sizes(db, path), int(copied))
        with database.transaction(db):
            there = Counter(database.rows(db, f"SELECT site, outcome FROM dead WHERE id IN ({wanted})"))
            move(db, wanted)
            db.execute(f"DELETE FROM dead WHERE id IN ({wanted})")
            tally = [(site, outcome, -n) for (site, outcome), n in there.items()]
            if becomes is not None:
                tally += [(site, becomes.value, n) for (site, _), n in there.items()]
            db.execute(file.TALLY, (msgspec.json.encode(tally).decode(),))
        return there.total()

    def _lanes(self, wanted: DeadFilter) -> Iterator[tuple[Path, Connection, str, tuple[object, ...]]]:
        """Each lane's path and connection, with the filter as SQL."""
        for path in file.lane_files(self._directory):
            lane = path.stem
            clauses: list[str] = ["1"]
            values: list[object] = []
            if wanted.ids:
                numbers = [id.partition(":")[2] for id in wanted.ids if id.partition(":")[0] == lane]
                clauses.append(f"id IN ({','.join(str(int(number)) for number in numbers if number.isdecimal())})")
            for column, value in (("outcome = ?", wanted.outcome), ("site = ?", wanted.site)):
                if value:
                    clauses.append(column)
                    values.append(value)
            for column, limit in (("died_ms < ?", wanted.died_before_ms), ("died_ms > ?", wanted.died_after_ms)):
                if limit is not None:
                    clauses.append(column)
                    values.append(limit)
            with contextlib.closing(file.open_file(path, self._disk)) as db:
                yield path, db, " AND ".join(clauses), tuple(values)


def _read(blob: bytes) -> Hit | None:
    try:
        return hits.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
