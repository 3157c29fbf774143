"""A copy of a spool's directory, running or not: each lane as it was at one moment, whatever is written meanwhile.

A lane is read inside one transaction, so its picture stands from the first page to the last. (SQLite's own back-up without one
begins again with each commit of another process: at 50 commits a second it never ends.) Such a reader keeps the lane's log from
being written from its beginning, so the log grows meanwhile. That is bounded: the copy is given up when the log has taken a
quarter of the room that beacons still had; brought into the file, it takes as much once more.

All is written into the directory `unfinished` inside the target, checked, synced, and renamed into the target last. A target with
such a directory is a copy that was not finished, and is begun again.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from proxy.spool.fallback import mark
from proxy.spool.port import SpoolError
from proxy.spool.sqlite import database, file, survey
from proxy.spool.sqlite.disk import Disk, Sizes
from proxy.spool.sqlite.lane import STATS
from proxy.spool.sqlite.outlet import STATE

UNFINISHED = "unfinished"
STEP_PAGES = 256
LOG_SHARE = 4
"""The log may grow to this part of the room that beacons have."""
CHUNK_BYTES = 1024**2
SPARE_BYTES = 1024**2
"""What names, and the checks' own files, may take beside the content."""
PATTERNS = ("lane-????.db", f"lane-????.db{file.ASIDE}*", f"lane-????{STATS}", STATE, mark.NAME)
"""What a copy consists of."""

Progress = Callable[[int], object]


class CopiedLane(msgspec.Struct):
    """A lane's copy, checked."""

    name: str
    bytes: int
    pending: int
    dead: int


class BackUp(msgspec.Struct):
    """What was copied; this is what --json prints."""

    directory: str
    lanes: list[CopiedLane] = []
    other_files: list[str] = []
    """Lanes that were set aside, with their logs, and figures."""
    bytes: int = 0
    seconds: float = 0.0
    damaged: dict[str, str] = {}
    """Lanes that cannot be read, or whose copy fails the check, and why. The latter are in the copy as they are."""
    not_covered: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.damaged


def back_up(source: Path, target: Path, disk: Disk, begin: Callable[[int], object], progress: Progress) -> BackUp:
    """Copy the spool directory `source` into `target`, which must not exist or be empty. `begin` is called with the bytes to
    copy, `progress` with how many more are copied. Raises SpoolError, which says what to do; nothing is left of the copy then.
    """
    began = time.monotonic()
    source, target = source.resolve(), target.absolute()
    made, needed = not target.exists(), 0
    _require_place(source, target)
    try:
        with _unfinished(target) as unfinished:
            needed = _needed(source)
            _require_room(source, target, needed, disk)
            begin(needed)
            report = BackUp(str(target))
            for path in file.lane_files(source):
                _copy_lane(path, unfinished, disk, report, progress)
            for path in _others(source):
                with contextlib.suppress(FileNotFoundError):  # a log has been put away, say
                    _copy_file(path, unfinished / path.name, progress)
                    report.other_files.append(path.name)
            if not (report.lanes or report.other_files):
                raise SpoolError(f"{source} holds no lanes; expected the spool of `serve`")
            report.bytes = sum(path.stat().st_size for path in unfinished.iterdir())
            _finish(unfinished, target)
    except (database.Error, OSError) as error:
        if Disk(target).is_full(error):
            raise SpoolError(
                f"the disk under {target} is full; free {needed / 1024**2:,.1f} MiB there, or give another directory. Nothing is "
                "left of the copy"
            ) from error
        raise SpoolError(f"{target}: {error}. Nothing is left of the copy") from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                target.rmdir()
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _require_place(source: Path, target: Path) -> None:
    """Raises SpoolError if the target cannot be used. One that an earlier run left unfinished is used again."""
    expected = "expected a directory that does not exist yet, or is empty, outside the spool"
    if target.resolve().is_relative_to(source):
        raise SpoolError(f"{target} lies in the spool {source}; {expected}")
    if target.is_symlink() and not target.exists():
        raise SpoolError(f"{target} is a link to nothing; {expected}")
    if target.exists() and not target.is_dir():
        raise SpoolError(f"{target} is no directory; {expected}")
    try:
        file.make_directory(target)
        names = {path.name for path in target.iterdir()}
    except OSError as error:
        raise SpoolError(f"cannot use {target}: {error.strerror}; {expected}") from None
    if names and UNFINISHED not in names:
        raise SpoolError(f"{target} is not empty; {expected}")
    strange = names - {UNFINISHED} - {path.name for path in _matching(target)}
    if strange:
        raise SpoolError(f"{target} holds {min(strange)}, which is of no back-up; {expected}")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """The directory to write into, empty; gone in the end, with all that was not renamed out of it."""
    place = target / UNFINISHED
    place.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolError(f"another back-up is being written to {target}; give this one a directory of its own") from None
        for earlier in (*_matching(target), *place.iterdir()):
            earlier.unlink()
        try:
            yield place
        finally:
            shutil.rmtree(place)
            file.sync_directory(target)
    finally:
        os.close(lock)


def _matching(directory: Path) -> list[Path]:
    return sorted({path for pattern in PATTERNS for path in directory.glob(pattern)})


def _others(source: Path) -> list[Path]:
    """What nothing writes into, or what is always replaced as a whole: plain copies are good ones."""
    return [path for path in _matching(source) if path not in set(file.lane_files(source))]


def _needed(source: Path) -> int:
    """Bytes of the copy."""
    size = sum(path.stat().st_size for path in _others(source))
    for path in file.lane_files(source):
        with contextlib.suppress(database.Error), contextlib.closing(file.open_file(path)) as db:
            size += db.pragma("page_count") * database.PAGE_BYTES
    return size


def _require_room(source: Path, target: Path, needed: int, disk: Disk) -> None:
    """Raises SpoolError if the copy does not fit, or takes the room that collectors need."""
    kept = 3 * disk.reserve_bytes() if source.stat().st_dev == target.stat().st_dev else 0
    free = Disk(target).free_bytes()
    if free < needed + SPARE_BYTES + kept:
        why = f" and {kept / 1024**2:,.1f} MiB that the spool on the same disk keeps free" if kept else ""
        raise SpoolError(
            f"{target} has {free / 1024**2:,.1f} MiB free; expected {(needed + SPARE_BYTES) / 1024**2:,.1f} MiB for the copy"
            f"{why}; nothing was copied"
        )


def _copy_lane(path: Path, directory: Path, disk: Disk, report: BackUp, progress: Progress) -> None:
    """Copy and check it. A damaged one is named in the report, and keeps none of the others from the copy."""
    copy = directory / path.name
    try:
        _copy_pages(path, copy, disk, progress)
    except database.Error as error:
        is_gone = not path.exists()  # it was set aside meanwhile, and is copied as such
        if not is_gone and not database.is_corrupt(error):
            raise
        copy.unlink(missing_ok=True)
        if not is_gone:
            report.damaged[path.name] = f"{error}; it is not in the copy"
        return
    try:
        with contextlib.closing(database.connect(copy)) as db:
            problem = str(db.pragma("quick_check"))
            if problem == "ok" and (off := survey.audit_lane(db, sys.maxsize)):
                problem = f"its ledger is off by {off:,}"
            pending, dead = survey.held(database.rows(db, "SELECT site, name, n FROM ledger"))
        report.lanes.append(CopiedLane(path.name, copy.stat().st_size, pending, dead))
    except database.Error as error:
        if not database.is_corrupt(error):
            raise
        problem = str(error)
    if problem != "ok":
        report.damaged[path.name] = f"{problem.splitlines()[0]}; it is in the copy as it is"
    file.sync_file(copy)


def _copy_pages(path: Path, copy: Path, disk: Disk, progress: Progress) -> None:
    os.close(os.open(copy, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with contextlib.closing(database.connect(copy)) as to, contextlib.closing(file.open_file(path, disk)) as db:
        to.pragma("journal_mode", "off")
        to.pragma("synchronous", "off")  # it is synced as a whole when it is checked
        db.execute("BEGIN")
        database.row(db, "SELECT 1 FROM ledger")  # from here on the picture stands
        most_log = file.log_size(path) + max(disk.look(Sizes(0, 0, 0, 0)).margin // LOG_SHARE, disk.reserve_bytes())
        left = db.pragma("page_count")
        with to.backup("main", db, "main") as run:
            while not run.done:
                run.step(STEP_PAGES)
                progress((left - run.remaining) * database.PAGE_BYTES)
                left = run.remaining
                if file.log_size(path) > most_log:
                    raise SpoolError(
                        f"{path}: while it was copied its log grew to a quarter of the room that beacons have, so the copy "
                        "was given up. Nothing is left of it. Give the spool more room (max_bytes, the disk), or copy faster"
                    )
        db.execute("COMMIT")


def _copy_file(path: Path, copy: Path, progress: Progress) -> None:
    with path.open("rb") as opened, open(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as to:
        while content := opened.read(CHUNK_BYTES):
            to.write(content)
            progress(len(content))
        to.flush()
        os.fsync(to.fileno())


def _finish(unfinished: Path, target: Path) -> None:
    """All names at once, nearly: as long as `unfinished` is there, the copy counts as not finished."""
    file.sync_directory(unfinished)
    for path in sorted(unfinished.iterdir()):
        path.rename(target / path.name)
    file.sync_directory(target)
