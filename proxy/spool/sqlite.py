"""The embedded spool: a directory of SQLite files, one "lane" per collector process, read by one forwarder.

A lane is held by a lock on a file beside it, so writers never wait for each other; the lock goes with the process, and the next
collector adopts the lane. The forwarder reads every lane, whoever holds it. Rows live in three tables: `fresh` (append-only, so
ids are the order of receipt), `waiting` (had an attempt, due later) and `dead`. Counts change in the transaction of their rows.

AUTOINCREMENT matters: without it SQLite starts again at 1 in an emptied table, and a reader that remembers the last id it saw
would never see the new rows.
"""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from proxy import hit as hits
from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.group import Counts, GroupCommit
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Claim, Ledger, Settlement, SpoolRefused

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE fresh (id INTEGER PRIMARY KEY AUTOINCREMENT, hit BLOB NOT NULL);
CREATE TABLE waiting (id INTEGER PRIMARY KEY, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL, hit BLOB NOT NULL);
CREATE INDEX waiting_due ON waiting (due_ms);
CREATE TABLE dead (id INTEGER PRIMARY KEY, outcome TEXT NOT NULL, answer TEXT NOT NULL, attempts INTEGER NOT NULL,
                   died_ms INTEGER NOT NULL, hit BLOB NOT NULL);
CREATE TABLE ledger (site TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (site, name)) WITHOUT ROWID;
"""
TALLY = "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"
BUSY_MS = 5_000
COLLECTOR_CHECKPOINT_PAGES = 16_384
"""64 MiB of log: the forwarder checkpoints long before; this is for when no forwarder runs."""
SIZE_LOOK_S = 1.0


ENDED = frozenset(outcome.value for outcome in Outcome)


class SpoolError(Exception):
    """The spool cannot be used as it is; the message says what to do. For the operator."""


class ForwarderRunning(SpoolError):
    """Another forwarder holds this spool directory."""


def create_file(path: Path) -> None:
    """Make an empty lane under another name and rename it, so that nobody ever opens one that is half made."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    finally:
        db.close()
    unfinished.rename(path)
    sync_directory(path.parent)


def open_file(path: Path, *, durability: str) -> sqlite3.Connection:
    """Open a lane's file. Raises SpoolError for a file of a newer schema, sqlite3.Error for one that cannot be read."""
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
    )
    try:
        db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'disk' else 'NORMAL'}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise SpoolError(
                f"{path} has spool schema {version}, and this version of beacon-proxy knows schemas up to {SCHEMA_VERSION}: "
                "it was written by a newer version. Run that version, or let it drain the spool first."
            )
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def lock(path: Path) -> int | None:
    """Take the lock on that file for the life of this process; None if another holds it. The descriptor is not inherited."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def make_directory(directory: Path) -> None:
    """Create the spool's directory, readable by its owner alone, and make its name durable."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a file whose name is lost in a power cut is lost itself."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lane_files(directory: Path) -> list[Path]:
    """The lanes' files, in a stable order."""
    return sorted(directory.glob("lane-*.db"))


class Lane:
    """A collector's own file: the first lane of the directory that no living process holds, else a new one."""

    def __init__(self, directory: str | Path, *, durability: str = "disk", max_bytes: int = 10 * 1024**3) -> None:
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._others_bytes = 0
        self._looked = -SIZE_LOOK_S
        make_directory(self._directory)
        number = 0
        while (held := lock(self._directory / f"lane-{number:04d}.lock")) is None:
            number += 1
        self._lock = held
        self.path = self._directory / f"lane-{number:04d}.db"
        try:
            if not self.path.exists():
                create_file(self.path)
            self._db = open_file(self.path, durability=durability)
        except BaseException:
            os.close(held)
            raise
        self._db.execute(f"PRAGMA wal_autocheckpoint = {COLLECTOR_CHECKPOINT_PAGES}")
        self._group = GroupCommit(self._commit, self._finish)
        self.append = self._group.append
        self.append_blocking = self._group.append_blocking

    def drop(self, site: str, outcome: Outcome) -> None:
        self._group.count(site, outcome.value, RECEIVED)

    def refuse(self, site: str) -> None:
        self._group.count(site, REFUSED)

    def close(self) -> None:
        self._group.close()

    def _commit(self, batch: list[Hit], counts: Counts) -> None:
        try:
            if batch:
                self._refuse_when_full()
            with transaction(self._db):
                self._db.executemany("INSERT INTO fresh (hit) VALUES (?)", [(hits.encode(hit),) for hit in batch])
                sites = Counter(hit.site for hit in batch)
                self._db.executemany(TALLY, [(site, RECEIVED, n) for site, n in sites.items()])
                if counts:
                    self._db.executemany(TALLY, [(site, name, n) for (site, name), n in counts.items()])
        except (sqlite3.Error, OSError) as error:
            raise SpoolRefused(f"{self.path}: {error}") from error

    def _refuse_when_full(self) -> None:
        now = time.monotonic()
        if now - self._looked >= SIZE_LOOK_S:
            self._looked = now
            self._others_bytes = sum(used_bytes(path) for path in lane_files(self._directory) if path != self.path)
        if _used(self._db) + self._others_bytes >= self._max_bytes:
            raise SpoolRefused(f"the spool holds max_bytes ({self._max_bytes})")

    def _finish(self) -> None:
        self._db.close()
        os.close(self._lock)


class Ticket(NamedTuple):
    """Where a claimed hit lies."""

    lane: str
    id: int
    waiting: bool


class _Reader:
    """The forwarder's side of one lane."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.db = open_file(path, durability="os")  # an unsynced settlement is at worst a resend, which is byte-identical
        self.last_fresh = 0
        self.in_flight: set[int] = set()

    def claim(self, limit: int, now_ms: int) -> Iterator[tuple[Ticket, bytes, int]]:
        rows = self.db.execute(
            "SELECT id, hit, attempts FROM waiting WHERE due_ms <= ? ORDER BY due_ms LIMIT ?",
            (now_ms, limit + len(self.in_flight)),
        ).fetchall()
        rows = [row for row in rows if row[0] not in self.in_flight][:limit]
        for id, blob, attempts in rows:
            self.in_flight.add(id)
            yield Ticket(self.name, id, True), blob, attempts + 1
        room = limit - len(rows)
        if room > 0:
            fresh = self.db.execute(
                "SELECT id, hit FROM fresh WHERE id > ? ORDER BY id LIMIT ?", (self.last_fresh, room)
            ).fetchall()
            for id, blob in fresh:
                self.last_fresh = id
                yield Ticket(self.name, id, False), blob, 1

    def settle(self, settlements: list[Settlement]) -> None:
        counts: Counts = Counter()
        now_ms = time.time_ns() // 1_000_000
        with transaction(self.db):
            for (ticket, hit, attempt), verdict in settlements:
                table = "waiting" if ticket.waiting else "fresh"
                if isinstance(verdict, Retry) and ticket.waiting:
                    self.db.execute(
                        "UPDATE waiting SET due_ms = ?, attempts = ? WHERE id = ?", (verdict.due_ms, attempt, ticket.id)
                    )
                    continue
                if isinstance(verdict, Retry):
                    self.db.execute(
                        "INSERT OR IGNORE INTO waiting SELECT id, ?, ?, hit FROM fresh WHERE id = ?",
                        (verdict.due_ms, attempt, ticket.id),
                    )
                elif verdict.outcome.ending is Ending.DEAD:
                    self.db.execute(
                        f"INSERT OR IGNORE INTO dead SELECT id, ?, ?, ?, ?, hit FROM {table} WHERE id = ?",
                        (verdict.outcome.value, verdict.answer, attempt, now_ms, ticket.id),
                    )
                gone = self.db.execute(f"DELETE FROM {table} WHERE id = ?", (ticket.id,)).rowcount
                if gone and isinstance(verdict, Final):
                    counts[hit.site, verdict.outcome.value] += 1
                    if verdict.trimmed:
                        counts[hit.site, TRIMMED] += 1
            self.db.executemany(TALLY, [(site, name, n) for (site, name), n in counts.items()])
        self.in_flight.difference_update(s.claim.ticket.id for s in settlements if s.claim.ticket.waiting)


class SqliteOutlet:
    """The forwarder's half, over all lanes of the directory. Used from one thread at a time."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        make_directory(self._directory)
        held = lock(self._directory / "forwarder.lock")
        if held is None:
            raise ForwarderRunning(f"another forwarder is at work on {self._directory}")
        self._lock = held
        self._readers: dict[str, _Reader] = {}
        self._looked = -SIZE_LOOK_S

    def claim(self, limit: int, now_ms: int) -> list[Claim]:
        self._look_for_lanes()
        claims: list[Claim] = []
        unreadable: list[Settlement] = []
        for turn, reader in enumerate(readers := list(self._readers.values())):
            share = -(-(limit - len(claims)) // (len(readers) - turn))
            for ticket, blob, attempt in reader.claim(share, now_ms):
                try:
                    claims.append(Claim(ticket, hits.decode(blob), attempt))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    nobody = Claim(ticket, Hit("", b"", b"", hits.DEFAULT_SITE, "", "", "", "", "", 0), attempt)
                    unreadable.append(Settlement(nobody, Final(Outcome.UNREADABLE, str(error))))
        if unreadable:
            self.settle(unreadable)
        return claims

    def settle(self, settlements: Sequence[Settlement]) -> None:
        by_lane: dict[str, list[Settlement]] = {}
        for settlement in settlements:
            by_lane.setdefault(settlement.claim.ticket.lane, []).append(settlement)
        for lane, some in by_lane.items():
            self._readers[lane].settle(some)

    def ledger(self) -> Ledger:
        return read_ledger(self._directory)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.db.close()
        os.close(self._lock)

    def _look_for_lanes(self) -> None:
        now = time.monotonic()
        if now - self._looked >= SIZE_LOOK_S or not self._readers:
            self._looked = now
            for path in lane_files(self._directory):
                if path.name not in self._readers:
                    self._readers[path.name] = _Reader(path)


def read_ledger(directory: str | Path) -> Ledger:
    """The sum over all lanes, each read in one transaction. An absent directory is an empty spool."""
    counts: dict[str, dict[str, int]] = {}
    pending, oldest = 0, []
    for path in lane_files(Path(directory)):
        db = open_file(path, durability="os")
        try:
            db.execute("BEGIN")
            rows: list[tuple[str, str, int]] = db.execute("SELECT site, name, n FROM ledger").fetchall()
            first = [db.execute(f"SELECT hit FROM {table} ORDER BY id LIMIT 1").fetchone() for table in ("fresh", "waiting")]
            db.execute("COMMIT")
        finally:
            db.close()
        for site, name, n in rows:
            of_site = counts.setdefault(site, {})
            of_site[name] = of_site.get(name, 0) + n
            pending += n if name == RECEIVED else -n if name in ENDED else 0
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            oldest += [hits.decode(row[0]).received_ms for row in first if row]
    return Ledger(counts, pending, min(oldest, default=None))


def used_bytes(path: Path) -> int:
    """Bytes of a lane that hold something; pages that were emptied are used again and do not count."""
    with contextlib.closing(open_file(path, durability="os")) as db:
        return _used(db)


def _used(db: sqlite3.Connection) -> int:
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def why_unready(directory: str | Path, max_bytes: int) -> str:
    """Why this directory cannot take beacons; "" if it takes a synced write, has room, and a collector holds a lane."""
    place = Path(directory)
    probe = place / "ready.probe"
    try:
        with probe.open("wb") as file:
            file.write(b"ready?")
            file.flush()
            os.fsync(file.fileno())
        lanes = lane_files(place)
        if not any(_is_held(path.with_suffix(".lock")) for path in lanes):
            return f"no collector holds a lane of {place}"
        used = sum(used_bytes(path) for path in lanes)
    except (OSError, sqlite3.Error, SpoolError) as error:
        return f"the spool cannot be written: {error}"
    return f"the spool is full: {used:,} of max_bytes {max_bytes:,}" if used >= max_bytes else ""


def _is_held(path: Path) -> bool:
    held = lock(path)
    if held is not None:
        os.close(held)
    return held is None
