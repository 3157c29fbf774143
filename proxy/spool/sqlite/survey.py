"""What can be read of the embedded spool from outside, running or not: the ledger, and why it cannot take beacons."""

import contextlib
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

import msgspec

from proxy import hit as hits
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.port import RECEIVED, IntakeStats, Ledger, SpoolError
from proxy.spool.sqlite import database, file, holders
from proxy.spool.sqlite.database import Connection
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import STATS, read_stats

ENDED = frozenset(outcome.value for outcome in Outcome)
DEAD = frozenset(outcome.value for outcome in Outcome if outcome.ending is Ending.DEAD)
HELD = (RECEIVED, file.DOUBTFUL, file.MOVING)
"""What the rows were counted as when they came: `pending` is these less what has ended."""
LOCKED_S = 1.0
"""A lane that is locked for longer takes no beacons."""


def prepare_directory(directory: str | Path, setting: str = "spool") -> None:
    """Create it if need be, and look whether this process may write there. Raises SpoolError, which names the setting."""
    try:
        file.make_directory(Path(directory))
    except OSError as error:
        raise _unusable(setting, Path(directory), error.strerror) from None
    look_at_directory(directory, setting)


def look_at_directory(directory: str | Path, setting: str = "spool") -> None:
    """Raises SpoolError if it can't be a spool: no directory, or not this user's to write. It need not be there yet."""
    database.check_library()
    place = existing = Path(directory)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise _unusable(setting, place, f"{existing} is no directory")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(setting, place, f"no right to write in {existing}")


def look_into_directory(directory: str | Path) -> None:
    """Raises SpoolError for a directory that this user may not use: to him it would look empty."""
    place = Path(directory)
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise SpoolError(
            f"spool: no right to look into {place.absolute()}; run it as the user that runs beacon-proxy ({owner(place)})"
        )


def look_for_owner(directory: str | Path) -> None:
    """Raises SpoolError if this user's files in it could not be read by the user that runs beacon-proxy."""
    place = Path(directory)
    if place.stat().st_uid != os.geteuid():
        raise SpoolError(
            f"spool: {place} belongs to the user {owner(place)}, who could not read what another writes there; run this as that "
            f"user: sudo -u {owner(place)} beacon-proxy …"
        )


def owner(path: Path) -> str:
    """The name of the user whom a file belongs to; the number where there is no name."""
    uid = path.stat().st_uid
    return next((entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == uid), str(uid))


def _unusable(setting: str, place: Path, why: str | None) -> SpoolError:
    return SpoolError(f"{setting}: cannot use {place}: {why}; expected a directory that this user may create and write")


@database.plain_errors()
def read_ledger(directory: str | Path) -> Ledger:
    """The sum over all lanes, each read in one transaction. An absent directory is an empty spool.

    A lane that is corrupt, or a copy of another, is named, and not in the sum. Raises SpoolError for a lane of a newer version,
    or one that cannot be read just now.
    """
    place = Path(directory)
    counts: dict[str, dict[str, int]] = {}
    unread = [path.name for path in file.set_aside_files(place)]
    pending, oldest, numbers = 0, [], set[int]()
    for path in file.lane_files(place):
        try:
            number, rows, first = read_lane(path)
        except database.Error as error:
            if not path.exists():
                continue
            if not database.is_corrupt(error):
                raise
            unread.append(path.name)
            continue
        if number in numbers:  # a copy is not delivered, and not counted twice
            unread.append(path.name)
            continue
        numbers.add(number)
        for site, name, n in rows:
            of_site = counts.setdefault(site, {})
            of_site[name] = of_site.get(name, 0) + n
        pending += held(rows)[0]
        for blob in first:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                oldest.append(hits.decode(blob).received_ms)
    return Ledger(counts, pending, min(oldest, default=None), tuple(unread))


def read_lane(path: Path) -> tuple[int, list[tuple[str, str, int]], list[bytes]]:
    """Its number, (site, name, n) of the ledger, and the first hit of each table in which hits wait. Raises database.Error, and
    SpoolError for a newer schema."""
    with contextlib.closing(file.open_file(path)) as db:
        db.execute("BEGIN")
        rows = database.rows(db, "SELECT site, name, n FROM ledger WHERE name <> ?", (file.BATCHES,))
        first = [database.row(db, f"SELECT hit FROM {table} ORDER BY id LIMIT 1") for table in ("fresh", "waiting")]
        db.execute("COMMIT")
        return file.number(db), rows, [row[0] for row in first if row]


def sample(directory: str | Path, most: int) -> list[Hit]:
    """Some of the hits that wait or are dead, the latest of each lane's tables. What cannot be read is left out."""
    found: list[Hit] = []
    for path in file.lane_files(Path(directory)):
        with contextlib.suppress(database.Error), contextlib.closing(file.open_file(path)) as db:
            for table in ("fresh", "waiting", "dead"):
                for (blob,) in db.execute(f"SELECT hit FROM {table} ORDER BY id DESC LIMIT ?", (most - len(found),)):
                    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                        found.append(hits.decode(blob))
    return found


def read_intake_stats(directory: str | Path) -> IntakeStats:
    """The sum over all collectors that ever held a lane there."""
    total = IntakeStats()
    for path in sorted(Path(directory).glob("lane-????" + STATS)):
        if (found := read_stats(path)) is not None:
            total.add(found)
    return total


@database.plain_errors()
def audit(directory: str | Path, most: int) -> int | None:
    """Rows that are there but not in the ledger, less those that are in it but not there: 0, or something is badly wrong.

    Counting touches every row, so a spool with more than `most` pending or dead hits is not counted: None.
    """
    off = 0
    for path in file.lane_files(Path(directory)):
        try:
            with contextlib.closing(file.open_file(path)) as db:
                of_lane = audit_lane(db, most)
        except database.Error as error:
            if path.exists() and not database.is_corrupt(error):
                raise
            continue  # named by read_ledger
        if of_lane is None:
            return None
        off += of_lane
    return off


def audit_lane(db: Connection, most: int) -> int | None:
    """The same for one lane."""
    db.execute("BEGIN")
    try:
        pending, dead = held(database.rows(db, "SELECT site, name, n FROM ledger"))
        if pending + dead > most:
            return None
        rows = sum(database.row(db, f"SELECT count(*) FROM {table}")[0] for table in ("fresh", "waiting", "dead"))
    finally:
        db.execute("COMMIT")
    return int(rows - pending - dead)


def held(counts: Iterable[tuple[str, str, int]]) -> tuple[int, int]:
    """How many hits wait, and how many are dead letters, by the (site, name, n) of a ledger."""
    pending = dead = 0
    for _, name, n in counts:
        pending += n if name in HELD else -n if name in ENDED else 0
        dead += n if name in DEAD else 0
    return pending, dead


def why_unready(directory: str | Path, max_bytes: int) -> str:
    """Why this directory cannot take beacons; "" if it takes a synced write, has room, and a collector holds a lane."""
    place = Path(directory)
    disk = Disk(place, max_bytes)
    probe = place / "ready.probe"
    if not place.is_dir():
        return f"there is no directory {place}: nothing has started yet, or a mount is missing"
    try:
        if not disk.is_exhausted():
            with probe.open("wb") as opened:
                opened.write(b"ready?")
                opened.flush()
                os.fsync(opened.fileno())
            probe.unlink(missing_ok=True)  # it may be another user's to write the next time
        elif disk.free_bytes():
            return f"the disk under {place} is full: its quota is used up"
        lanes = [path for path in file.lane_files(place) if is_held(path.with_suffix(".lock"))]
        if not lanes:
            return f"no collector holds a lane of {place}"
        for path in lanes:
            with contextlib.closing(file.open_file(path, disk, busy_s=LOCKED_S)) as db, database.transaction(db):
                if reason := disk.look(file.sizes(db, path)).reason:
                    why = holders.reason(path, disk)
                    return f"{why}; {reason}" if why else reason
    except (OSError, database.Error, SpoolError) as error:
        return f"the spool cannot be written: {error}"
    return ""


def held_logs(directory: str | Path, max_bytes: int) -> list[str]:
    """Of each lane whose log a reader holds back, which reader; an empty list is well."""
    disk, found = Disk(Path(directory), max_bytes), []
    for path in file.lane_files(disk.directory):
        with contextlib.suppress(OSError):
            if why := holders.reason(path, disk):
                found.append(why)
    return found


def is_held(path: Path) -> bool:
    """Whether a process has that lock."""
    lock = file.lock(path, shared=True)
    if lock is not None:
        os.close(lock)
    return lock is None
