"""A collector's lane: the intake. It refuses while it cannot store, says why once, and stores again when the cause is gone.

What decides, and what alone may change it:

    _refusal   why beacons are refused. Set by a batch that was not stored, whatever the reason; cleared only by a batch of
               beacons that was stored after a look found room. Counts that are written clear nothing.
    _granted   bytes that may be written before the next look at the room. Set by a look alone, used up by batches.
    _db        the open file. Dropped by an error that the connection cannot survive, and when its name stands for another file.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import apsw
import msgspec

from proxy import hit as hits
from proxy.hit import Hit
from proxy.log import Trouble, log
from proxy.outcome import Outcome
from proxy.spool.group import HANGS, Counts, GroupCommit
from proxy.spool.port import RECEIVED, REFUSED, IntakeStats, SpoolConfig, SpoolError, SpoolRefused, Tapped
from proxy.spool.sqlite import database, file, holders
from proxy.spool.sqlite.database import Connection, OutcomeUnknown
from proxy.spool.sqlite.disk import RESERVE, Disk
from proxy.spool.tap import Tap

LOOK_S = 1.0
"""The longest time between two looks at the room while beacons are stored."""
GRANT_BYTES = 1024**2
"""At most so much is written between two looks; less where little room is left."""
COMMIT_BYTES = 6 * database.PAGE_BYTES
"""What a commit writes beside its rows, about: the pages of counts, of the table's end, and those above it."""
TIGHT_BYTES = 1024**3
"""With less room left than that looks are made sooner, and room is made in the file in advance, which costs a write a page. With
more the reserve is enough: a checkpoint needs no more than that."""
REOPEN_S = 0.5
"""Between two tries to open a lane that cannot be opened."""
PROBED_S = 0.005
"""A lock that is held for less is looked at, not held."""
DOUBT_S, DOUBT_POLL_S = 30.0, 0.05
"""How long, and how often, a file that failed in a COMMIT is opened again to see what became of it."""
TELL_S = 1.0
"""Between two reports of how the commits go."""
STATS = ".json"
_encode = msgspec.json.Encoder().encode
INSERT = "INSERT INTO fresh (hit) SELECT value FROM carray(?)"
"""All rows in one statement: each statement gives the interpreter's lock away, and it may be a while until it comes back."""


class Lane:
    """The first lane of the directory that no living process holds, else a new one."""

    def __init__(self, directory: str | Path, config: SpoolConfig | None = None) -> None:
        config = config or SpoolConfig(f"sqlite:{directory}")
        self._directory = Path(directory)
        self._durability = config.durability
        self._disk = Disk(self._directory, config.max_bytes)
        self._granted, self._commit_bytes = 0, COMMIT_BYTES
        self._looked = self._tried = -1e9
        self._log_held_since = 0.0
        """When the log was first seen held back (Unix time); 0 while it is not."""
        self._db: Connection | None = None
        self._lock: int | None = None
        self._inode: tuple[int, int] | None = None
        self._name = ""
        """The path as a string: it is looked at twice in each commit."""
        self._batches = 0
        """Commits that are in the file, as file.BATCHES counts them."""
        self._refusal = ""
        self._told_of = Trouble()
        self._figures: tuple[Path, IntakeStats] | None = None
        """Where they are left, and the figures: the lane's, whoever held it."""
        self._telling = threading.Lock()
        self.path = self._directory
        try:
            file.make_directory(self._directory)
            self._open()
        except (database.Error, OSError) as error:
            self._refuse(self._reason(error, self._disk.is_full(error)))
        self._told = 0.0
        self._tap = Tap(self._directory)
        self._group = GroupCommit(self._commit, self._close, config.commit_timeout_s, self._tell, self._tend, self._hangs)
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
        """Store beacons and counts in one transaction. Raises SpoolRefused if neither is in the file."""
        if self._db is None and time.monotonic() - self._tried < REOPEN_S and not self._group.closing:
            raise SpoolRefused(self._refusal)
        try:
            db = self._db or self._open_again()
            rows = tuple(map(hits.encode, batch))
            if rows:
                self._require_room(db, sum(map(len, rows)) + self._commit_bytes)
            elif self._refusal and not (self._directory / RESERVE).exists():
                raise SpoolRefused(self._refusal)  # what the reserve gave is for settlements
            tally = self._tally(batch, counts)
            try:
                self._write(db, rows, tally)
            except database.Error as error:
                if self._db is None or not self._disk.is_full(error):
                    raise
                database.checkpoint(self._db, wait_s=DOUBT_POLL_S)  # then the log is written from its beginning again
                self._write(self._db, rows, tally)
        except SpoolRefused as refused:
            if batch:
                self._refuse(str(refused))
            raise
        except (database.Error, OSError, SpoolError) as error:
            raise SpoolRefused(self._failed(error, bool(batch))) from error
        if batch:
            self._stored()

    def _failed(self, error: Exception, refuse: bool) -> str:
        """The reason, in words. What the connection does not survive is closed, and opened again later."""
        full = self._disk.is_full(error)
        reason, survives = self._reason(error, full), self._db is not None and (full or database.is_passing(error))
        if refuse or not survives:
            self._refuse(reason)
        if database.is_corrupt(error):
            self._set_aside()
        if not survives:
            self._close()
        return reason

    def _tend(self) -> None:
        """Without beacons too a lane that was lost is taken again, one that another set aside is let go, and a log that grew too
        large is shortened: readiness must not wait for a beacon that is not sent while it is red."""
        try:
            if self._db is not None and file.inode(self._name) != self._inode:
                self._close()
            if self._db is None:
                self._open_again()
            else:
                self._disk.keep_reserve(resize=True)
                file.shorten_log(self._db, self.path, self._disk)
        except (database.Error, OSError, SpoolError) as error:
            self._failed(error, refuse=self._db is None)

    def _hangs(self) -> None:
        """Only a line in the log: what is refused meanwhile, the group refuses. It ends with the next batch that is stored."""
        self._refuse(HANGS)

    def _open_again(self) -> Connection:
        db = self._open()
        self._count_on()
        return db

    def _tally(self, batch: list[Hit], counts: Counts) -> str:
        """The counts to add, as file.TALLY takes them."""
        tally = dict(counts)
        for hit in batch:
            key = hit.site, file.DOUBTFUL if hit.id else RECEIVED
            tally[key] = tally.get(key, 0) + 1
        return _encode([file.ONE_BATCH, *((site, name, n) for (site, name), n in tally.items())]).decode()

    def _write(self, db: Connection, rows: tuple[bytes, ...], tally: str) -> None:
        """One transaction. What was written to a file that lost its name meanwhile is refused: nobody would read it."""
        try:
            with database.transaction(db):
                self._require_name()
                if rows:
                    db.execute(INSERT, (apsw.carray(rows),))
                db.execute(file.TALLY, (tally,))
        except OutcomeUnknown as unknown:
            db.close()
            if not self._is_committed():
                raise unknown.__cause__ or unknown from None
        self._batches += 1
        self._require_name()

    def _require_name(self) -> None:
        if file.inode(self._name) != self._inode:
            raise FileNotFoundError(2, "the lane's file is gone")

    def _is_committed(self) -> bool:
        """Whether the batch that failed in its COMMIT is in the file: seen through a new connection, as soon as there can be one.
        A sync that failed is not made good by the next that succeeds, so what is there is brought into the file, and that synced.
        Those who wait for the batch are answered by then, or given up by the group's watch. Raises database.Error."""
        self._db = None
        deadline = time.monotonic() + DOUBT_S
        while True:
            try:
                self._require_name()
                self._db = file.open_file(self.path, self._disk, durability=self._durability, polls=True)
                return _batches(self._db) > self._batches and database.checkpoint(self._db, wait_s=DOUBT_POLL_S)
            except (database.Error, OSError) as error:
                if database.is_corrupt(error) or time.monotonic() > deadline:
                    raise
            time.sleep(DOUBT_POLL_S)

    def _open(self) -> Connection:
        """Take a lane. The directory is not made anew: a mount that is gone must not be mistaken for an empty one."""
        self._tried = time.monotonic()
        held, index = None, -1
        while held is None:
            index += 1
            if not self._is_copy(index):
                held = self._take(self._directory / f"lane-{index:04d}.lock")
        self._lock, self.path = held, self._directory / f"lane-{index:04d}.db"
        self._granted, self._batches = 0, 0
        try:
            self._disk.keep_reserve(resize=True)  # before anything is stored
            if not self.path.exists():
                file.create_file(self.path)
            self._name, self._inode = str(self.path), file.inode(self.path)
            self._db = file.open_file(self.path, self._disk, durability=self._durability, polls=True)
            self._batches = _batches(self._db)
            with contextlib.suppress(apsw.Error, OSError):  # no room for it, or a reader: the look tells
                file.stretch_log(self._db, self.path, self._disk)
        except BaseException as error:
            if database.is_corrupt(error):
                self._set_aside()
            self._close()
            raise
        return self._db

    def _take(self, lock: Path) -> int | None:
        """A second look tells who holds it from who only looked whether it is held."""
        held = file.lock(lock)
        if held is None:
            time.sleep(PROBED_S)
            held = file.lock(lock)
        return held

    def _is_copy(self, index: int) -> bool:
        """Whether a lane before it bears its number: what is stored in a copy is delivered by nobody."""
        path = self._directory / f"lane-{index:04d}.db"
        if not path.exists():
            return False
        earlier = [other for other in file.lane_files(self._directory) if other < path]
        with contextlib.suppress(database.Error, SpoolError):
            return bool(earlier) and file.number_of(path) in map(file.number_of, earlier)
        return False

    def _set_aside(self) -> None:
        aside = None
        with contextlib.suppress(OSError):
            aside = file.set_aside(self.path, self._inode)
        log.error("a corrupt lane is set aside", lane=str(self.path), aside=str(aside))

    def _require_room(self, db: Connection, cost: int) -> None:
        """Raises SpoolRefused unless the last look left room for so many bytes, or a new one does."""
        now = time.monotonic()
        if self._refusal or cost > self._granted or now - self._looked >= LOOK_S:
            self._look(db, now, cost)
        self._granted -= cost

    def _look(self, db: Connection, now: float, cost: int) -> None:
        """Grant a part of the room there is, since others take of it too. It costs as much as some ten rows."""
        self._looked, self._granted = now, 0
        self._disk.keep_reserve(resize=True)
        room = self._disk.look(sizes := file.sizes(db, self.path))
        if room.reason:
            file.shorten_log(db, self.path, self._disk)  # no visitor waits for it: all are refused
            room = self._disk.look(sizes := file.sizes(db, self.path))
        held = self._is_log_held()
        if room.reason:
            why = holders.reason(self.path, self._disk, self._log_held_since)
            raise SpoolRefused(f"{why}; {room.reason}" if why else room.reason)
        tight = held or room.margin < TIGHT_BYTES
        self._commit_bytes = COMMIT_BYTES if tight else 0
        granted = min(GRANT_BYTES, room.margin // (4 * len(file.lane_files(self._directory))))
        self._granted = max(cost, granted)
        if tight:
            self._disk.make_room(self.path, sizes, self._granted + self._disk.ahead_bytes())

    def _is_log_held(self) -> bool:
        """Whether the log is far larger than it gets by itself: a reader that stays keeps it from being written anew."""
        held = holders.is_held(self.path, self._disk)
        self._log_held_since = (self._log_held_since or time.time()) if held else 0.0
        return held

    def _reason(self, error: Exception, full: bool) -> str:
        return f"the disk under {self._directory} is full" if full else f"{self.path}: {error}"

    def _refuse(self, reason: str) -> None:
        if self._told_of.begins():
            log.error("refusing beacons", reason=reason)
        self._refusal, self._granted = reason, 0

    def _stored(self) -> None:
        if self._refusal:
            if self._told_of.ends():
                log.warning("storing again", lane=str(self.path), after=self._refusal)
            self._refusal = ""

    def _close(self) -> None:
        self._leave_figures()  # while the lane is still ours
        self._figures = None
        if self._db is not None:
            self._db.close()
        if self._lock is not None:
            os.close(self._lock)
        self._db = self._lock = self._inode = None


def _batches(db: Connection) -> int:
    found = database.row(db, "SELECT n FROM ledger WHERE site = ? AND name = ?", file.ONE_BATCH[:2])
    return int(found[0]) if found else 0


def read_stats(path: Path) -> IntakeStats | None:
    """What a collector left there; None if nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=IntakeStats)
    except (OSError, msgspec.DecodeError):
        return None
