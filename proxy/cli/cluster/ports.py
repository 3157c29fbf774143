"""Free ports of 127.0.0.1, and how to see whether whoever listens on one is well."""

import contextlib
import socket
import urllib.request
from random import randrange


def free(n: int) -> list[int]:
    """So many different ones, by lot, of those that the kernel gives to no outgoing connection: they must be free for long."""
    found: list[int] = []
    while len(found) < n:
        port = randrange(15_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def says_ok(url: str) -> bool:
    """Whether it answers 200 within a second."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own
        return bool(answer.status == 200)
    return False
