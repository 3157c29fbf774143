"""Free ports of 127.0.0.1, and how to see whether whoever listens on one is well."""

import contextlib
import socket
import urllib.request


def free(n: int) -> list[int]:
    """So many different ones."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def says_ok(url: str) -> bool:
    """Whether it answers 200 within a second."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own
        return bool(answer.status == 200)
    return False
