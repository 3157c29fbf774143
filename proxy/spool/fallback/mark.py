"""Whose the fallback's directory is: a file in it names the stream whose beacons wait there. Another spool's mover would bring
them to the wrong vendor.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from proxy.spool.port import SpoolError
from proxy.spool.sqlite import file

NAME = "stream"


def look(directory: Path, stream: str) -> bool:
    """Whether it is marked. Raises SpoolError if it is another stream's, of which there is a lane."""
    path = directory / NAME
    try:
        found = path.read_text("utf-8", "replace").strip()
    except OSError:  # none is there; or the directory cannot be used at all, which is told elsewhere
        return False
    if found and found != stream:
        if not file.lane_files(directory):  # that one never stored anything here
            return False
        raise SpoolError(
            f"fallback: in {directory.absolute()} wait beacons of the spool with stream={found[:64]}, and this one has "
            f"stream={stream}; give each service a directory of its own (setting fallback). If stream= was changed: let the "
            f"earlier one empty it, then delete {path.absolute()}"
        )
    return True


def put(directory: Path, stream: str) -> None:
    """Mark it, unless it is marked: before a lane is made and again afterwards, since until then another may take it. Raises
    SpoolError if it is another stream's.
    """
    if look(directory, stream):
        return
    with contextlib.suppress(OSError), _alone(directory):  # the disk is full, say: the next one who starts will mark it
        if not look(directory, stream):
            unfinished = directory / f"{NAME}.{os.getpid()}"
            try:
                with unfinished.open("w") as opened:
                    opened.write(f"{stream}\n")
                    opened.flush()
                    os.fsync(opened.fileno())
                unfinished.replace(directory / NAME)
                file.sync_directory(directory)
            finally:
                unfinished.unlink(missing_ok=True)
    look(directory, stream)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else marks it meanwhile."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
