"""A tap: whoever wants to watch beacons go by gets a copy of what is told of them, and nobody waits for him.

A watcher binds a datagram socket in the spool's directory; collectors and the forwarder look there once a second. What a watcher
cannot take in is lost to him and to nobody else. With no watcher a tap costs the look at an empty list.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from proxy.spool.port import Tapped

TAPS, SOCKET = "taps", ".sock"
BUFFER_BYTES = 4 * 1024 * 1024
"""What a watcher may be behind before he misses something (the kernel may grant less)."""


class Tap:
    """The telling end."""

    def __init__(self, directory: str | Path) -> None:
        self._place = Path(directory) / TAPS
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._fd: int | None = None
        self.open: list[str] = []
        """Those who listen."""

    def look(self) -> None:
        """Who is listening now?"""
        try:
            names = [name for name in os.listdir(self._place) if name.endswith(SOCKET)]
            if names and self._fd is None:
                self._fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            names = []
        if not names:
            self._let_go()
        self.open = [_short(self._fd, self._place, name) for name in names]

    def tell(self, event: Tapped) -> None:
        """Tell all who listen. Never waits, never raises."""
        told = msgspec.json.encode(event)
        for path in self.open:
            with contextlib.suppress(OSError):
                self._socket.sendto(told, path)

    def close(self) -> None:
        """Let the sockets go."""
        self._socket.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@contextlib.contextmanager
def listening(directory: str | Path) -> Iterator[socket.socket]:
    """A socket on which `Tapped` arrives as JSON, a datagram each. Raises OSError where the spool cannot be written."""
    place = Path(directory) / TAPS
    place.mkdir(mode=0o700, exist_ok=True)
    name = secrets.token_hex(8) + SOCKET
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            _remove_stale(fd, place)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            listener.bind(_short(fd, place, name))
            try:
                yield listener
            finally:
                (place / name).unlink(missing_ok=True)
    finally:
        os.close(fd)


def _remove_stale(fd: int, place: Path) -> None:
    """Sockets of watchers that were killed."""
    for path in place.glob(f"*{SOCKET}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(_short(fd, place, path.name))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass


def _short(fd: int | None, place: Path, name: str) -> str:
    """A socket's path may have 107 bytes (unix(7)), and a spool's may have more: so it is named by its open directory."""
    return f"/proc/self/fd/{fd}/{name}" if os.path.isdir("/proc/self/fd") else str(place / name)
