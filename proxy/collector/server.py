"""The HTTP server under the public listener: uvicorn, with what beacons need of it set once.

Real clients send bytes that are no URL (raw UTF-8, a "#" that leaked out of a value); uvicorn would answer them 400 or cut the
query short. Here they are escaped as they arrive, so that the beacon is read as it was meant.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

KEEP_ALIVE_S = 75
"""Longer than nginx keeps an idle connection to an upstream (60 s), so that nginx is the one to close it."""
TARGET_BYTES = bytes(sorted(set(range(0x21, 0x7F)) - set(b"#")))
LINE_BYTES = TARGET_BYTES + b" \r"


class BeaconProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a forgiving request line. A request target holds no fragment (RFC 9112, section 3.2): "#" is data."""

    def data_received(self, data: bytes) -> None:
        if data.startswith((b"GET /", b"POST /")) and (self.cycle is None or self.cycle.response_complete):
            line = data[: max(data.find(b"\n"), 0)]
            if line.translate(None, LINE_BYTES) or line.count(b" ") > 2:
                data = escape_target(line) + data[len(line) :]
        super().data_received(data)


def escape_target(line: bytes) -> bytes:
    """The request line with everything escaped that may not stand in its target."""
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    return b"%s %s %s" % (method, b"".join(bytes((c,)) if c in TARGET_BYTES else b"%%%02X" % c for c in target), version)


class Server(uvicorn.Server):
    """uvicorn, with the stop signal left to the process (uvicorn raises it again at the end, which skips the clean-up)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Accept no more, answer what was accepted, end."""
        self.should_exit = True


def _not_a_cancellation(record: logging.LogRecord) -> bool:
    """A client that was still sending when the grace ended is cut off; that is no error of ours."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and not record.getMessage().startswith("Cancel ")


def make_server(app: Any, grace_s: float) -> Server:
    """A server for the public listener. Access logs are off: a line per beacon would hold addresses and queries."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)  # a warning for each malformed request is the sender's to cause
    logger.addFilter(_not_a_cancellation)
    return Server(
        uvicorn.Config(
            app,
            http=BeaconProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(grace_s - 2)),
        )
    )
