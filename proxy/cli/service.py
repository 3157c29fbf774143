"""What a service manager and a service say to each other: readiness and the watchdog (sd_notify(3)), and sockets that it holds
for us (sd_listen_fds(3)). Without such a manager nothing here has an effect.

The manager's variables are taken out of the environment as they are read: they are meant for this process, not for its children.
"""

import asyncio
import os
import socket
import time

from proxy.settings import SettingsError

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
SEND_S = 1.0
"""The manager may be slow to read what it is told; nothing here may wait for it longer."""
AGAIN_S = 1.0
"""Before what it did not take is said again."""


class Service:
    """The service manager's ear."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        usec = os.environ.pop("WATCHDOG_USEC", "")
        mine = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(usec) / 2e6 if self._address and usec.isdigit() and mine else 0.0
        self._said_alive = 0.0
        """When the manager last took that (monotonic)."""
        self._said = ""
        """The state that it last took."""

    def ready(self) -> None:
        """All that was asked for is at work."""
        self._say("READY=1")

    def reloading(self) -> None:
        """Settings are read anew, until `ready` is said again."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Pat the watchdog, where there is one: twice in the time it allows."""
        if self._every_s and time.monotonic() - self._said_alive >= self._every_s and self._send("WATCHDOG=1"):
            self._said_alive = time.monotonic()

    async def attend(self) -> None:
        """Ready now, and alive as long as the event loop turns. Until cancelled."""
        self.ready()
        while self._every_s or not self._said:
            self.alive()
            await asyncio.sleep(self._every_s / 4 or AGAIN_S)
            if not self._said:
                self.ready()

    def _say(self, state: str) -> None:
        """Said again only when it changes."""
        if state != self._said and self._send(state):
            self._said = state

    def _send(self, text: str) -> bool:
        """Whether it was taken, or there is no manager."""
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(SEND_S)
                try:
                    out.sendto(text.encode(), self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address)
                except OSError:
                    return False  # its queue is full, for example; or it no longer listens
        return True


def held_sockets() -> dict[str, socket.socket]:
    """The listening sockets that the service manager hands over: "public", and "admin" if one is named so (FileDescriptorName=).

    They stay open while we are restarted, so that no connection is refused meanwhile. Asked once: the variables are taken away.
    Raises SettingsError for what is no listening stream socket, and for two of a kind, of which one would never be answered.
    """
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, socket.socket] = {}
    for n, name in zip(range(int(count)), [*names.split(":"), *[""] * int(count)], strict=False):
        kind = "admin" if name == "admin" else "public"
        if kind in found:
            raise SettingsError(
                f"LISTEN_FDS: found two {kind} sockets; expected one ListenStream= (one on [::] takes IPv4 as well), "
                "and at most one more, in a socket unit with FileDescriptorName=admin."
            )
        found[kind] = _listening(FIRST_FD + n)
    return found


def _listening(fd: int) -> socket.socket:
    try:
        held = socket.socket(fileno=fd)
        held.set_inheritable(False)
        if held.type == socket.SOCK_STREAM and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return held
        held.detach()
        what = "a socket that does not listen for connections"
    except OSError as error:
        what = error.strerror or str(error)
    raise SettingsError(
        f"LISTEN_FDS: file descriptor {fd}: found {what}; expected ListenStream= with Accept=no in the socket unit."
    )
