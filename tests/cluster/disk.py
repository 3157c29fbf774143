"""A small disk for one broker, to be filled: a tmpfs, so only for root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE_MIB = 64


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Whether `place` is one now: not without the right to mount."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", place]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", place], check=False)


def fill(place: Path) -> None:
    """To the last byte."""
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))


def empty(place: Path) -> None:
    (place / "filler").unlink(missing_ok=True)
