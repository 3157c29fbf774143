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
        self._dead: set[str] = set()
        """Those who were killed: their sockets' names are to be removed."""

    def look(self) -> None:
        """Who is listening now? The disk is asked without the lock: it may hang, and a tell must not."""
        try:
            names = {name for name in sorted(os.listdir(self._place))[: 2 * MOST_WATCHERS] if name.endswith(SOCKET)}
        except OSError:
            names = set()
        if not names and not self.open:
            return
        with self._lock:
            known, dead = set(self.open), self._dead
            self._dead = set()
        greeted: dict[str, _Watcher] = {}
        with contextlib.suppress(OSError), _opened(self._place) as fd:
            for name in sorted(names - known - dead)[: MOST_WATCHERS - len(known & names)]:
                watcher = self._greet(name, fd)
                if watcher is not None:
                    greeted[name] = watcher
                else:
                    dead.add(name)
        for name in dead:
            with contextlib.suppress(OSError):
                (self._place / name).unlink()
        with self._lock:
            for gone in known - names:
                self._forget(gone)
            self.open.update(greeted)

    def tell(self, event: Tapped) -> None:
        """Tell all who listen. Never waits, never raises, touches no disk."""
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
                        self._dead.add(name)

    def close(self) -> None:
        """Let the sockets go."""
        with self._lock:
            for name in list(self.open):
                self._forget(name)

    def _greet(self, name: str, fd: int) -> _Watcher | None:
        """None for one who was killed."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        connected.setblocking(False)
        try:
            connected.connect(_short(fd, self._place, name))
        except OSError as error:
            connected.close()
            if error.errno in DEAD:
                return None
            raise
        return _Watcher(connected)

    def _forget(self, name: str) -> None:
        if name in self.open:
            self.open.pop(name).socket.close()


def _with_missed(event: Tapped, missed: int) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(event, missed=missed))


@contextlib.contextmanager
def listening(directory: str | Path) -> Iterator[socket.socket]:
    """A socket on which `Tapped` arrives as JSON, a datagram each. Raises SpoolError where that cannot be."""
    spool = Path(directory)
    place, name = spool / TAPS, secrets.token_hex(8) + SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        try:
            with _place_for_watchers(spool) as fd:
                before = os.umask(0)  # whoever may enter the directory may send
                try:
                    listener.bind(_short(fd, place, name))
                finally:
                    os.umask(before)
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
            with contextlib.suppress(OSError), _place_for_watchers(spool) as fd:
                os.unlink(name, dir_fd=fd)


@contextlib.contextmanager
def _place_for_watchers(spool: Path) -> Iterator[int]:
    """The directory, open; made if need be. What root makes is given to the spool's owner, and root is led nowhere by a link."""
    with _opened(spool) as above:
        with contextlib.suppress(FileExistsError):
            os.mkdir(TAPS, 0o700, dir_fd=above)
        fd = os.open(TAPS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            owner, found = os.fstat(above), os.fstat(fd)
            if os.geteuid() == 0 and found.st_uid == 0 != owner.st_uid:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            elif found.st_uid != owner.st_uid:
                raise PermissionError(errno.EPERM, f"{TAPS} belongs to somebody else")
            yield fd
        finally:
            os.close(fd)


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
