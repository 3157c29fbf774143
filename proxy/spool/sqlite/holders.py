"""Who holds a lane's log back: a reader that stays, such as a back-up tool or a shell, keeps it from being written anew."""

import os
import time
from pathlib import Path

from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.file import companions, log_size

HELD_LOGS = 4
"""A log of so many times its ordinary size is held back: by itself it gets to twice that at most."""
READ_MARKS = range(123, 128)
"""Bytes of the shared memory that a reader of the log locks one of (https://sqlite.org/walformat.html, "WAL locks")."""
LOCKS = Path("/proc/locks")


def readers(lane: Path, locks: str) -> set[int]:
    """The processes that read the lane through its log just now; `locks` is /proc/locks (proc(5))."""
    try:
        shared = os.stat(companions(lane)[1])
    except OSError:
        return set()
    place = f"{os.major(shared.st_dev):02x}:{os.minor(shared.st_dev):02x}:{shared.st_ino}"
    found = set()
    for line in locks.splitlines():
        fields = line.split()
        if fields[5:6] == [place] and fields[3] == "READ" and int(fields[6]) in READ_MARKS:
            found.add(int(fields[4]))
    return found


def is_held(lane: Path, disk: Disk) -> bool:
    """Whether the log is far larger than it gets by itself. Raises OSError."""
    return log_size(lane) > HELD_LOGS * disk.log_bytes()


def reason(lane: Path, since_s: float = 0.0) -> str:
    """Names the readers, for the operator. `since_s`: Unix time at which the log was first seen to be too large, if known."""
    names = []
    try:
        for pid in sorted(readers(lane, LOCKS.read_text()) - {os.getpid()}):
            names.append(f"{Path(f'/proc/{pid}/comm').read_text().strip()}, process {pid}")
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or it has just ended
    who = f" ({'; '.join(names)})" if names else ""
    since = time.strftime(" since %H:%M:%S UTC", time.gmtime(since_s)) if since_s else ""
    return f"a reader holds the log back{since}: {lane}{who}; end it"
