"""The HTTP server under the public listener: uvicorn, with what beacons need of it set once.

Real clients send bytes that are no URL (raw UTF-8, a "#" that leaked out of a value); uvicorn would answer them 400 or cut the
query short. Here they are escaped as they arrive, so that the beacon is read as it was meant.

Clients that are slow or hostile are bounded: in the time and the size of a request, and in number.
"""

import asyncio
import contextlib
import logging
import resource
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.hit import MAX_BEACON_BYTES

KEEP_ALIVE_S = 75
"""Longer than nginx keeps an idle connection to an upstream (60 s), so that nginx is the one to close it."""
TARGET_BYTES = bytes(sorted(set(range(0x21, 0x7F)) - set(b"#")))
LINE_BYTES = TARGET_BYTES + b" \r"


MAX_HEAD_BYTES = MAX_BEACON_BYTES + 65_536
"""Request line and headers: the largest beacon, and more headers than any browser sends."""
REQUEST_S = 15.0
"""A request that has not arrived whole by then is cut off (a sweep looks every SWEEP_S)."""
SWEEP_S = 2.5
SPARE_FDS = 64
"""Descriptors that connections leave to the process."""
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BeaconProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a forgiving request line. A request target holds no fragment (RFC 9112, section 3.2): "#" is data."""

    max_connections = 65_536
    _head_bytes = 0
    """Received since headers or a part of a body were last complete."""
    _looked_at: Any = None
    _looks = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client may close its half and still read: it gets its answer, then the connection ends."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def cut_off_if_stalled(self) -> None:
        """Called each SWEEP_S: ends a connection that has been in the middle of one request for too long."""
        cycle = self.cycle
        awaited = cycle is None or (self.timeout_keep_alive_task is None if cycle.response_complete else cycle.more_body)
        self._looks = self._looks + 1 if awaited and cycle is self._looked_at else 0
        self._looked_at = cycle
        if self._looks * SWEEP_S >= REQUEST_S:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if data.startswith((b"GET /", b"POST /")) and (self.cycle is None or self.cycle.response_complete):
            line = data[: max(data.find(b"\n"), 0)]
            if line.translate(None, LINE_BYTES) or line.count(b" ") > 2:
                data = escape_target(line) + data[len(line) :]
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE_HEAD)
            self.transport.close()


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

    async def on_tick(self, counter: int) -> bool:
        if counter % int(SWEEP_S * 10) == 0:  # uvicorn ticks ten times a second
            for connection in list(self.server_state.connections):
                if isinstance(connection, BeaconProtocol):
                    connection.cut_off_if_stalled()
        return await super().on_tick(counter)

    def stop(self) -> None:
        """Accept no more, answer what was accepted, end."""
        self.should_exit = True


def _not_a_cancellation(record: logging.LogRecord) -> bool:
    """A client that was still sending when the grace ended is cut off; that is no error of ours."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and not record.getMessage().startswith("Cancel ")


def make_server(app: Any, grace_s: float) -> Server:
    """A server for the public listener. Access logs are off: a line per beacon would hold addresses and queries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    BeaconProtocol.max_connections = max(16, min(65_536, hard - SPARE_FDS))
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
