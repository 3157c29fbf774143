"""What a service manager and a service say to each other: readiness and the watchdog (sd_notify(3)), and sockets that it holds
for us (sd_listen_fds(3)). Without such a manager nothing here has an effect.
"""

import os
import socket
import time

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


class Service:
    """The service manager's ear."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        usec = os.environ.pop("WATCHDOG_USEC", "")
        mine = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(usec) / 2e6 if usec.isdigit() and mine else 0.0
        self._said_alive = 0.0
        self._said = ""

    def say(self, state: str) -> None:
        """Such as "READY=1". Said again only when it changes."""
        if state != self._said:
            self._said = state
            self._send(state)

    def say_alive(self) -> None:
        """Pat the watchdog, where there is one, as often as it wants it."""
        if self._every_s and time.monotonic() - self._said_alive >= self._every_s:
            self._said_alive = time.monotonic()
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                try:
                    out.sendto(text.encode(), self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address)
                except OSError:
                    pass  # nobody listens any more; that is the manager's affair


def held_sockets() -> dict[str, socket.socket]:
    """The listening sockets that the service manager hands over, by name (FileDescriptorName=); one without a name is "public".

    They stay open while we are restarted, so that no connection is refused meanwhile. Asked once: the variables are taken away.
    """
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found = {}
    for n, name in zip(range(int(count)), [*names.split(":"), *[""] * int(count)], strict=False):
        held = socket.socket(fileno=FIRST_FD + n)
        held.set_inheritable(False)
        found["admin" if name == "admin" else "public"] = held
    return found
