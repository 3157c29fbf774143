"""The forwarder's side of one lane: what is claimed from it and what is settled in it. One thread at a time."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from proxy import hit as hits
from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.group import Counts
from proxy.spool.port import TRIMMED, Claim, Settlement
from proxy.spool.sqlite import file

BUSY_S = 0.25
"""A lane that is locked longer rests, so that it does not hold up the others."""
FARTHEST_DUE_MS = 2 * 3_600_000
"""No verdict puts a hit off for longer, so a later due time is the work of a clock that jumped: it is due now."""
LOOKS = 8
"""How many rounds of fresh hits one claim looks through for hits of open sites."""
NOBODY = Hit("", b"", b"", hits.DEFAULT_SITE, "", "", "", "", "", 0)


class Ticket(NamedTuple):
    """Where a claimed hit lies. `lane` is the file's identity, not its name."""

    lane: int
    id: int
    waiting: bool


class LaneReader:
    """Remembers what is in flight, and what is still to be settled. Methods raise sqlite3.Error, and can be called again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode = file.inode(path)
        # An unsynced settlement is at worst a resend, which is byte-identical.
        self.db = file.open_file(path, durability="os", busy_s=BUSY_S)
        self.identity = file.identity(self.db)
        self._last_fresh = 0
        self._in_flight: set[int] = set()
        self._unsettled: list[Settlement] = []

    def claim(self, limit: int, now_ms: int, closed: Collection[str]) -> list[Claim]:
        """As Outlet.claim. Nothing while earlier settlements cannot be written.

        All is read before anything is marked as given out, so that a failure on the way leaves nothing behind that nobody has.
        """
        self.flush(now_ms)
        claims, read = self._due(limit // 2 + 1, now_ms, closed, set()), set[int]()
        read.update(claim.ticket.id for claim in claims)
        fresh, aside, last_fresh = self._fresh(limit - len(claims), now_ms, closed)
        claims += fresh
        if len(claims) < limit:
            claims += self._due(limit - len(claims), now_ms, closed, read)
        self._last_fresh = last_fresh
        unreadable = [Settlement(claim, Final(Outcome.UNREADABLE)) for claim in claims if claim.hit is NOBODY]
        claims = [claim for claim in claims if claim.hit is not NOBODY]
        self._in_flight.update(claim.ticket.id for claim in claims if claim.ticket.waiting)
        self.keep(unreadable + aside)
        with contextlib.suppress(sqlite3.Error):  # they are kept; the next claim meets the trouble again
            self.flush(now_ms)
        return claims

    def keep(self, settlements: Sequence[Settlement]) -> None:
        """To be written with the next flush."""
        self._unsettled += settlements

    def flush(self, now_ms: int) -> None:
        """Write all that is to be settled in one transaction, or, when it fails, none of it yet."""
        if not self._unsettled:
            return
        counts: Counts = Counter()
        with file.transaction(self.db):
            for settlement in self._unsettled:
                self._settle_one(settlement, now_ms, counts)
            self.db.executemany(file.TALLY, [(site, name, n) for (site, name), n in counts.items()])
        self._in_flight.difference_update(s.claim.ticket.id for s in self._unsettled if s.claim.ticket.waiting)
        self._unsettled.clear()

    def mend_due_times(self, now_ms: int) -> None:
        """What is due absurdly late is due now: the clock was wrong when that was decided, or is right again only now."""
        if self.db.execute("SELECT 1 FROM waiting LIMIT 1").fetchone() is None:
            return
        with file.transaction(self.db):
            for site in self._sites():
                self.db.execute(
                    "UPDATE waiting SET due_ms = ? WHERE site = ? AND due_ms > ?", (now_ms, site, now_ms + FARTHEST_DUE_MS)
                )

    def checkpoint(self) -> None:
        """Bring the log into the file, and give its room back."""
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()

    def _due(self, limit: int, now_ms: int, closed: Collection[str], but: Collection[int]) -> list[Claim]:
        claims: list[Claim] = []
        query = "SELECT id, hit, attempts FROM waiting WHERE site = ? AND due_ms <= ? ORDER BY due_ms"
        for site in self._sites():
            if site not in closed:
                with contextlib.closing(self.db.execute(query, (site, now_ms))) as rows:
                    for id, blob, attempts in rows:
                        if len(claims) >= limit:
                            return claims
                        if id not in self._in_flight and id not in but:
                            claims.append(Claim(Ticket(self.identity, id, True), _read(blob), attempts + 1))
        return claims

    def _fresh(self, limit: int, now_ms: int, closed: Collection[str]) -> tuple[list[Claim], list[Settlement], int]:
        """Fresh hits of open sites; those of closed ones, to be set aside among the waiting; and the last id looked at."""
        claims: list[Claim] = []
        aside: list[Settlement] = []
        last = self._last_fresh
        for _ in range(LOOKS):
            room = limit - len(claims)
            if room <= 0:
                break
            rows = self.db.execute("SELECT id, hit FROM fresh WHERE id > ? ORDER BY id LIMIT ?", (last, room)).fetchall()
            for id, blob in rows:
                claim = Claim(Ticket(self.identity, id, False), _read(blob), 1)
                if claim.hit.site in closed:
                    aside.append(Settlement(claim, Retry(now_ms, counted=False)))
                else:
                    claims.append(claim)
                last = id
            if len(rows) < room:
                break
        return claims, aside, last

    def _sites(self) -> list[str]:
        """The sites that have waiting hits: one index seek for each."""
        sites: list[str] = []
        row = self.db.execute("SELECT min(site) FROM waiting").fetchone()
        while row[0] is not None:
            sites.append(row[0])
            row = self.db.execute("SELECT min(site) FROM waiting WHERE site > ?", (row[0],)).fetchone()
        return sites

    def _settle_one(self, settlement: Settlement, now_ms: int, counts: Counts) -> None:
        (ticket, hit, attempt), verdict = settlement
        execute = self.db.execute
        table = "waiting" if ticket.waiting else "fresh"
        if isinstance(verdict, Retry):
            attempts = attempt if verdict.counted else attempt - 1
            if ticket.waiting:
                execute("UPDATE waiting SET due_ms = ?, attempts = ? WHERE id = ?", (verdict.due_ms, attempts, ticket.id))
                return
            execute(
                "INSERT OR IGNORE INTO waiting SELECT id, ?, ?, ?, hit FROM fresh WHERE id = ?",
                (hit.site, verdict.due_ms, attempts, ticket.id),
            )
        elif verdict.outcome.ending is Ending.DEAD:
            execute(
                f"INSERT OR IGNORE INTO dead SELECT id, ?, ?, ?, ?, ?, hit FROM {table} WHERE id = ?",
                (hit.site, verdict.outcome.value, verdict.answer, attempt, now_ms, ticket.id),
            )
        gone = execute(f"DELETE FROM {table} WHERE id = ?", (ticket.id,)).rowcount
        if gone and isinstance(verdict, Final):
            counts[hit.site, verdict.outcome.value] += 1
            if verdict.trimmed:
                counts[hit.site, TRIMMED] += 1


def _read(blob: bytes) -> Hit:
    """NOBODY for a record that cannot be read."""
    try:
        return hits.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NOBODY
