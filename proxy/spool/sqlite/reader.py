"""The forwarder's side of one lane: what is claimed from it and what is settled in it. One thread at a time."""

import contextlib
import sqlite3
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from proxy import hit as hits
from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.port import TRIMMED, Claim, Settlement
from proxy.spool.sqlite import file

BUSY_S = 0.25
"""A lane that is locked longer rests, so that it does not hold up the others."""
FARTHEST_DUE_MS = 2 * 3_600_000
"""No verdict puts a hit off for longer, so a later due time is the work of a clock that jumped: it is due now."""
TOGETHER, GAP_S = 128, 0.0005
"""Settlements of one transaction, and the pause before the next: the collector looks for the lock every LOCK_POLL_S."""
LOOKS = 8
"""How many rounds of fresh hits one claim looks through for hits of open sites."""
NOBODY = Hit("", b"", b"", hits.DEFAULT_SITE, "", "", "", "", "", 0)


class Ticket(NamedTuple):
    """Where a claimed hit lies. `lane` is the file's identity, not its name."""

    lane: int
    id: int
    waiting: bool


class _Kind(NamedTuple):
    """What settlements that are written together have in common. `outcome` None: retry."""

    waiting: bool
    site: str
    outcome: Outcome | None
    trimmed: bool


_ID, _ATTEMPTS, _WHEN, _ANSWER = (f"json_extract(one.value, '$[{n}]')" for n in range(4))
POSTPONE = f"""UPDATE waiting SET attempts = {_ATTEMPTS}, due_ms = {_WHEN} FROM json_each(?) AS one WHERE waiting.id = {_ID}"""
SETTLING = "".join(
    f"""
CREATE TEMP VIEW settling_{table} AS
    SELECT NULL AS site, NULL AS target, NULL AS outcome, NULL AS names, NULL AS batch;
CREATE TEMP TRIGGER settle_{table} INSTEAD OF INSERT ON settling_{table} BEGIN
    INSERT OR IGNORE INTO waiting SELECT had.id, NEW.site, {_WHEN}, {_ATTEMPTS}, had.hit
        FROM json_each(NEW.batch) AS one CROSS JOIN {table} AS had ON had.id = {_ID} WHERE NEW.target = 'waiting';
    INSERT OR IGNORE INTO dead SELECT had.id, NEW.site, NEW.outcome, {_ANSWER}, {_ATTEMPTS}, {_WHEN}, had.hit
        FROM json_each(NEW.batch) AS one CROSS JOIN {table} AS had ON had.id = {_ID} WHERE NEW.target = 'dead';
    DELETE FROM {table} WHERE id IN (SELECT {_ID} FROM json_each(NEW.batch) AS one);
    INSERT INTO ledger SELECT NEW.site, name.value, changes() FROM json_each(NEW.names) AS name WHERE changes() > 0
        ON CONFLICT DO UPDATE SET n = n + excluded.n;
END;
"""
    for table in ("fresh", "waiting")
)
"""One statement settles a batch and counts it, in a transaction of its own. Between two statements the interpreter's lock would
be given away and waited for, with the lane locked and the collector waiting."""
SETTLE = {table: f"INSERT INTO settling_{table} VALUES (?, ?, ?, ?, ?)" for table in ("fresh", "waiting")}


class LaneReader:
    """Remembers what is in flight, and what is still to be settled. Methods raise sqlite3.Error, and can be called again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode = file.inode(path)
        # An unsynced settlement is at worst a resend, which is byte-identical.
        self.db = file.open_file(path, durability="os", busy_s=BUSY_S, polls=True)
        self.db.executescript(SETTLING)
        file.checkpoint_early(self.db)
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
        """Write all that is to be settled. When a transaction fails, what is in it and after it stays to be written.

        Transactions are short and leave gaps, since the collector's wait for the lane is the visitor's wait for the GIF.
        """
        while self._unsettled:
            self._write(self._unsettled[:TOGETHER], now_ms)
            if self._unsettled:
                time.sleep(GAP_S)

    def _write(self, settlements: Sequence[Settlement], now_ms: int) -> None:
        """One transaction for each kind of settlement, however many hits it settles; what is written is forgotten at once."""
        batches: dict[_Kind, list[Settlement]] = {}
        for settlement in settlements:
            batches.setdefault(_kind(settlement), []).append(settlement)
        for kind, batch in batches.items():
            self._settle(kind, msgspec.json.encode([_row(settlement, now_ms) for settlement in batch]).decode())
            done = set(map(id, batch))
            self._unsettled = [settlement for settlement in self._unsettled if id(settlement) not in done]
            if kind.waiting:
                self._in_flight.difference_update(settlement.claim.ticket.id for settlement in batch)

    def mend_due_times(self, now_ms: int) -> bool:
        """What is due absurdly late is due now: the clock was wrong when that was decided, or is right again only now. True."""
        if self.db.execute("SELECT 1 FROM waiting LIMIT 1").fetchone() is None:
            return True
        with file.transaction(self.db):
            for site in self._sites():
                self.db.execute(
                    "UPDATE waiting SET due_ms = ? WHERE site = ? AND due_ms > ?", (now_ms, site, now_ms + FARTHEST_DUE_MS)
                )
        return True

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

    def _settle(self, kind: _Kind, batch: str) -> None:
        """A JSON array of rows, all of one kind."""
        table, outcome = "waiting" if kind.waiting else "fresh", kind.outcome
        if outcome is None and kind.waiting:
            file.write(self.db, POSTPONE, (batch,))
            return
        target = "waiting" if outcome is None else "dead" if outcome.ending is Ending.DEAD else ""
        names = [] if outcome is None else [outcome, TRIMMED] if kind.trimmed else [outcome]
        file.write(self.db, SETTLE[table], (kind.site, target, outcome, msgspec.json.encode(names).decode(), batch))


def _kind(settlement: Settlement) -> _Kind:
    (ticket, hit, _), verdict = settlement
    if isinstance(verdict, Retry):
        return _Kind(ticket.waiting, hit.site, None, False)
    return _Kind(ticket.waiting, hit.site, verdict.outcome, verdict.trimmed)


def _row(settlement: Settlement, now_ms: int) -> tuple[int, int, int, str]:
    """id, attempts, due or died at, answer: what SETTLING and POSTPONE read."""
    (ticket, _, attempt), verdict = settlement
    if isinstance(verdict, Retry):
        return ticket.id, attempt if verdict.counted else attempt - 1, verdict.due_ms, ""
    return ticket.id, attempt, now_ms, verdict.answer


def _read(blob: bytes) -> Hit:
    """NOBODY for a record that cannot be read."""
    try:
        return hits.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NOBODY
