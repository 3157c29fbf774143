"""Brings what can be saved of a lane that no process uses into a new lane of the spool.

    lock     the file, as SQLite does: no process has it open, and none can open it meanwhile
    write    the new lane under an unfinished name; the next process that makes a lane removes one that was left behind
    publish  it by its name, synced: from here on its beacons are delivered
    rename   the file, so that it is not taken twice

A kill at any moment leaves a spool that works, and the next run does what is left. The new lane's number is made of what the file
is, so a run that follows a kill between the last two steps finds the lane and only renames the file.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from proxy import hit as hits
from proxy.spool.port import RECEIVED, SpoolError
from proxy.spool.sqlite import database, file, survey
from proxy.spool.sqlite.database import Connection
from proxy.spool.sqlite.disk import Disk, Sizes
from proxy.spool.sqlite.salvage import Row, Salvage

TOGETHER = 1000
"""Rows of one transaction."""
SHARED_FIRST, SHARED_BYTES = 2**30 + 2, 510
"""What of a file SQLite locks as long as it is open (https://sqlite.org/src/file/src/os.h, SHARED_FIRST)."""
IN_USE_S, IN_USE_POLL_S = 5.0, 0.02
"""How long a reader such as `status` may have the file open, and how often to look."""
MOST_COUNTED = 2**53
"""A larger count is damage."""
INSERTS = {
    "fresh": "INSERT INTO fresh VALUES (?, ?)",
    "waiting": "INSERT INTO waiting VALUES (?, ?, ?, ?, ?)",
    "dead": "INSERT INTO dead VALUES (?, ?, ?, ?, ?, ?, ?)",
}


class Recovered(msgspec.Struct):
    """What became of a file; this is what --json prints."""

    file: str
    dry_run: bool
    lane: str = ""
    """The new lane; "" if none was made."""
    renamed_to: str = ""
    """What the file is called now; "" if it was left as it is."""
    finished_earlier_run: bool = False
    """The lane was there already, whole: only the file's name was left to do, and nothing was counted."""
    fresh: int = 0
    """Beacons that had no attempt yet, as these counts say of the new lane."""
    waiting: int = 0
    """Beacons that wait for another attempt."""
    dead: int = 0
    certain: int = 0
    """Beacons and dead letters of which it is certain that they were still there."""
    doubtful: int = 0
    """Those that may have been deleted before, that is, delivered: a second copy is absorbed by the vendor."""
    left_out: int = 0
    """Doubtful ones that were left out, as was asked."""
    missing: int = 0
    """At least so many are lost, by the file's own counts."""
    damaged_pages: int = 0
    unreadable_rows: int = 0
    log_damaged: bool = False
    counts_restored: bool = False
    """Whether the new lane goes on with the file's counts (delivered, dropped …)."""

    @property
    def is_whole(self) -> bool:
        """Whether all was saved, as far as can be seen."""
        return not (self.damaged_pages or self.unreadable_rows or self.log_damaged or self.missing or self.left_out)


def recover(
    path: Path,
    directory: Path,
    disk: Disk,
    certain_only: bool,
    dry_run: bool,
    begin: Callable[[int], object],
    progress: Callable[[int], object],
) -> Recovered:
    """Put what is in the lane `path` into a new lane of `directory`, and rename `path`. `begin` is called with the number of
    pages to read, `progress` with how many more are done. Raises SpoolError, which says what to do, and then nothing has changed.
    """
    path = path.resolve()
    _require_lane(path)
    numbers = _numbers(directory, path)
    with contextlib.ExitStack() as stack:
        _lock_name(path, directory, stack)
        stack.enter_context(_locked(path))
        salvage = stack.enter_context(Salvage(path))
        if salvage.version > file.SCHEMA_VERSION:
            raise SpoolError(
                f"{path} has spool schema {salvage.version}, and this version of beacon-proxy knows schemas up to "
                f"{file.SCHEMA_VERSION}: it was written by a newer version. Recover it with that version."
            )
        number = _new_number(path)
        report = Recovered(str(path), dry_run)
        if number in numbers:
            report.lane, report.finished_earlier_run = numbers[number].name, True
        else:
            begin(salvage.pages)
            filling = _Filling(salvage, report, certain_only, salvage.number not in numbers, progress)
            if dry_run:
                filling.run(None, lambda: None)
            else:
                _publish(filling, directory, disk, number, stack)
        if not dry_run:
            report.renamed_to = str(_rename(path, report.lane))
    return report


class _Filling:
    """Rows of a file on their way into a new lane."""

    def __init__(
        self, salvage: Salvage, report: Recovered, certain_only: bool, restore_counts: bool, progress: Callable[[int], object]
    ) -> None:
        self._salvage, self._report = salvage, report
        self._certain_only, self._restore_counts = certain_only, restore_counts
        self._progress = progress
        self._tally = Counter[tuple[str, str]]()
        self._old: list[tuple[str, str, int]] = []
        self._last_id = 0

    def run(self, db: Connection | None, require_room: Callable[[], object]) -> None:
        """Into `db`; only counted without one. Raises SpoolError if there is nothing of a lane."""
        if db is not None:
            db.pragma("synchronous", "OFF")  # it is synced as a whole before it gets its name
        batch: list[Row] = []
        for row in self._wanted():
            batch.append(row)
            if len(batch) >= TOGETHER:
                require_room()
                self._write(db, batch)
                batch.clear()
        require_room()
        self._write(db, batch)
        self._finish(db)

    def _wanted(self) -> Iterator[Row]:
        report = self._report
        for row in self._salvage.rows(self._progress):
            if row.table == "ledger":
                if not row.doubtful and 0 < row.values[2] <= MOST_COUNTED:
                    self._old.append(row.values)
            elif row.table in INSERTS:
                if row.doubtful and self._certain_only:
                    report.left_out += 1
                    continue
                report.doubtful += row.doubtful
                report.certain += not row.doubtful
                yield row
        report.damaged_pages, report.unreadable_rows = self._salvage.damaged, self._salvage.unreadable
        report.log_damaged = self._salvage.log_cut
        report.missing = max(0, sum(survey.held(self._old)) - report.certain - report.doubtful - report.left_out)

    def _write(self, db: Connection | None, batch: list[Row]) -> None:
        """Ids are one sequence over all tables: a row keeps its id when it moves from one to the other."""
        rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in INSERTS}
        for row in batch:
            self._last_id += 1
            hit = hits.decode(row.values[-1])
            site, between = hit.site, row.values[2:-1]
            if row.table == "dead":
                outcome = row.values[2] if row.values[2] in survey.DEAD else "unreadable"
                site, between = row.values[1], (outcome, *row.values[3:-1])
                self._tally[site, outcome] += 1
            self._tally[site, file.DOUBTFUL if hit.id else RECEIVED] += 1
            columns = () if row.table == "fresh" else (site, *between)
            rows[row.table].append((self._last_id, *columns, row.values[-1]))
        for table, some in rows.items():
            setattr(self._report, table, getattr(self._report, table) + len(some))
        if db is not None:
            with database.transaction(db):
                for table, some in rows.items():
                    db.executemany(INSERTS[table], some)

    def _finish(self, db: Connection | None) -> None:
        if not (self._last_id or self._old or self._report.left_out):
            raise SpoolError(
                f"{self._report.file}: found nothing of a lane in it ({self._salvage.pages:,} pages); expected a lane's file, "
                "with its log (…-wal) beside it. It was left as it is"
            )
        self._report.counts_restored = self._restore_counts and bool(self._old)
        for site, name, n in self._old if self._report.counts_restored else ():
            if name not in (*survey.HELD, *survey.DEAD, file.BATCHES):
                self._tally[site, name] += n
                self._tally[site, RECEIVED] += n if name in survey.ENDED else 0
        if db is None:
            return
        with database.transaction(db):
            tally = [(site, name, n) for (site, name), n in self._tally.items()]
            db.execute(file.TALLY, (msgspec.json.encode(tally).decode(),))
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'fresh'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('fresh', ?)", (self._last_id,))


def _publish(filling: _Filling, directory: Path, disk: Disk, number: int, stack: contextlib.ExitStack) -> None:
    """Make the new lane: all of it at once, or nothing."""
    report = filling._report
    needed = sum(path.stat().st_size for path in (Path(report.file), *file.companions(Path(report.file))) if path.exists())
    hint = f"; up to {needed / 1024**2:,.1f} MiB are needed. {report.file} was left as it is: make room and run this again"

    def require_room() -> None:
        if reason := disk.look(Sizes(0, 0, 0, 0)).reason:
            raise SpoolError(f"{reason}{hint}")

    try:
        disk.keep_reserve()
        require_room()
        lane = _free_lane(directory, stack)
        file.create_file(lane, lambda db: filling.run(db, require_room), number)
    except (database.Error, OSError) as error:
        reason = f"the disk under {directory} is full" if disk.is_full(error) else str(error)
        raise SpoolError(f"{reason}{hint}") from error
    report.lane = lane.name


def _free_lane(directory: Path, stack: contextlib.ExitStack) -> Path:
    """A name that no lane has, held until the stack is closed."""
    for index in range(10_000):
        path = directory / f"lane-{index:04d}.db"
        if not path.exists() and (held := file.lock(path.with_suffix(".lock"))) is not None:
            stack.callback(os.close, held)
            if not path.exists():
                return path
    raise SpoolError(f"{directory} has lanes of all numbers up to 9999; remove those that are empty")


def _require_lane(path: Path) -> None:
    """Raises SpoolError if that cannot be a lane to recover."""
    if file.RECOVERED in path.name:
        raise SpoolError(
            f"{path} was recovered before: what could be saved is in a lane of the spool. Delete it when that is delivered. To "
            "take it once more all the same, copy it, with its log (…-wal), to another name and recover the copy"
        )
    if path.name.endswith(("-wal", "-shm")):
        raise SpoolError(f"{path}: found a lane's log; expected the lane, {path.name[:-4]}")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}; expected a lane's file") from None
    if not stat.S_ISREG(mode):
        raise SpoolError(f"{path}: expected a lane's file")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise SpoolError(
            f"{path}: no right to read and rename it; expected a file and a directory that this user may write (copy it into "
            "one, with its log, …-wal)"
        )


def _numbers(directory: Path, but: Path) -> dict[int, Path]:
    """The lanes there by their numbers, without those that cannot be read, and without `but`, which must not be opened."""
    found: dict[int, Path] = {}
    for path in file.lane_files(directory):
        if file.inode(path) != file.inode(but):
            with contextlib.suppress(database.Error, SpoolError), contextlib.closing(file.open_file(path)) as db:
                found.setdefault(file.number(db), path)
    return found


def _lock_name(path: Path, directory: Path, stack: contextlib.ExitStack) -> None:
    """Let no collector begin with a lane that is in its place."""
    if path in file.lane_files(directory.resolve()):
        held = file.lock(path.with_suffix(".lock"))
        if held is None:
            raise _in_use(path)
        stack.callback(os.close, held)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other process has the file open in SQLite. As long as this lasts, this process must open it in no other way than it is
    open already: closing any descriptor of it would drop the lock (fcntl(2))."""
    deadline = time.monotonic() + IN_USE_S
    with path.open("r+b") as opened:
        while True:
            try:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_BYTES, SHARED_FIRST)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    raise _in_use(path) from None
            time.sleep(IN_USE_POLL_S)
        yield


def _in_use(path: Path) -> SpoolError:
    return SpoolError(
        f"{path} is in use: a process stores beacons in it or delivers what it holds, so there is nothing to recover. Stop that "
        "process if it is to be recovered all the same"
    )


def _new_number(path: Path) -> int:
    """The same as long as file and log are what they are."""
    parts = [path.stat(), *(one.stat() for one in file.companions(path)[:1] if one.exists())]
    identity = ";".join(f"{of.st_dev}:{of.st_ino}:{of.st_size}:{of.st_mtime_ns}" for of in parts)
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]) % (2**31 - 1) + 1


def _rename(path: Path, lane: str) -> Path:
    """The file first: its log alone is nothing that could be taken once more."""
    name = f"{path.name.partition(file.ASIDE)[0]}{file.RECOVERED}{time.time_ns() // 1_000_000}"
    aside = path.with_name(name)
    try:
        path.rename(aside)
        for companion, suffix in zip(file.companions(path), ("-wal", "-shm"), strict=True):
            with contextlib.suppress(FileNotFoundError):
                companion.rename(aside.with_name(aside.name + suffix))
        file.sync_directory(path.parent)
    except OSError as error:
        raise SpoolError(
            f"{path} is saved into {lane}, but cannot be renamed: {error.strerror}. Run this again when that is put right: it "
            "only renames the file then"
        ) from error
    return aside
