"""The SQLite library under the lanes, and all that is its own: its version, connections, transactions, what an error means.

Lanes run on apsw, which brings a SQLite of its own: any SQLite from 3.7.0 to 3.51.2 can lose committed pages when two processes
write and checkpoint at the same moment (the "WAL-reset" race, https://sqlite.org/wal.html#walresetbug), and a collector and its
forwarder do just that (docs/decisions/0014). Nothing else in the project opens a lane's file, since two SQLite libraries in one
process break each other's locks.
"""

import array
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from proxy.spool.port import SpoolError

Error = apsw.Error
FLOOR = (3, 51, 3)
"""The first SQLite without the WAL-reset race."""
PAGE_BYTES = 4096
BUSY_S = 5.0
LOCK_POLL_S = 0.0001
"""Between two looks for the write lock."""
IO_ERRORS = frozenset((apsw.SQLITE_IOERR, apsw.SQLITE_CANTOPEN))
"""Primary codes of errors behind which a full disk or a quota may stand."""


class Connection(apsw.Connection):
    """A connection that knows how long it may wait for others."""

    busy_s = BUSY_S
    polls = False

    def wait_by_polling(self, polls: bool) -> None:
        """Whether `write` looks for the lock often, rather than SQLite: its holder needs less than a millisecond, and SQLite's
        own wait sleeps 1, 2, 5, 10 … ms."""
        self.polls = polls
        self.set_busy_timeout(0 if polls else int(self.busy_s * 1000))

    def close(self, force: bool = False) -> None:
        """Let go of the file. The log keeps its blocks: SQLite would cut a log with a size limit when the last one closes it."""
        with contextlib.suppress(apsw.Error):
            self.pragma("journal_size_limit", -1)
        super().close(force)


class NotALane(apsw.NotADBError):
    """A file with a lane's name that is no lane: as good as corrupt."""

    result = extendedresult = apsw.SQLITE_NOTADB


class OutcomeUnknown(apsw.IOError):
    """COMMIT failed with an I/O error: the transaction may be in the file all the same. The cause is the error."""

    result = extendedresult = apsw.SQLITE_IOERR


def library_problem(version: str = "", options: Sequence[str] = ()) -> str:
    """Why the lanes cannot run on the SQLite at hand; "" if they can."""
    version, options = version or apsw.sqlite_lib_version(), options or apsw.compile_options
    if tuple(map(int, version.split(".")[:3])) < FLOOR:
        floor = ".".join(map(str, FLOOR))
        return (
            f"SQLite {version} can lose committed beacons (the WAL-reset race); expected {floor} or newer. "
            "Install apsw from its wheel: pip install --force-reinstall --only-binary apsw 'apsw>=3.54.1'"
        )
    if "ENABLE_CARRAY" not in options:
        return f"SQLite {version} was built without CARRAY; expected apsw's own wheel: pip install --only-binary apsw apsw"
    return ""


_PROBLEM = library_problem()


def version() -> str:
    """Of the SQLite that the lanes run on."""
    return apsw.sqlite_lib_version()


def check_library() -> None:
    """Raises SpoolError if the SQLite at hand is not to be trusted with beacons."""
    if _PROBLEM:
        raise SpoolError(f"spool: {_PROBLEM}")


def connect(path: Path, *, create: bool = False, busy_s: float = BUSY_S) -> Connection:
    """Open a database file. `busy_s`: how long to wait for others. Raises Error, and SpoolError for a library below the floor."""
    check_library()
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    db = Connection(str(path), flags)
    db.busy_s = busy_s
    db.wait_by_polling(False)
    return db


def control(db: Connection, operation: int, value: int) -> int:
    """A file control that takes and gives a number (`apsw.SQLITE_FCNTL_…`)."""
    number = array.array("q", [value])
    db.file_control("main", operation, number.buffer_info()[0])
    return number[0]


@contextlib.contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception. Raises OutcomeUnknown if it is unclear whether COMMIT succeeded."""
    write(db, "BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        _roll_back(db)
        raise
    try:
        db.execute("COMMIT")
    except Error as error:
        _roll_back(db)
        if primary(error) in IO_ERRORS:
            raise OutcomeUnknown(str(error)) from error
        raise


def _roll_back(db: Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def write(db: Connection, statement: str, parameters: Sequence[Any] = ()) -> None:
    """Execute a statement that takes the lane's write lock. Raises apsw.BusyError if it cannot be had within busy_s."""
    began = time.monotonic()
    while True:
        try:
            db.execute(statement, parameters)
            return
        except apsw.BusyError:
            if time.monotonic() - began > db.busy_s:
                raise
        time.sleep(LOCK_POLL_S)


def row(db: Connection, query: str, parameters: Sequence[Any] = ()) -> Any:
    """The first row, or None."""
    return db.execute(query, parameters).fetchone()


def rows(db: Connection, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
    """All rows."""
    return db.execute(query, parameters).fetchall()


def checkpoint(db: Connection, *, truncate: bool = False, wait_s: float = 0.0) -> bool:
    """Bring the log into the file, so that it is written from its beginning again. Its blocks on the disk are kept, unless
    `truncate`. False if a reader or a writer is in the way for longer than `wait_s`. Raises Error, apsw.FullError among them.
    """
    mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_RESTART
    began = time.monotonic()
    db.set_busy_timeout(0)  # else SQLite would wait for readers with the write lock in its hand
    try:
        return _checkpoint(db, mode, began + wait_s)
    finally:
        db.wait_by_polling(db.polls)


def _checkpoint(db: Connection, mode: int, deadline: float) -> bool:
    while True:
        try:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)  # most of it, while others write on
            db.wal_checkpoint(mode=mode)
            return True
        except (apsw.BusyError, apsw.LockedError):
            if time.monotonic() >= deadline:
                return False
        time.sleep(LOCK_POLL_S * 10)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What goes wrong with the library inside becomes a SpoolError, for the operator."""
    try:
        yield
    except apsw.Error as error:
        raise SpoolError(f"spool: {error}; expected a readable spool directory (setting spool)") from error


def primary(error: BaseException) -> int:
    """SQLite's primary result code of an error; 0 for any other exception."""
    return int(getattr(error, "result", 0)) & 0xFF


def is_corrupt(error: BaseException) -> bool:
    """Whether the file itself is damaged, so that no waiting helps."""
    return primary(error) in (apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB)


def is_passing(error: BaseException) -> bool:
    """Whether the same connection may succeed later: the file is locked, or the disk is full."""
    return primary(error) in (apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED, apsw.SQLITE_FULL)
