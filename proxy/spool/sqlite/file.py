"""A lane's file and its directory: schema, opening, numbers, locks, names made durable. Shared by all who touch lanes.

AUTOINCREMENT matters: without it SQLite starts again at 1 in an emptied table, and a reader that remembers the last id it saw
would never see the new rows.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import apsw

from proxy.hit import DEFAULT_SITE
from proxy.spool.port import SpoolError
from proxy.spool.sqlite import database
from proxy.spool.sqlite.database import BUSY_S, Connection
from proxy.spool.sqlite.disk import LOGS, Disk, Sizes

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
TALLY = """INSERT INTO ledger SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
           ON CONFLICT DO UPDATE SET n = n + excluded.n"""
"""Add counts: a JSON array of [site, name, n]."""
DOUBTFUL, MOVING = "doubtful", "moving"
"""Counts of a fallback's lane beside the port's: hits that wait there and may be in the spool as well, and hits that are on their
way there. Neither is in RECEIVED, so that no hit is counted at both places."""
BATCHES = "batches"
"""A lane's own count: commits of its collector. It tells whether a commit of unknown outcome is in the file."""
ONE_BATCH = (DEFAULT_SITE, BATCHES, 1)
STRETCH_BYTES = 1024**2
ASIDE, RECOVERED = ".corrupt-", ".recovered-"
"""Behind a lane's name, before the time in ms: it was set aside as corrupt; what was in it is in another lane now."""


def create_file(path: Path, fill: Callable[[Connection], object] | None = None, lane_number: int = 0) -> None:
    """Make a lane under another name and rename it, so that nobody ever opens one that is half made.

    It is empty, or holds what `fill` writes; without `lane_number` its number is drawn. Raises what `fill` raises, and leaves
    nothing behind then.
    """
    unfinished = path.with_suffix(".new")
    stale = (unfinished, *companions(unfinished))
    for one in (*stale, *companions(path)):
        one.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))  # its log gets the same rights from SQLite
    try:
        with contextlib.closing(database.connect(unfinished)) as db:
            db.pragma("journal_mode", "wal")
            db.pragma("application_id", lane_number or secrets.randbelow(2**31 - 1) + 1)
            db.execute(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            if fill is not None:
                fill(db)
                database.checkpoint(db, truncate=True)  # in closing it would fail unseen
        if fill is not None:
            sync_file(unfinished)
    except BaseException:
        for one in stale:
            one.unlink(missing_ok=True)
        raise
    unfinished.rename(path)
    sync_directory(path.parent)


def open_file(
    path: Path, disk: Disk | None = None, *, durability: str = "os", busy_s: float = BUSY_S, polls: bool = False
) -> Connection:
    """Open a lane's file. Raises SpoolError for a file of a newer schema, database.Error for one that cannot be read.

    `busy_s`, `polls`: see database.connect.
    """
    disk = disk or Disk(path.parent)
    db = database.connect(path, busy_s=busy_s)  # to be opened it may have to wait for a recovery
    try:
        database.control(db, apsw.SQLITE_FCNTL_PERSIST_WAL, 1)  # the log's blocks are room for settlements
        log_bytes = disk.log_bytes()
        db.pragma("synchronous", "FULL" if durability == "disk" else "NORMAL")
        db.pragma("wal_autocheckpoint", log_bytes // database.PAGE_BYTES)
        db.pragma("journal_size_limit", LOGS * log_bytes)
        db.pragma("secure_delete", "FAST")  # builds differ; ON writes each emptied page once more (decisions/0014)
        db.pragma("temp_store", "MEMORY")
        version = db.pragma("user_version")
        if version == 0:
            raise database.NotALane("not a lane: the file is empty, or something else")
        if version > SCHEMA_VERSION:
            raise SpoolError(
                f"{path} has spool schema {version}, and this version of beacon-proxy knows schemas up to {SCHEMA_VERSION}: "
                "it was written by a newer version. Run that version, or let it drain the spool first."
            )
        db.wait_by_polling(polls)
    except BaseException:
        db.close()
        raise
    return db


def checkpoint_early(db: Connection) -> None:
    """Let this connection be the one that brings the log into the file: the collector's next commit shall not have to."""
    db.pragma("wal_autocheckpoint", db.pragma("wal_autocheckpoint") // 2)


def shorten_log(db: Connection, path: Path, disk: Disk) -> None:
    """Bring a log that outgrew its ordinary size into the file, and give its room back. In vain while a reader holds it. Raises
    database.Error, OSError."""
    if log_size(path) > LOGS * disk.log_bytes() and database.checkpoint(db, truncate=True):
        stretch_log(db, path, disk)


def stretch_log(db: Connection, path: Path, disk: Disk) -> None:
    """Let the log have some blocks from the start, for settlements on a full disk. Raises database.Error, OSError."""
    log, size = companions(path)[0], min(STRETCH_BYTES, disk.log_bytes())
    if log_size(path) >= size:
        return
    with database.transaction(db):  # nobody else writes to the log meanwhile; zeros behind its end are no frames
        fd = os.open(log, os.O_RDWR | os.O_CLOEXEC)
        try:
            end = os.fstat(fd).st_size
            if end < size:
                os.posix_fallocate(fd, end, size - end)
        finally:
            os.close(fd)


def number(db: Connection) -> int:
    """The lane's own number, drawn when it was made: a copy bears the same."""
    return int(db.pragma("application_id"))


def number_of(path: Path) -> int:
    """The same of a file that is not open. Raises database.Error, SpoolError."""
    with contextlib.closing(open_file(path)) as db:
        return number(db)


def guard(lane_number: int) -> socket.socket | None:
    """Held as long as a forwarder or mover empties the lane of that number; None if another on this machine does: the same file
    under another name, or a copy. Bound to no file, so a directory that is moved, copied or replaced makes no difference.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if sys.platform == "linux":  # elsewhere there are no abstract addresses
        try:
            held.bind(f"\0beacon-proxy/lane/{lane_number:08x}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                held.close()
                return None
    _guards.add(held)
    return held


_guards: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _close_inherited() -> None:
    """A process that was forked empties nothing by what its parent holds."""
    for held in list(_guards):
        held.close()


os.register_at_fork(after_in_child=_close_inherited)


def inode(path: Path | str) -> tuple[int, int] | None:
    """Which file the name stands for; None if for none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def set_aside(path: Path, damaged: tuple[int, int] | None) -> Path | None:
    """Give a damaged lane another name, with its log, so that what is in it can be saved. None if the name stands for another
    file than the damaged one by now, or for none.
    """
    if damaged is None or inode(path) != damaged:
        return None
    aside = path.with_name(f"{path.name}{ASIDE}{time.time_ns() // 1_000_000}")
    for companion, suffix in zip(companions(path), ("-wal", "-shm"), strict=True):
        with contextlib.suppress(FileNotFoundError):
            companion.rename(aside.with_name(aside.name + suffix))
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return aside


def log_size(path: Path) -> int:
    """Bytes of a lane's log; 0 if there is none."""
    try:
        return companions(path)[0].stat().st_size
    except OSError:
        return 0


def companions(path: Path) -> tuple[Path, Path]:
    """The log and the shared memory beside a lane."""
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def lock(path: Path, shared: bool = False) -> int | None:
    """Take the lock on that file for the life of this process; None if another holds it. The descriptor is not inherited.
    `shared`: only to see whether another holds it, together with others who look."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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


def sync_file(path: Path) -> None:
    """Make a file's content durable. Not for one that this process has open in SQLite: closing it would drop SQLite's locks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Give a small file new content at once, for the owner's eyes only. Where the disk has no room for another file, its own
    blocks are written again: a reader may then see half of it. Raises OSError."""
    unfinished = path.with_name(f"{path.name}.new")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            opened.write(content)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        with path.open("r+b", buffering=0) as opened:
            opened.write(content)
            opened.truncate(len(content))


def lane_files(directory: Path) -> list[Path]:
    """The lanes' files, in a stable order."""
    return sorted(directory.glob("lane-????.db"))


def set_aside_files(directory: Path) -> list[Path]:
    """Lanes that were set aside as corrupt."""
    return sorted(path for path in directory.glob(f"lane-????.db{ASIDE}*") if path.name[-4:] not in ("-wal", "-shm"))


def sizes(db: Connection, path: Path) -> Sizes:
    """Of a lane's file. Raises database.Error, OSError."""
    pages, emptied = db.pragma("page_count"), db.pragma("freelist_count")
    ahead = max(0, path.stat().st_size - pages * database.PAGE_BYTES)
    return Sizes((pages - emptied) * database.PAGE_BYTES, emptied * database.PAGE_BYTES, ahead, log_size(path))
