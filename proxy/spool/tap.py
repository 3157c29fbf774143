"""A tap: whoever wants to watch beacons go by gets a copy of what is told of them, and nobody waits for him.

A watcher binds a datagram socket in the spool's directory; collectors and the forwarder look there once a second. What a watcher
cannot take in is lost to him and to nobody else, and he is told how much it was. With no watcher a tap costs the look at an
empty list.
"""

import contextlib
import errno
import os
import pwd
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from proxy.spool.port import SpoolError, Tapped

TAPS, SOCKET = "taps", ".sock"
MOST_WATCHERS = 16
DATAGRAM_BYTES = 1024 * 1024
"""More than a datagram can have: what to ask `recv` for."""
FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE})
"""He listens, but this one does not fit. A queue has net.unix.max_dgram_qlen datagrams, often ten."""
DEAD = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})
"""Nobody holds the socket any more: he was killed."""


class _Watcher:
    """A socket of his own for each, so that one whose queue is full takes no room from the others."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.missed = 0


class Tap:
    """The telling end. May be told from one thread and look from another."""

    def __init__(self, directory: str | Path) -> None:
        self._place = Path(directory) / TAPS
        self._lock = threading.Lock()
        self.open: dict[str, _Watcher] = {}
        """Those who listen, by their socket's name."""

    def look(self) -> None:
        """Who is listening now?"""
        try:
            names = sorted(name for name in os.listdir(self._place) if name.endswith(SOCKET))[:MOST_WATCHERS]
        except OSError:
            names = []
        if names or self.open:
            with self._lock:
                for gone in self.open.keys() - set(names):
                    self._forget(gone)
                with contextlib.suppress(OSError), _opened(self._place) as fd:
                    for name in names:
                        if name not in self.open:
                            self._greet(name, fd)

    def tell(self, event: Tapped) -> None:
        """Tell all who listen. Never waits, never raises."""
        told = msgspec.json.encode(event)
        with self._lock:
            for name, watcher in list(self.open.items()):
                try:
                    watcher.socket.send(told if not watcher.missed else _with_missed(event, watcher.missed))
                    watcher.missed = 0
                except OSError as error:
                    if error.errno in FULL:
                        watcher.missed += 1
                    else:
                        self._forget(name)
                    if error.errno in DEAD:
                        self._remove(name)

    def close(self) -> None:
        """Let the sockets go."""
        with self._lock:
            for name in list(self.open):
                self._forget(name)

    def _greet(self, name: str, fd: int) -> None:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        connected.setblocking(False)
        try:
            connected.connect(_short(fd, self._place, name))
        except OSError as error:
            connected.close()
            if error.errno in DEAD:
                self._remove(name)
        else:
            self.open[name] = _Watcher(connected)

    def _forget(self, name: str) -> None:
        self.open.pop(name).socket.close()

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._place / name).unlink()


def _with_missed(event: Tapped, missed: int) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(event, missed=missed))


@contextlib.contextmanager
def listening(directory: str | Path) -> Iterator[socket.socket]:
    """A socket on which `Tapped` arrives as JSON, a datagram each. Raises SpoolError where that cannot be."""
    spool = Path(directory)
    place, name = spool / TAPS, secrets.token_hex(8) + SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            _give_to_owner(place, spool)
            with _opened(place) as fd:
                listener.bind(_short(fd, place, name))
            _give_to_owner(place / name, spool)
        except FileNotFoundError:
            raise SpoolError(
                f"spool: there is none at {spool.absolute()} yet; start `beacon-proxy serve` first, or name the right one "
                "(--config, setting spool)"
            ) from None
        except OSError as error:
            raise SpoolError(
                f"spool: cannot watch {spool.absolute()}: {error.strerror}; run it as the user that runs "
                f"beacon-proxy{_owner(spool)}"
            ) from None
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                (place / name).unlink()


def _give_to_owner(path: Path, spool: Path) -> None:
    """What root makes here, the collectors could not use: it is made the spool's owner's."""
    if os.geteuid() == 0:
        of = spool.stat()
        os.chown(path, of.st_uid, of.st_gid)


def _owner(spool: Path) -> str:
    try:
        return f" ({pwd.getpwuid(spool.stat().st_uid).pw_name})"
    except (OSError, KeyError):
        return ""


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[int]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _short(fd: int, place: Path, name: str) -> str:
    """A socket's path may have 107 bytes (unix(7)), and a spool's may have more: so it is named by its open directory."""
    return f"/proc/self/fd/{fd}/{name}" if os.path.isdir("/proc/self/fd") else str(place / name)
