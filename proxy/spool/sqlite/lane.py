"""A collector's lane: the intake. It refuses while it cannot store, says why once, and stores again when the cause is gone."""

import contextlib
import os
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec

from proxy import hit as hits
from proxy.hit import Hit
from proxy.log import Trouble, log
from proxy.outcome import Outcome
from proxy.spool.group import Counts, GroupCommit
from proxy.spool.port import RECEIVED, REFUSED, IntakeStats, SpoolConfig, SpoolError, SpoolRefused, Tapped
from proxy.spool.sqlite import file
from proxy.spool.tap import Tap

LOOK_S = 1.0
"""Between two looks at the other lanes' sizes and the reserve."""
LOOK_BYTES = 128 * 1024
"""Between two looks at one's own size and the room on the disk."""
REOPEN_S = 0.5
"""Between two tries to open a lane that cannot be opened."""
TELL_S = 1.0
"""Between two reports of how the commits go."""
STATS = ".json"

STATEMENT_ROWS = (256, 64, 16, 4, 1)
INSERTS = {size: "INSERT INTO fresh (hit) VALUES " + ",".join(["(?)"] * size) for size in STATEMENT_ROWS}


class Lane:
    """The first lane of the directory that no living process holds, else a new one."""

    def __init__(self, directory: str | Path, config: SpoolConfig | None = None) -> None:
        config = config or SpoolConfig(f"sqlite:{directory}")
        self._directory = Path(directory)
        self._durability = config.durability
        self._max_bytes = config.max_bytes
        self._others_bytes = 0
        self._look_bytes = self._unlooked_bytes = min(LOOK_BYTES, config.max_bytes // 64)
        self._looked = self._tried = -1e9
        self._db: file.Connection | None = None
        self._lock: int | None = None
        self._inode: tuple[int, int] | None = None
        self._trouble = ""
        self._told_of = Trouble()
        self._figures: tuple[Path, IntakeStats] | None = None
        """Where they are left, and the figures: the lane's, whoever held it."""
        self._telling = threading.Lock()
        self.path = self._directory
        try:
            file.make_directory(self._directory)
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._note_trouble(f"{self.path}: {error}")
        self._told = 0.0
        self._tap = Tap(self._directory)
        self._group = GroupCommit(self._commit, self._close, config.commit_timeout_s, self._tell)
        if self._db is not None:
            self._count_on()
        self.enter = self._group.enter
        self.append = self._group.append
        self.append_then = self._group.append_then
        self.append_blocking = self._group.append_blocking

    def drop(self, site: str, outcome: Outcome) -> None:
        self._group.count(site, outcome.value, RECEIVED)
        if self._tap.open:
            self._tap.tell(Tapped(time.time_ns() // 1_000_000, site, outcome.value))

    def refuse(self, site: str) -> None:
        self._group.count(site, REFUSED)
        if self._tap.open:
            self._tap.tell(Tapped(time.time_ns() // 1_000_000, site, REFUSED))

    def close(self) -> None:
        self._group.close()
        self._tap.close()

    def _count_on(self) -> None:
        """Counters go on where those of the lane's last holder ended."""
        path = self.path.with_suffix(STATS)
        stats = IntakeStats()
        if (before := read_stats(path)) is not None:
            stats.add(before)
        self._group.stats = stats
        self._figures = (path, stats)

    def _tell(self) -> None:
        """Leave the figures where the admin listener finds them, and look who is listening, about once a second."""
        now = time.monotonic()
        if now - self._told >= TELL_S:
            self._told = now
            self._tap.look()
            self._leave_figures()

    def _leave_figures(self) -> None:
        with self._telling:
            if self._figures is not None:
                path, stats = self._figures
                with contextlib.suppress(OSError):  # it is only for looking at
                    file.replace_file(path, msgspec.json.encode(stats))

    def _commit(self, batch: list[Hit], counts: Counts) -> None:
        """One transaction. What was written to a file that meanwhile lost its name is refused: nobody would read it."""
        if self._db is None and time.monotonic() - self._tried < REOPEN_S:
            raise SpoolRefused(self._trouble)
        try:
            db = self._db
            if db is None:
                db = self._open()
                self._count_on()
            rows = [hits.encode(hit) for hit in batch]
            if rows:
                self._refuse_when_full(db, sum(map(len, rows)))
            with file.transaction(db):
                _insert(db, rows)
                stored = Counter((hit.site, file.DOUBTFUL if hit.id else RECEIVED) for hit in batch)
                db.executemany(file.TALLY, [(site, name, n) for (site, name), n in stored.items()])
                if counts:
                    db.executemany(file.TALLY, [(site, name, n) for (site, name), n in counts.items()])
            if file.inode(self.path) != self._inode:
                raise FileNotFoundError(2, "the lane's file is gone")
        except SpoolRefused as refused:
            self._note_trouble(str(refused))
            raise
        except (sqlite3.Error, OSError, SpoolError) as error:
            self._note_trouble(f"{self.path}: {error}")
            if file.is_corrupt(error):
                log.error("a corrupt lane is set aside", lane=str(self.path), aside=str(file.set_aside(self.path)))
            if not file.is_passing(error):
                self._close()
            raise SpoolRefused(self._trouble) from error
        if self._trouble:
            if self._told_of.ends():
                log.warning("storing again", lane=str(self.path), after=self._trouble)
            self._trouble = ""

    def _open(self) -> file.Connection:
        """Take a lane. The directory is not made anew: a mount that is gone must not be mistaken for an empty one."""
        self._tried = time.monotonic()
        number = 0
        while (held := file.lock(self._directory / f"lane-{number:04d}.lock")) is None:
            number += 1
        self._lock, self.path = held, self._directory / f"lane-{number:04d}.db"
        try:
            if not self.path.exists():
                file.create_file(self.path)
            self._db = file.open_file(self.path, durability=self._durability, polls=True)
            self._inode = file.inode(self.path)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and file.is_corrupt(error):
                log.error("a corrupt lane is set aside", lane=str(self.path), aside=str(file.set_aside(self.path)))
            self._close()
            raise
        return self._db

    def _refuse_when_full(self, db: sqlite3.Connection, more_bytes: int) -> None:
        """Looks each second, after LOOK_BYTES, and at each commit while beacons are refused: a look costs as much as ten rows."""
        now = time.monotonic()
        self._unlooked_bytes += more_bytes
        if now - self._looked >= LOOK_S:
            self._looked, self._unlooked_bytes = now, self._look_bytes
            self._others_bytes = sum(_bytes_of(path) for path in file.lane_files(self._directory) if path != self.path)
            file.keep_reserve(self._directory)
        if self._unlooked_bytes < self._look_bytes and not self._trouble:
            return
        self._unlooked_bytes = 0
        used, emptied = file.sizes(db)
        if not file.has_room(self._directory, emptied):
            raise SpoolRefused(f"the disk under {self._directory} is full")
        if used + self._others_bytes >= self._max_bytes:
            raise SpoolRefused(f"the spool holds max_bytes ({self._max_bytes})")

    def _note_trouble(self, reason: str) -> None:
        if self._told_of.begins():
            log.error("refusing beacons", reason=reason)
        self._trouble = reason

    def _close(self) -> None:
        self._leave_figures()  # while the lane is still ours
        self._figures = None
        if self._db is not None:
            self._db.close()
        if self._lock is not None:
            os.close(self._lock)
        self._db = self._lock = self._inode = None


def read_stats(path: Path) -> IntakeStats | None:
    """What a collector left there; None if nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=IntakeStats)
    except (OSError, msgspec.DecodeError):
        return None


def _insert(db: sqlite3.Connection, rows: list[bytes]) -> None:
    """Many rows a statement: each statement gives the interpreter's lock away, and it may be a while until it comes back."""
    first = 0
    for size in STATEMENT_ROWS:
        while len(rows) - first >= size:
            db.execute(INSERTS[size], rows[first : first + size])
            first += size


def _bytes_of(path: Path) -> int:
    """0 for a lane that cannot be read just now: the forwarder reports it."""
    try:
        with closing(file.open_file(path, busy_s=0.1)) as db:
            return file.sizes(db)[0]
    except (sqlite3.Error, SpoolError):
        return 0
