"""The disk under a spool's directory: what the spool takes of it, whether there is room for more beacons, and room kept for
settlements, so that a full disk always drains.

There are three stores of room, used in this order when the disk is full: the blocks of a lane's log, which are kept, and written
again after a checkpoint; room inside the lane's file, made before a collector writes what will need it; and the file `reserve`,
which is given up last. Collectors refuse while less than three times the reserve is free, or while the reserve is not there.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import apsw

from proxy.log import log
from proxy.spool.sqlite import database
from proxy.spool.sqlite.database import Connection

T = TypeVar("T")

RESERVE = "reserve"
RESERVE_BYTES = 16 * 1024**2
"""At most; on a small file system, or of a small max_bytes, a sixteenth of it."""
LEAST_LOG_BYTES = 64 * 1024
LOGS = 2
"""The log is kept at up to so many times the size at which it is brought into the file."""
AHEAD_BYTES, LEAST_AHEAD_BYTES = 1024**2, 64 * 1024
CHECKPOINT_WAIT_S = 0.1
HEADROOM_BYTES = 4 * 1024**2
"""Where the quota cannot be seen, collectors refuse when so much could not be written any more."""
MOUNTS = Path("/proc/self/mountinfo")
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))


class Sizes(NamedTuple):
    """A lane's file, in bytes."""

    held: int
    """Pages with something in them."""
    emptied: int
    """Pages that were emptied: beacons are stored in them again."""
    ahead: int
    """Room behind the last page, made in advance: settlements on a full disk rely on it."""
    log: int
    """The log beside it."""


class Room(NamedTuple):
    """What a look at the disk found."""

    margin: int
    """Bytes that collectors may still take; 0 or less: none."""
    reason: str
    """Why none; "" if there is room."""


def mounted(place: Path, mounts: str) -> tuple[str, str]:
    """Where the file system of an absolute path is mounted, and its kind. `mounts` is /proc/self/mountinfo (proc(5))."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        at = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split(" ")[4])
        if len(at) >= len(best) and (at == "/" or f"{place}/".startswith(f"{at}/")):
            best, kind = at, rest.split(" ")[0]
    return best, kind


class Disk:
    """One spool directory's. Looks and numbers are fresh at each call; there is no state."""

    def __init__(self, directory: Path, max_bytes: int = 10 * 1024**3) -> None:
        self.directory = directory
        self.max_bytes = max_bytes

    @functools.cached_property
    def hides_quota(self) -> bool:
        """Whether a quota may be used up while the file system says that there is room, and whoever then touches SQLite's shared
        memory is killed (SIGBUS): so it is on btrfs, where each page is written to a new place. Room is tried out there."""
        try:
            return mounted(self.directory.resolve(), MOUNTS.read_text("utf-8", "replace"))[1] == "btrfs"
        except OSError:
            return False

    def reserve_bytes(self) -> int:
        """The size of the reserve. Raises OSError."""
        of = os.statvfs(self.directory)
        return max(1, min(RESERVE_BYTES, of.f_blocks * of.f_frsize // 16, self.max_bytes // 16))

    def log_bytes(self) -> int:
        """The size at which a collector brings its lane's log into the file: the reserve alone is room enough for that."""
        return max(LEAST_LOG_BYTES, self.reserve_bytes())

    def ahead_bytes(self) -> int:
        """The room that a lane's file has beyond what beacons may take before the next look: for settlements."""
        return max(LEAST_AHEAD_BYTES, min(AHEAD_BYTES, self.reserve_bytes() // 16))

    def used_bytes(self) -> int:
        """What the directory takes on the disk, as `du` counts: lanes and their logs, lanes set aside, the reserve, all else."""
        used = os.stat(self.directory).st_blocks
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_blocks
        return used * 512

    def free_bytes(self) -> int:
        """What is free on the file system, for this user. Raises OSError."""
        of = os.statvfs(self.directory)
        return of.f_bavail * of.f_frsize

    def look(self, lane: Sizes) -> Room:
        """Whether there is room for more beacons in that lane. Raises OSError."""
        held = lane.log > LOGS * self.log_bytes()  # all that is written makes a held log grow, wherever it is put in the end
        free = self.free_bytes() + lane.emptied * (not held) - 3 * self.reserve_bytes()
        if not (self.directory / RESERVE).exists():
            return Room(min(free, 0), self.stuck_reason())
        if free <= 0 or (self.hides_quota and self.is_exhausted(HEADROOM_BYTES)):
            return Room(min(free, 0), f"the disk under {self.directory} is full")
        used = self.used_bytes()
        below_limit = self.max_bytes - used + (lane.emptied + lane.ahead) * (not held)
        if below_limit <= 0:
            return Room(below_limit, f"the spool is full: {used:,} of max_bytes {self.max_bytes:,}")
        return Room(min(free, below_limit), "")

    def is_exhausted(self, size: int = 64 * 1024) -> bool:
        """Whether not even a small file can be written: no block is left, or the quota is used up."""
        probe = self.directory / f"room.{os.getpid()}"
        try:
            with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb", buffering=0) as opened:
                os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as error:
            return error.errno in NO_ROOM
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return False

    def is_full(self, error: BaseException) -> bool:
        """Whether it failed for want of room. SQLite reports a quota that is used up, and no room for its shared memory, as I/O
        errors."""
        if isinstance(error, OSError):
            return error.errno in NO_ROOM
        code = database.primary(error)
        return code == apsw.SQLITE_FULL or (code in database.IO_ERRORS and self.is_exhausted())

    def keep_reserve(self, resize: bool = False) -> None:
        """Hold room back, if it is not and there is twice as much. `resize`: also if it is of another size than is due."""
        reserve = self.directory / RESERVE
        size = self.reserve_bytes()
        with contextlib.suppress(FileNotFoundError):
            if reserve.stat().st_size == size or not resize:
                return
        if self.free_bytes() < 2 * size or (self.hides_quota and self.is_exhausted(2 * size)):
            return
        unfinished = self.directory / f"{RESERVE}.{os.getpid()}"
        try:
            with unfinished.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            unfinished.rename(reserve)
        except OSError:
            unfinished.unlink(missing_ok=True)

    def foresee(self) -> None:
        """Where a used-up quota kills: give the reserve up before it comes to that. For the forwarder, each second."""
        if self.hides_quota and self.is_exhausted(HEADROOM_BYTES // 4):
            self.give_up_reserve()

    def give_up_reserve(self) -> bool:
        """Give the reserve up for settlements. False if it was given up before."""
        try:
            (self.directory / RESERVE).unlink()
        except FileNotFoundError:
            return False
        log.warning("the disk is full: the reserve is given up, so that settlements go through", spool=str(self.directory))
        return True

    def settle(self, write: Callable[[], T], db: Connection | None = None) -> T:
        """What `write` gives: a settlement, of the forwarder, the mover or an operator. Where the disk has no room for it, room
        is made, in the log of `db` first, and it is tried again. `write` must be safe to repeat. Raises what it raises."""
        try:
            return write()
        except (apsw.Error, OSError) as error:
            if not self.is_full(error):
                raise
        try:
            return self._after_checkpoint(write, db)
        except (apsw.Error, OSError) as error:
            if not self.is_full(error) or not self.give_up_reserve():
                raise
        return self._after_checkpoint(write, db)

    def _after_checkpoint(self, write: Callable[[], T], db: Connection | None) -> T:
        if db is not None:
            database.checkpoint(db, wait_s=CHECKPOINT_WAIT_S)
        return write()

    def stuck_reason(self) -> str:
        """What an operator can do where nothing can be written, not even with the reserve's room."""
        needed = -(-2 * self.reserve_bytes() // 1024**2)
        return f"the disk under {self.directory} is full and the reserve used up: free {needed} MiB there (delete other files)"

    def make_room(self, path: Path, lane: Sizes, more_bytes: int) -> None:
        """Let the lane's file have the blocks for `more_bytes` more: a checkpoint then needs none that others could take first.
        Raises OSError where there are none; a file system that cannot do it leaves it to the reserve.

        By fallocate(2) alone, which changes no byte that is there: a checkpoint may extend the file at the same moment. SQLite's
        size hint writes zeros where this build of it has no fallocate, and destroyed pages that had just been written. And on
        SQLite's own descriptor: to close another one of the file would drop the process' locks on it.
        """
        if (behind := more_bytes - lane.emptied) <= lane.ahead:
            return
        fd = descriptor(path)
        if fd is None or _fallocate is None:
            return
        at = os.fstat(fd).st_size
        if _fallocate(fd, 0, at, max(1, lane.held + lane.emptied + behind - at)) and ctypes.get_errno() in NO_ROOM:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    try:
        found = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None  # no Linux
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast(Callable[[int, int, int, int], int], found)


_fallocate = _load_fallocate()
"""The system's, not that of POSIX: glibc's makes up for a file system without it by writing zeros."""


def descriptor(path: Path) -> int | None:
    """One that this process, SQLite, has of the file. Not to be closed."""
    wanted = os.stat(path)
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
    return None


def in_pieces(items: Sequence[T], write: Callable[[Sequence[T]], object], is_full: Callable[[BaseException], bool]) -> None:
    """Write the items, in ever smaller pieces as long as the disk is too full for more at once. Raises what `write` raises for
    one item, or for another reason; the pieces before it are written then."""
    first, size = 0, len(items)
    while first < len(items):
        try:
            write(items[first : first + size])
            first += size
        except (apsw.Error, OSError) as error:
            if size == 1 or not is_full(error):
                raise
            size = max(1, size // 4)
