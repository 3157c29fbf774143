"""One lane's rows on their way into the spool. Whatever is stopped on the way, the same rows are moved again under the same ids.

    begin   the oldest rows are counted as `moving`, no longer as received: the spool will count them
    …       they are published, and acknowledged
    end     the acknowledged ones are deleted, together with their count

What a reader sees between the two is too small by the rows under way, and never too large. Drops and refusals that were counted
here go the same way: set apart under a token, published under it, and deleted.
"""

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
from proxy.spool.sqlite import file
from proxy.spool.sqlite.file import DOUBTFUL, MOVING, TALLY

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
    """Methods raise sqlite3.Error, and can be called again."""

    def __init__(self, path: Path) -> None:
        """Raises SpoolError for a file of a newer version."""
        self.path, self.inode = path, file.inode(path)
        self._db = file.open_file(path, durability="os", busy_s=BUSY_S, polls=True)  # what is moved twice counts once
        self._identity = file.identity(self._db)
        self._behind = 0
        """The first of the rows that were put behind in this round."""
        self._last_failed = 0
        """The last of the rows that were put behind."""

    def waits(self) -> bool:
        """Whether there is anything to be moved."""
        rows = "EXISTS (SELECT 1 FROM fresh) OR EXISTS (SELECT 1 FROM waiting)"
        counts = f"EXISTS (SELECT 1 FROM ledger WHERE name GLOB '{APART}*' OR n > 0 AND name IN ({MARKS}))"
        return bool(self._db.execute(f"SELECT {rows} OR {counts}", COUNTED).fetchone()[0])

    def begin(self) -> list[Row]:
        """The oldest rows: those that were begun and not ended, else the next."""
        self._make_fresh()
        found = self._db.execute("SELECT id, hit FROM fresh ORDER BY id LIMIT ?", (BATCH,)).fetchall()
        rows, unreadable = [], []
        for id, blob in found:
            try:
                hit = hits.decode(blob)
                rows.append(Row(id, hit, hit.id or f"{self._identity:x}.{id:x}"))
            except (msgspec.DecodeError, UnicodeDecodeError):
                unreadable.append(id)
        if found:
            with file.transaction(self._db):
                before = self._db.execute("SELECT site, n FROM ledger WHERE name = ? AND n <> 0", (MOVING,)).fetchall()
                moving = Counter(row.hit.site for row in rows if not row.hit.id)
                moving.subtract(dict(before))
                self._tally(
                    *((site, name, n) for site, more in moving.items() for name, n in ((MOVING, more), (RECEIVED, -more)))
                )
                self._bury(unreadable)
        return rows

    def end(self, moved: Sequence[Row], failed: Sequence[Row]) -> None:
        """Those are in the spool. The failed ones, for their own sake or their site's, are tried again after all others."""
        ids = msgspec.json.encode([row.id for row in (*moved, *failed)]).decode()
        certain = Counter(row.hit.site for row in (*moved, *failed) if not row.hit.id)
        doubtful = Counter(row.hit.site for row in moved if row.hit.id)
        doubtful.subtract(row.hit.site for row in failed if not row.hit.id)
        with file.transaction(self._db):
            if failed and self.went_round(failed[0]):
                self._behind = self._db.execute("SELECT max(id) + 1 FROM fresh").fetchone()[0]
            self._db.execute("DELETE FROM fresh WHERE id IN (SELECT value FROM json_each(?))", (ids,))
            last = [(hits.encode(replace(row.hit, id=row.message)),) for row in failed]
            self._db.executemany("INSERT INTO fresh (hit) VALUES (?)", last)
            if failed:
                self._last_failed = self._db.execute("SELECT max(id) FROM fresh").fetchone()[0]
            self._tally(
                *((site, MOVING, -n) for site, n in certain.items()), *((site, DOUBTFUL, -n) for site, n in doubtful.items())
            )

    def went_round(self, row: Row) -> bool:
        """Whether the row was put behind in this round already, so that all others have had their turn."""
        return row.id >= self._behind

    def has_retried(self, rows: Sequence[Row]) -> bool:
        """Whether, with these rows, all that failed have had another turn."""
        return rows[-1].id >= self._last_failed

    def begin_counts(self) -> list[Count]:
        """What was counted here and not stored: set apart earlier, else now."""
        if not (apart := self._apart()):
            counted = self._db.execute(f"SELECT site, name, n FROM ledger WHERE n > 0 AND name IN ({MARKS})", COUNTED).fetchall()
            if counted:
                drawn = secrets.token_urlsafe(9)
                with file.transaction(self._db):
                    self._tally(*((site, name, -n) for site, name, n in counted))
                    self._tally(*((site, RECEIVED, -n) for site, name, n in counted if name in DROPPED))
                    self._tally(*((site, f"{APART}{drawn}:{name}", n) for site, name, n in counted))
                apart = self._apart()
        return [Count(site, name.rpartition(":")[2], n, name) for site, name, n in apart]

    def end_counts(self, counts: Sequence[Count]) -> None:
        """Those are in the spool."""
        with file.transaction(self._db):
            moved = [(count.site, count.apart) for count in counts]
            self._db.executemany("DELETE FROM ledger WHERE site = ? AND name = ?", moved)

    def close(self) -> None:
        self._db.close()

    def _apart(self) -> list[tuple[str, str, int]]:
        return self._db.execute(
            "SELECT site, name, n FROM ledger WHERE name GLOB ? ORDER BY site, name", (f"{APART}*",)
        ).fetchall()

    def _make_fresh(self) -> None:
        """Hits may wait for another try where a forwarder was at work on the directory before: the next try is the spool's."""
        waiting = self._db.execute("SELECT id, hit FROM waiting ORDER BY due_ms LIMIT ?", (BATCH,)).fetchall()
        if waiting:
            with file.transaction(self._db):
                self._db.executemany("DELETE FROM waiting WHERE id = ?", [(id,) for id, _ in waiting])
                self._db.executemany("INSERT INTO fresh (hit) VALUES (?)", [(blob,) for _, blob in waiting])

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
        self._db.executemany(TALLY, [count for count in counts if count[2]])
