"""Each lane file of a directory, one by one: who has it, what it holds, what it takes on the disk."""

import contextlib
import os
from pathlib import Path

import msgspec

from proxy.spool.port import SpoolError
from proxy.spool.sqlite import database, file, survey


class LaneFile(msgspec.Struct, omit_defaults=True):
    """One file; this is what --json prints."""

    name: str
    state: str
    """"collector": a process stores beacons in it; "orphan": none does, and the forwarder delivers what it holds; "copy": another
    lane has its number, so it is not delivered; "newer": of a newer version; "unreadable"; "set aside"; "recovered"."""
    bytes: int
    """On the disk, with its log."""
    pending: int | None = None
    """None where it is not known."""
    dead: int | None = None
    why: str = ""


def lanes(directory: Path) -> list[LaneFile]:
    """All lanes, then those that were set aside or recovered. Nothing is locked for longer than a moment."""
    found: list[LaneFile] = []
    numbers: dict[int, str] = {}
    for path in file.lane_files(directory):
        with contextlib.suppress(FileNotFoundError):  # it was set aside meanwhile
            found.append(_lane(path, numbers))
    for path in file.set_aside_files(directory):
        found.append(LaneFile(path.name, "set aside", _bytes(path)))
    for path in sorted(directory.glob(f"*{file.RECOVERED}*")):
        if path.name[-4:] not in ("-wal", "-shm"):
            found.append(LaneFile(path.name, "recovered", _bytes(path)))
    return found


def _lane(path: Path, numbers: dict[int, str]) -> LaneFile:
    size = _bytes(path)
    try:
        number, counts, _ = survey.read_lane(path)
    except SpoolError as error:
        return LaneFile(path.name, "newer", size, why=str(error))
    except database.Error as error:
        return LaneFile(path.name, "unreadable", size, why=str(error))
    pending, dead = survey.held(counts)
    if (first := numbers.setdefault(number, path.name)) != path.name:
        return LaneFile(path.name, "copy", size, pending, dead, f"it bears the number of {first}")
    return LaneFile(path.name, "collector" if survey.is_held(path.with_suffix(".lock")) else "orphan", size, pending, dead)


def _bytes(path: Path) -> int:
    taken = 0
    for one in (path, *file.companions(path)):
        with contextlib.suppress(FileNotFoundError):
            taken += os.stat(one).st_blocks * 512
    return taken
