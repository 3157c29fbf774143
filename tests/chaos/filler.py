"""A program that takes all room of a disk: `python -m tests.chaos.filler FILE SECONDS`.

It grows FILE until no block is free and prints a line, takes whatever becomes free for SECONDS more, deletes FILE and ends. It
refuses file systems larger than LARGEST_DISK, which cannot be the experiment's.
"""

import contextlib
import errno
import os
import signal
import sys
import time

LARGEST_DISK = 1024**3
LARGEST, SMALLEST = 4 * 1024**2, 512
"""Bytes taken at once. When the larger do not fit any more, smaller ones may."""
POLL_S = 0.002


def take(fd: int, size: int) -> int:
    """Grow the file of that size until nothing fits any more; its new size."""
    step = LARGEST
    while step >= SMALLEST:
        try:
            os.posix_fallocate(fd, size, step)
            size += step
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            step //= 2
    return size


def main(path: str, seconds: float) -> int:
    """The exit status."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        found = os.fstatvfs(fd)
        if found.f_blocks * found.f_frsize > LARGEST_DISK:
            print(f"{path} is on a file system of more than {LARGEST_DISK} bytes: not filled", file=sys.stderr)
            return 2
        size = take(fd, 0)
        print("full", flush=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(POLL_S)
            if os.fstatvfs(fd).f_bavail:
                size = take(fd, size)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
