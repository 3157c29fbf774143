"""A small file system of its own for one experiment: an ext4 image on a loop device, or a tmpfs. Needs root.

It is unmounted and removed when the experiment ends, whatever ends it.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

KINDS = ("ext4", "tmpfs")
SIZE_MIB = 64
UNMOUNT_S = 10.0
"""How long processes that were just killed may still keep the file system busy."""


class CannotMount(Exception):
    """No such file system can be had here. The message says why, and what to do."""


@contextlib.contextmanager
def mounted(place: Path, kind: str = "", size_mib: int = SIZE_MIB) -> Iterator[tuple[Path, str]]:
    """The mount point below `place`, and the kind of file system. Without a kind: ext4 if it can be had, else tmpfs.

    Raises CannotMount.
    """
    point, image = place / "disk", place / "disk.img"
    point.mkdir()
    try:
        yield point, _mount(point, image, kind, size_mib)
    finally:
        _unmount(point)
        point.rmdir()
        image.unlink(missing_ok=True)


def _mount(point: Path, image: Path, kind: str, size_mib: int) -> str:
    reasons = []
    for one in [kind] if kind else KINDS:
        try:
            if one == "ext4":
                with image.open("wb") as opened:
                    opened.truncate(size_mib * 1024**2)
                # No blocks for root alone: full shall be full for everyone.
                _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", str(image))
                _run("mount", "-o", "loop", str(image), str(point))
            else:
                _run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(point))
            return one
        except CannotMount as error:
            reasons.append(f"{one}: {error}")
    raise CannotMount(
        f"cannot mount a file system for this experiment ({'; '.join(reasons)}). "
        "It needs root, on a machine (not a container without rights) where file systems may be mounted"
        + (", or another kind: --file-system tmpfs" if kind == "ext4" else "")
    )


def _run(*command: str) -> None:
    try:
        # A session of its own: Ctrl-C is for the experiment, which cleans up.
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    except OSError as error:
        raise CannotMount(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise CannotMount(" ".join(done.stderr.split()) or f"{command[0]} ended with status {done.returncode}")


def _unmount(point: Path) -> None:
    """At once, or as soon as its last user is gone."""
    deadline = time.monotonic() + UNMOUNT_S
    while os.path.ismount(point):
        try:
            _run("umount", *(["--lazy"] if time.monotonic() > deadline else []), str(point))
        except CannotMount:
            if time.monotonic() > deadline + UNMOUNT_S:
                raise
            time.sleep(0.1)
