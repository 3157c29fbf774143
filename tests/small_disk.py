"""A real file system that can be filled to its last byte, and what fills it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024**2


@contextlib.contextmanager
def mounted(place: Path, size: str = "8M") -> Iterator[Path]:
    """A tmpfs there meanwhile; the test is skipped where this user may not mount one."""
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs here: run as root to test the full disk for real")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, name: str = "ballast") -> Path:
    """Take what is free, to the last byte, into one file."""
    ballast = place / name
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as opened:
        while opened.write(b"0" * 4096):
            pass
    assert os.statvfs(place).f_bavail == 0
    return ballast


def du(directory: Path) -> int:
    """What `du` says: bytes on the disk."""
    out = subprocess.run(["du", "-s", "--block-size=1", str(directory)], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[0])
