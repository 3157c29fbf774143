"""The forwarder's side of one lane: what is claimed from it and what is settled in it. One thread at a time."""

import contextlib
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import apsw
import msgspec

from proxy import hit as hits
from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.port import TRIMMED, Claim, Settlement, SpoolError, Wanted
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.disk import Disk, in_pieces

BUSY_S = 0.25
"""A lane that is locked longer rests, so that it does not hold up the others."""
FARTHEST_DUE_MS = 2 * 3_600_000
"""No verdict puts a hit off for longer, so a later due time is the work of a clock that jumped: it is due now."""
TOGETHER, GAP_S = 256, 0.0005
"""Settlements of one transaction, and the pause before the next: the collector looks for the lock every LOCK_POLL_S."""
ROW_BYTES = 1024
"""What a row takes beside the query and the body, about."""
SHRINK_BYTES, MOVED_BYTES, LARGE_BYTES = 64 * 1024**2, 1024**2, 64 * 1024**2
"""A file with so much emptied, and no more than that in it, is shrunk. With more in it, up to the third, only where no collector
waits for the lane, or where other lanes would be refused for the emptied pages of this one."""
IDLE_BYTES = 256 * 1024
"""A lane that holds no more than its counts takes less."""
LOOKS = 8
"""How many rounds of fresh hits one claim looks through for hits of open sites."""
NOBODY = Hit("", b"", b"", hits.DEFAULT_SITE, "", "", "", "", "", 0)


_opened = itertools.count(1)


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """Where a claimed hit lies. `lane` is LaneReader.opened: the open file, neither its name nor its number."""

    lane: int
    id: int
    waiting: bool


Kind = tuple[bool, str, Outcome | None, bool]
"""What settlements that are written together have in common: waiting, site, outcome (None: retry), trimmed."""


RETRIES, SET_ASIDE = (
    f"SELECT id, hit, attempts, due_ms FROM waiting WHERE site = ? AND {which} ORDER BY due_ms, id"
    for which in ("due_ms BETWEEN 1 AND ?", "due_ms = ?")
)
"""Of a site: those that failed and are due; and those that have not failed, which are due at 0."""
_ID, _ATTEMPTS, _WHEN, _ANSWER = (f"json_extract(one.value, '$[{n}]')" for n in range(4))
POSTPONE = f"""UPDATE waiting SET attempts = {_ATTEMPTS}, due_ms = {_WHEN} FROM json_each(?) AS one WHERE waiting.id = {_ID}"""
_COUNT = """INSERT INTO ledger SELECT NEW.site, name.value, changes() FROM json_each(NEW.names) AS name WHERE changes() > 0
        ON CONFLICT DO UPDATE SET n = n + excluded.n;"""
SETTLING = "".join(
    f"""
CREATE TEMP VIEW ending_{table} AS SELECT NULL AS site, NULL AS names, NULL AS batch;
CREATE TEMP TRIGGER end_{table} INSTEAD OF INSERT ON ending_{table} BEGIN
    DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(NEW.batch));
    {_COUNT}
END;
CREATE TEMP VIEW moving_{table} AS
    SELECT NULL AS site, NULL AS target, NULL AS outcome, NULL AS names, NULL AS batch;
CREATE TEMP TRIGGER move_{table} INSTEAD OF INSERT ON moving_{table} BEGIN
    INSERT OR IGNORE INTO waiting SELECT had.id, NEW.site, {_WHEN}, {_ATTEMPTS}, had.hit
        FROM json_each(NEW.batch) AS one CROSS JOIN {table} AS had ON had.id = {_ID} WHERE NEW.target = 'waiting';
    INSERT OR IGNORE INTO dead SELECT had.id, NEW.site, NEW.outcome, {_ANSWER}, {_ATTEMPTS}, {_WHEN}, had.hit
        FROM json_each(NEW.batch) AS one CROSS JOIN {table} AS had ON had.id = {_ID} WHERE NEW.target = 'dead';
    DELETE FROM {table} WHERE id IN (SELECT {_ID} FROM json_each(NEW.batch) AS one);
    {_COUNT}
END;
"""
    for table in ("fresh", "waiting")
)
"""One statement settles a batch and counts it, in a transaction of its own. Between two statements the interpreter's lock would
be given away and waited for, with the lane locked and the collector waiting. Most hits end: their batch is an array of ids."""
END = {table: f"INSERT INTO ending_{table} VALUES (?, ?, ?)" for table in ("fresh", "waiting")}
MOVE = {table: f"INSERT INTO moving_{table} VALUES (?, ?, ?, ?, ?)" for table in ("fresh", "waiting")}


class SameNumber(SpoolError):
    """A lane of that number is being emptied already: this one is a copy, or the same file under another name."""


class LaneReader:
    """Remembers what is in flight, and what is still to be settled. Methods raise database.Error, and can be called again."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """Raises SameNumber, SpoolError for a file of a newer schema, database.Error for one that cannot be read."""
        self.path = path
        self.inode = file.inode(path)
        self.opened = next(_opened)
        self._disk = disk or Disk(path.parent)
        # An unsynced settlement is at worst a resend, which is byte-identical.
        self.db = file.open_file(path, self._disk, durability="os", busy_s=BUSY_S, polls=True)
        self._guard: socket.socket | None = None
        try:
            self._guard = file.guard(file.number(self.db))
            if self._guard is None:
                raise SameNumber(
                    f"{path} bears the number of a lane that is being delivered already: it is a copy of it, or has been given "
                    f"its number. Remove it if it is a copy; if not: beacon-proxy lanes recover {path}"
                )
            self.db.execute(SETTLING)
            file.checkpoint_early(self.db)
        except BaseException:
            self.close()
            raise
        self._last_fresh = self._turn = 0
        self._in_flight: set[int] = set()
        self._unsettled: list[Settlement] = []

    def claim(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted]) -> list[Claim]:
        """As Outlet.claim. Nothing while earlier settlements cannot be written.

        All is read before anything is marked as given out, so that a failure on the way leaves nothing behind that nobody has.
        """
        self.flush(now_ms)
        left = {site: wanted.get(site, Wanted(limit, limit)) for site in self._sites()}
        retries: list[Claim] = []
        for site, (_, n) in left.items():
            retries += self._waiting(RETRIES, min(n, limit - len(retries)), site, now_ms)
        had = self._set_aside(limit // 2 + 1, left, ())
        taken = Counter(claim.hit.site for claim in had)
        closed = {site for site, (n, _) in (left | dict(wanted)).items() if taken[site] >= n}
        fresh, aside, last_fresh = self._fresh(limit - len(had), closed)
        left = {site: Wanted(n - taken[site], 0) for site, (n, _) in left.items()}
        had += self._set_aside(limit - len(had) - len(fresh), left, {claim.ticket.id for claim in had})
        claims = retries + had + fresh
        self._last_fresh = last_fresh
        unreadable = [Settlement(claim, Final(Outcome.UNREADABLE)) for claim in claims if claim.hit is NOBODY]
        claims = [claim for claim in claims if claim.hit is not NOBODY]
        self._in_flight.update(claim.ticket.id for claim in claims if claim.ticket.waiting)
        self.keep(unreadable + aside)
        with contextlib.suppress(database.Error):  # they are kept; the next claim meets the trouble again
            self.flush(now_ms)
        return claims

    def keep(self, settlements: Sequence[Settlement]) -> None:
        """To be written with the next flush."""
        self._unsettled += settlements

    @property
    def has_unsettled(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._unsettled)

    def flush(self, now_ms: int) -> None:
        """Write all that is to be settled. When a transaction fails, what is in it and after it stays to be written.

        Transactions are short and leave gaps, since the collector's wait for the lane is the visitor's wait for the GIF.
        """
        while self._unsettled:
            in_pieces(self._unsettled[:TOGETHER], lambda piece: self._write(piece, now_ms), self._disk.is_full)
            if self._unsettled:
                time.sleep(GAP_S)

    def _write(self, settlements: Sequence[Settlement], now_ms: int) -> None:
        """One transaction for each kind of settlement, however many hits it settles; what is written is forgotten at once."""
        batches: dict[Kind, list[Settlement]] = {}
        for settlement in settlements:
            batches.setdefault(_kind(settlement), []).append(settlement)
        done: set[int] = set()
        try:
            for kind, batch in batches.items():
                self._settle(kind, batch, now_ms)
                done.update(map(id, batch))
                if kind[0]:
                    self._in_flight.difference_update(settlement.claim.ticket.id for settlement in batch)
        finally:
            self._unsettled = [settlement for settlement in self._unsettled if id(settlement) not in done]

    def mend_due_times(self, now_ms: int) -> bool:
        """What is due absurdly late is due now: the clock was wrong when that was decided, or is right again only now. True."""
        if database.row(self.db, "SELECT 1 FROM waiting LIMIT 1") is None:
            return True
        with database.transaction(self.db):
            for site in self._sites():
                self.db.execute(
                    "UPDATE waiting SET due_ms = ? WHERE site = ? AND due_ms > ?", (now_ms, site, now_ms + FARTHEST_DUE_MS)
                )
        return True

    def give_back_room(self) -> None:
        """Shrink the file to what it holds, where most of it was emptied and what it holds is little: it is written anew, which
        takes the lane's lock for some 5 ms a mebibyte. A lane without a collector that is empty keeps no log either."""
        held, emptied, *_ = file.sizes(self.db, self.path)
        part = self._disk.max_bytes // 16
        orphan = (lock := file.lock(self.path.with_suffix(".lock"))) is not None
        try:
            urgent = emptied >= part and self._disk.used_bytes() > self._disk.max_bytes * 3 // 4
            most, least = LARGE_BYTES if orphan or urgent else MOVED_BYTES, self._disk.ahead_bytes() if orphan else SHRINK_BYTES
            if held <= most and emptied >= max(2 * held, min(least, part)):
                with contextlib.suppress(apsw.BusyError):  # it is busy: another time
                    database.write(self.db, "VACUUM")
                    database.checkpoint(self.db)
            if orphan and held <= IDLE_BYTES and file.log_size(self.path):
                database.checkpoint(self.db, truncate=True)
        finally:
            if lock is not None:
                os.close(lock)

    def shorten_log(self) -> None:
        """A log that a reader had held back is brought into the file here, rather than by a collector, for whom visitors wait."""
        with contextlib.suppress(apsw.BusyError):  # another time
            file.shorten_log(self.db, self.path, self._disk)

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()
        if self._guard is not None:
            self._guard.close()

    def _set_aside(self, limit: int, wanted: Mapping[str, Wanted], but: Collection[int]) -> list[Claim]:
        claims: list[Claim] = []
        for site, (n, _) in wanted.items():
            claims += self._waiting(SET_ASIDE, min(n, limit - len(claims)), site, 0, but)
        return claims

    def _waiting(self, query: str, limit: int, site: str, now_ms: int, but: Collection[int] = ()) -> list[Claim]:
        claims: list[Claim] = []
        if limit > 0:
            with contextlib.closing(self.db.execute(query, (site, now_ms))) as rows:
                for id, blob, attempts, due_ms in rows:
                    if id not in self._in_flight and id not in but:
                        claims.append(Claim(Ticket(self.opened, id, True), _read(blob), attempts + 1, due_ms > 0))
                        if len(claims) >= limit:
                            break
        return claims

    def _fresh(self, limit: int, closed: Collection[str]) -> tuple[list[Claim], list[Settlement], int]:
        """Fresh hits of open sites; those of closed ones, to be set aside among the waiting; and the last id looked at."""
        claims: list[Claim] = []
        aside: list[Settlement] = []
        last = self._last_fresh
        for _ in range(LOOKS):
            room = limit - len(claims)
            if room <= 0:
                break
            rows = database.rows(self.db, "SELECT id, hit FROM fresh WHERE id > ? ORDER BY id LIMIT ?", (last, room))
            found = [Claim(Ticket(self.opened, id, False), _read(blob), 1) for id, blob in rows]
            if closed:
                aside += [Settlement(claim, Retry(0, counted=False)) for claim in found if claim.hit.site in closed]
                found = [claim for claim in found if claim.hit.site not in closed]
            claims += found
            last = rows[-1][0] if rows else last
            if len(rows) < room:
                break
        return claims, aside, last

    def _sites(self) -> list[str]:
        """The sites that have waiting hits, another one first each time: one index seek for each."""
        sites: list[str] = []
        row = database.row(self.db, "SELECT min(site) FROM waiting")
        while row[0] is not None:
            sites.append(row[0])
            row = database.row(self.db, "SELECT min(site) FROM waiting WHERE site > ?", (row[0],))
        self._turn += 1
        first = self._turn % max(1, len(sites))
        return sites[first:] + sites[:first]

    def _settle(self, kind: Kind, batch: Sequence[Settlement], now_ms: int) -> None:
        """All of one kind."""
        waiting, site, outcome, trimmed = kind
        table = "waiting" if waiting else "fresh"
        if outcome is None or outcome.ending is Ending.DEAD:
            moved = msgspec.json.encode([_row(settlement, now_ms) for settlement in batch]).decode()
            if outcome is None and waiting:
                database.write(self.db, POSTPONE, (moved,))
                return
            copied = sum(len(settlement.claim.hit.query) + len(settlement.claim.hit.body) + ROW_BYTES for settlement in batch)
            self._disk.make_room(self.path, file.sizes(self.db, self.path), copied)  # they are written before they are deleted
            target: str = "waiting" if outcome is None else "dead"
            names = [] if outcome is None else [outcome.value]
            database.write(self.db, MOVE[table], (site, target, outcome, msgspec.json.encode(names).decode(), moved))
        else:
            names = [outcome, TRIMMED] if trimmed else [outcome]
            ids = msgspec.json.encode([settlement.claim.ticket.id for settlement in batch]).decode()
            database.write(self.db, END[table], (site, msgspec.json.encode(names).decode(), ids))


def _kind(settlement: Settlement) -> Kind:
    (ticket, hit, *_), verdict = settlement
    if isinstance(verdict, Retry):
        return ticket.waiting, hit.site, None, False
    return ticket.waiting, hit.site, verdict.outcome, verdict.trimmed


def _row(settlement: Settlement, now_ms: int) -> tuple[int, int, int, str]:
    """id, attempts, due or died at, answer: what the triggers that move a hit, and POSTPONE, read."""
    (ticket, _, attempt, _), verdict = settlement
    if isinstance(verdict, Retry):
        return ticket.id, attempt if verdict.counted else attempt - 1, verdict.due_ms, ""
    return ticket.id, attempt, now_ms, verdict.answer


def _read(blob: bytes) -> Hit:
    """NOBODY for a record that cannot be read."""
    try:
        return hits.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NOBODY
