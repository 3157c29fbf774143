"""One lane's rows on their way into the spool. Whatever is stopped on the way, the same rows are moved again under the same ids.

    begin   the oldest rows are counted as `moving`, no longer as received: the spool will count them
    …       they are published, and acknowledged
    end     the acknowledged ones are deleted, together with their count

What a reader sees between the two is too small by the rows under way, and never too large. Drops and refusals that were counted
here go the same way: set apart under a token, published under it, and deleted.
"""

import functools
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from proxy import hit as hits
from proxy.hit import DEFAULT_SITE, Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.jetstream.names import token
from proxy.spool.port import RECEIVED, REFUSED
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.disk import Disk, in_pieces
from proxy.spool.sqlite.file import DOUBTFUL, MOVING
from proxy.spool.sqlite.reader import SameNumber

BATCH = 256
"""Rows under way at once. A constant: a mover that begins anew must find the same ones."""
BUSY_S = 0.25
APART = "moving:"
"""Before the token and the name of counts that are on their way."""
DROPPED = frozenset(outcome.value for outcome in Outcome if outcome.ending is Ending.DROPPED)
COUNTED = (REFUSED, *DROPPED)
MARKS = ",".join("?" * len(COUNTED))


class Row(NamedTuple):
    """A hit to be moved. `message` is the id to publish it under, the same whoever moves it and however often."""

    id: int
    hit: Hit
    message: str


class Count(NamedTuple):
    """A count to be moved."""

    site: str
    name: str
    n: int
    apart: str
    """What it is called in the lane meanwhile."""

    @property
    def message(self) -> str:
        """The id of its increment."""
        return f"{self.apart}:{token(self.site)}"


class LaneTransfer:
    """Methods raise database.Error and OSError, and can be called again. Where the disk is full they make room (Disk.settle)."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """Raises SameNumber for a copy, SpoolError for a file of a newer version."""
        self.path, self.inode = path, file.inode(path)
        self._disk = disk or Disk(path.parent)
        # What is moved twice counts once, so an unsynced end does no harm.
        self._db = self._disk.settle(lambda: file.open_file(path, self._disk, busy_s=BUSY_S, polls=True))
        self._number = file.number(self._db)
        self._guard = file.guard(self._number)
        if self._guard is None:
            self._db.close()
            raise SameNumber(
                f"{path} bears the number of a lane that is being moved already: it is a copy of it. Remove it, or have it moved "
                f"too: beacon-proxy lanes recover {path}"
            )
        self._behind = 0
        """The first of the rows that were put behind in this round."""
        self._last_failed = 0
        """The last of the rows that were put behind."""

    def waits(self) -> bool:
        """Whether there is anything to be moved."""
        rows = "EXISTS (SELECT 1 FROM fresh) OR EXISTS (SELECT 1 FROM waiting)"
        counts = f"EXISTS (SELECT 1 FROM ledger WHERE name GLOB '{APART}*' OR n > 0 AND name IN ({MARKS}))"
        return bool(database.row(self._db, f"SELECT {rows} OR {counts}", COUNTED)[0])

    def begin(self) -> list[Row]:
        """The oldest rows: those that were begun and not ended, else the next."""
        return self._disk.settle(self._begin, self._db)

    def _begin(self) -> list[Row]:
        self._make_fresh()
        found = database.rows(self._db, "SELECT id, hit FROM fresh ORDER BY id LIMIT ?", (BATCH,))
        rows, unreadable = [], []
        for id, blob in found:
            try:
                hit = hits.decode(blob)
                rows.append(Row(id, hit, hit.id or f"{self._number:x}.{id:x}"))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                unreadable.append(id)
        if found:
            with database.transaction(self._db):
                before = database.rows(self._db, "SELECT site, n FROM ledger WHERE name = ? AND n <> 0", (MOVING,))
                moving = Counter(row.hit.site for row in rows if not row.hit.id)
                moving.subtract(dict(before))
                self._tally(
                    *((site, name, n) for site, more in moving.items() for name, n in ((MOVING, more), (RECEIVED, -more)))
                )
                self._bury(unreadable)
        return rows

    def end(self, moved: Sequence[Row], failed: Sequence[Row]) -> None:
        """Those are in the spool. The failed ones, for their own sake or their site's, are tried again after all others."""
        if failed and self.went_round(failed[0]):
            self._behind = database.row(self._db, "SELECT max(id) + 1 FROM fresh")[0]
        for rows, end in ((moved, self._delete), (failed, self._put_behind)):
            self._disk.settle(functools.partial(in_pieces, rows, end, self._disk.is_full), self._db)

    def _delete(self, moved: Sequence[Row]) -> None:
        with database.transaction(self._db):
            there = self._take(moved)
            self._tally(
                *((site, MOVING, -n) for site, n in Counter(row.hit.site for row in there if not row.hit.id).items()),
                *((site, DOUBTFUL, -n) for site, n in Counter(row.hit.site for row in there if row.hit.id).items()),
            )

    def _put_behind(self, failed: Sequence[Row]) -> None:
        with database.transaction(self._db):
            there = self._take(failed)
            for row in there:
                self._db.execute("INSERT INTO fresh (hit) VALUES (?)", (hits.encode(replace(row.hit, id=row.message)),))
            for site, n in Counter(row.hit.site for row in there if not row.hit.id).items():
                self._tally((site, MOVING, -n), (site, DOUBTFUL, n))
            self._last_failed = self._db.last_insert_rowid()

    def _take(self, rows: Sequence[Row]) -> list[Row]:
        """Delete them; those that were there, since this may be a second try."""
        ids = msgspec.json.encode([row.id for row in rows]).decode()
        query = "DELETE FROM fresh WHERE id IN (SELECT value FROM json_each(?)) RETURNING id"
        there = {id for (id,) in database.rows(self._db, query, (ids,))}
        return [row for row in rows if row.id in there]

    def went_round(self, row: Row) -> bool:
        """Whether the row was put behind in this round already, so that all others have had their turn."""
        return row.id >= self._behind

    def has_retried(self, rows: Sequence[Row]) -> bool:
        """Whether, with these rows, all that failed have had another turn."""
        return rows[-1].id >= self._last_failed

    def begin_counts(self) -> list[Count]:
        """What was counted here and not stored: set apart earlier, else now."""
        if not (apart := self._apart()):
            apart = self._disk.settle(self._set_apart, self._db)
        return [Count(site, name.rpartition(":")[2], n, name) for site, name, n in apart]

    def _set_apart(self) -> list[tuple[str, str, int]]:
        counted = database.rows(self._db, f"SELECT site, name, n FROM ledger WHERE n > 0 AND name IN ({MARKS})", COUNTED)
        if counted:
            drawn = secrets.token_urlsafe(9)
            with database.transaction(self._db):
                self._tally(*((site, name, -n) for site, name, n in counted))
                self._tally(*((site, RECEIVED, -n) for site, name, n in counted if name in DROPPED))
                self._tally(*((site, f"{APART}{drawn}:{name}", n) for site, name, n in counted))
        return self._apart()

    def end_counts(self, counts: Sequence[Count]) -> None:
        """Those are in the spool."""

        def delete() -> None:
            with database.transaction(self._db):
                for count in counts:
                    self._db.execute("DELETE FROM ledger WHERE site = ? AND name = ?", (count.site, count.apart))

        self._disk.settle(delete, self._db)

    def close(self) -> None:
        self._db.close()
        if self._guard is not None:
            self._guard.close()

    def _apart(self) -> list[tuple[str, str, int]]:
        return database.rows(self._db, "SELECT site, name, n FROM ledger WHERE name GLOB ? ORDER BY site, name", (f"{APART}*",))

    def _make_fresh(self) -> None:
        """Hits may wait for another try where a forwarder was at work on the directory before: the next try is the spool's."""
        waiting = database.rows(self._db, "SELECT id, hit FROM waiting ORDER BY due_ms LIMIT ?", (BATCH,))
        if waiting:
            with database.transaction(self._db):
                for id, blob in waiting:
                    self._db.execute("DELETE FROM waiting WHERE id = ?", (id,))
                    self._db.execute("INSERT INTO fresh (hit) VALUES (?)", (blob,))

    def _bury(self, unreadable: Sequence[int]) -> None:
        """A record that cannot be read holds up nothing: it stays here, as a dead letter."""
        for id in unreadable:
            self._db.execute(
                "INSERT INTO dead SELECT id, ?, ?, '', 0, 0, hit FROM fresh WHERE id = ?", (DEFAULT_SITE, Outcome.UNREADABLE, id)
            )
            self._db.execute("DELETE FROM fresh WHERE id = ?", (id,))
        if unreadable:
            self._tally((DEFAULT_SITE, Outcome.UNREADABLE.value, len(unreadable)))

    def _tally(self, *counts: tuple[str, str, int]) -> None:
        self._db.execute(file.TALLY, (msgspec.json.encode([count for count in counts if count[2]]).decode(),))
