"""A lane's file and its directory: schema, opening, locks, names made durable, the reserve. Shared by all who touch lanes.

AUTOINCREMENT matters: without it SQLite starts again at 1 in an emptied table, and a reader that remembers the last id it saw
would never see the new rows.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from proxy.spool.port import SpoolError

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE fresh (id INTEGER PRIMARY KEY AUTOINCREMENT, hit BLOB NOT NULL);
CREATE TABLE waiting (id INTEGER PRIMARY KEY, site TEXT NOT NULL, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL,
                      hit BLOB NOT NULL);
CREATE INDEX waiting_due ON waiting (site, due_ms);
CREATE TABLE dead (id INTEGER PRIMARY KEY, site TEXT NOT NULL, outcome TEXT NOT NULL, answer TEXT NOT NULL,
                   attempts INTEGER NOT NULL, died_ms INTEGER NOT NULL, hit BLOB NOT NULL);
CREATE TABLE ledger (site TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (site, name)) WITHOUT ROWID;
"""
TALLY = "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"
DOUBTFUL, MOVING = "doubtful", "moving"
"""Counts of a fallback's lane beside the port's: hits that wait there and may be in the spool as well, and hits that are on their
way there. Neither is in RECEIVED, so that no hit is counted at both places."""
BUSY_S = 5.0
LOCK_POLL_S = 0.0001
"""Between two looks for the write lock."""
RESERVE_BYTES = 16 * 1024**2
"""At most; on a small file system a sixteenth of it."""
PAGE_BYTES = 4096
ASIDE = ".corrupt-"


class Connection(sqlite3.Connection):
    """A connection that knows how long it may wait for others."""

    busy_s = BUSY_S


class NotALane(sqlite3.DatabaseError):
    """A file of a lane's name that is no lane: as good as corrupt."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


def create_file(path: Path) -> None:
    """Make an empty lane under another name and rename it, so that nobody ever opens one that is half made."""
    unfinished = path.with_suffix(".new")
    for stale in (unfinished, *_companions(path)):
        stale.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))  # its log gets the same rights from SQLite
    db = sqlite3.connect(unfinished, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA application_id = {secrets.randbits(31)}")
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    finally:
        db.close()
    unfinished.rename(path)
    sync_directory(path.parent)


def open_file(path: Path, *, durability: str = "os", busy_s: float = BUSY_S, polls: bool = False) -> Connection:
    """Open a lane's file. Raises SpoolError for a file of a newer schema, sqlite3.Error for one that cannot be read.

    `busy_s`: how long to wait for others. `polls`: wait for the write lock by looking for it often, since whoever holds it needs
    less than a millisecond, and SQLite's own wait sleeps 1, 2, 5, 10 … ms.
    """
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_s,
        factory=Connection,
    )
    db.busy_s = busy_s
    try:
        db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'disk' else 'NORMAL'}")
        log_bytes = reserve_bytes(path.parent) // 2  # a log that can be brought into the file with the reserve's room alone
        db.execute(f"PRAGMA wal_autocheckpoint = {max(16, log_bytes // PAGE_BYTES)}")
        db.execute(f"PRAGMA journal_size_limit = {4 * log_bytes}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            raise NotALane("not a lane: the file is empty, or something else")
        if version > SCHEMA_VERSION:
            raise SpoolError(
                f"{path} has spool schema {version}, and this version of beacon-proxy knows schemas up to {SCHEMA_VERSION}: "
                "it was written by a newer version. Run that version, or let it drain the spool first."
            )
        if polls:
            db.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        db.close()
        raise
    return db


def checkpoint_early(db: Connection) -> None:
    """Let this connection be the one that brings the log into the file: the collector's next commit shall not have to."""
    pages = db.execute("PRAGMA wal_autocheckpoint").fetchone()[0]
    db.execute(f"PRAGMA wal_autocheckpoint = {pages // 2}")


def identity(db: sqlite3.Connection) -> int:
    """A number that tells this lane from a later one of the same name (ids in a new file start again)."""
    return int(db.execute("PRAGMA application_id").fetchone()[0])


def inode(path: Path) -> tuple[int, int] | None:
    """Which file the name stands for; None if for none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception."""
    write(db, "BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def write(db: Connection, statement: str, parameters: Sequence[object] = ()) -> None:
    """Execute a statement that takes the lane's write lock. Raises sqlite3.OperationalError if it cannot be had within busy_s."""
    began = time.monotonic()
    while True:
        try:
            db.execute(statement, parameters)
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() - began > db.busy_s:
                raise
        time.sleep(LOCK_POLL_S)


def is_corrupt(error: Exception) -> bool:
    """Whether the file itself is damaged, so that no waiting helps."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_busy(error: Exception) -> bool:
    """Whether another connection has the lane's lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_passing(error: Exception) -> bool:
    """Whether the same connection may succeed later: the file is locked, or the disk is full."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


def is_full(error: Exception) -> bool:
    """Whether the disk has no room."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def set_aside(path: Path) -> Path | None:
    """Give a damaged lane another name, with its log, for whoever wants to save what is in it. None if it is gone already."""
    aside = path.with_name(f"{path.name}{ASIDE}{time.time_ns() // 1_000_000}")
    for companion, suffix in zip(_companions(path), ("-wal", "-shm"), strict=True):
        with contextlib.suppress(FileNotFoundError):
            companion.rename(aside.with_name(aside.name + suffix))
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return aside


def _companions(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


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


def replace_file(path: Path, content: bytes) -> None:
    """Give a small file new content at once, for the owner's eyes only. Raises OSError."""
    unfinished = path.with_name(f"{path.name}.new")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(content)
    unfinished.rename(path)


def lane_files(directory: Path) -> list[Path]:
    """The lanes' files, in a stable order."""
    return sorted(directory.glob("lane-????.db"))


def set_aside_files(directory: Path) -> list[Path]:
    """Lanes that were set aside as corrupt."""
    return sorted(path for path in directory.glob(f"lane-????.db{ASIDE}*") if path.name[-4:] not in ("-wal", "-shm"))


def sizes(db: sqlite3.Connection) -> tuple[int, int]:
    """Bytes of a lane that hold something, and bytes of pages that were emptied: those are used again, and never given back."""
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size, free * size


def reserve_bytes(directory: Path) -> int:
    """The size of the reserve on that file system."""
    found = os.statvfs(directory)
    return min(RESERVE_BYTES, found.f_blocks * found.f_frsize // 16)


def has_room(directory: Path, emptied_bytes: int) -> bool:
    """Whether a collector may store: the reserve is there, and beyond it the disk, or its own lane, has some room left.

    While the reserve is not there, collectors refuse: what the forwarder was given to finish its work with is not theirs.
    """
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize + emptied_bytes
    return free >= 3 * reserve_bytes(directory) and os.path.exists(directory / "reserve")


def keep_reserve(directory: Path) -> None:
    """Hold back room on the disk, if there is any, so that settlements still go through when it is full."""
    if os.path.exists(directory / "reserve"):
        return
    size = reserve_bytes(directory)
    found = os.statvfs(directory)
    if found.f_bavail * found.f_frsize < 2 * size:
        return
    unfinished = directory / f"reserve.{os.getpid()}"
    try:
        with unfinished.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        unfinished.rename(directory / "reserve")
    except OSError:
        unfinished.unlink(missing_ok=True)


def spend_reserve(directory: Path) -> bool:
    """Give the reserve up for settlements. False if it was spent already."""
    try:
        (directory / "reserve").unlink()
    except FileNotFoundError:
        return False
    return True
