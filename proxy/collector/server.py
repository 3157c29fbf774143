"""The HTTP server under the public listener: uvicorn, with what beacons need of it set once.

Real clients send bytes that are no URL (raw UTF-8, a "#" that leaked out of a value); uvicorn would answer them 400 or cut the
query short. Here they are escaped as they arrive, so that the beacon is read as it was meant.

Clients that are slow or hostile are bounded: in the time and the size of a request, and in number.
"""

import asyncio
import contextlib
import logging
import re
import resource
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.collector.collect import Headers
from proxy.collector.express import Express
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.port import SpoolRefused

KEEP_ALIVE_S = 75
"""Longer than nginx keeps an idle connection to an upstream (60 s), so that nginx is the one to close it."""
TARGET_BYTES = bytes(sorted(set(range(0x21, 0x7F)) - set(b"#")))
LINE_BYTES = TARGET_BYTES + b" "
MAX_TARGET_BYTES = 65_000
"""The parser can address 65,535. A longer target is cut: it is over MAX_BEACON_BYTES all the same."""
MAX_HEAD_BYTES = 131_072
"""Request line and headers: the largest beacon, and more headers than any browser sends."""
MAX_CHUNKED_BYTES = 1024 * 1024
"""A chunked body with its framing and trailers. (One of known length is answered and left unread when it is too large.)"""
REQUEST_S = 15.0
"""A request that has not arrived whole by then is cut off (a sweep looks every SWEEP_S)."""
SWEEP_S = 2.5
LINGER_S = 1.0
"""A collector's: a beacon that is on its way when the connection closes would be lost with it."""
CLOSE = (b"connection", b"close")
SPARE_FDS = 64
"""Descriptors that connections leave to the process."""
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)
UNTIL_THE_END = -1


class BeaconProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a forgiving request line. A request target holds no fragment (RFC 9112, section 3.2): "#" is data.

    Heads are handed to the parser whole, bodies by their length, so that a request line is known for one wherever segments end.
    """

    max_connections = 65_536
    express: Express | None = None
    """The short way, where the server has one."""
    linger_s: float = 0.0
    site: str = ""
    closes: bool = False
    extras: tuple[Headers, tuple[Hit | Outcome], tuple[bytes, ...]] | None = None
    _pending = False
    """A beacon of the short way waits for its commit; what arrives meanwhile is held."""
    _held = b""
    _served = 0
    _closing = False
    _head = b""
    """What has arrived of a head that is not whole."""
    _body_left = 0
    """Bytes of the present body still to come; UNTIL_THE_END: it is chunked, and its request the connection's last."""
    _chunked_bytes = 0
    _message_complete = False
    _looked_at: Any = None
    _looks = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if not self.peer and not _is_unix(transport):
            transport.abort()  # it was reset before its address was asked for; "" would pass for a Unix socket, which is trusted
        self.https = self.scheme == "https"
        if len(self.connections) > self.max_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            if self._pending:
                self._held += data
                if len(self._held) > MAX_HEAD_BYTES:
                    self.transport.pause_reading()
                return
            if self._body_left == 0:
                data = self._take_head(data)
            elif self._body_left == UNTIL_THE_END:
                self._chunked_bytes += len(data)
                if self._chunked_bytes > MAX_CHUNKED_BYTES:
                    self.transport.abort()
                else:
                    super().data_received(data)
                return
            else:
                part, data = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(part)
                super().data_received(part)

    def _take_head(self, data: bytes) -> bytes:
        """Parse a head if it is whole, else keep it; what follows it."""
        searched = max(0, len(self._head) - 3)
        if self._head:
            data = self._head + data
        if data[:1] in b"\r\n":
            data, searched = data.lstrip(b"\r\n"), 0  # RFC 9112, section 2.2: empty lines before a request are ignored
        end = data.find(b"\r\n\r\n", searched) + 4
        if end == 3 or end > MAX_HEAD_BYTES:
            self._head = data
            self._unset_keepalive_if_required()
            if len(data) > MAX_HEAD_BYTES:
                self.transport.write(TOO_LARGE_HEAD)
                self.transport.close()
            return b""
        head, self._head = data[:end], b""
        line = head[: head.find(b"\r\n")]
        if line.translate(None, LINE_BYTES) or line.count(b" ") != 2 or len(line) > MAX_TARGET_BYTES:
            head = escape_target(line) + head[len(line) :]
        if self.express is not None and (self.cycle is None or self.cycle.response_complete):
            self._pending = True
            if self.timeout_keep_alive_task is not None:
                self._unset_keepalive_if_required()
            if self.express.take(self, head):  # which may have been answered already
                return data[end:]
            self._pending = False
        if b"pgrade" in head or b"PGRADE" in head:  # nothing here is upgraded, and a parser that thinks so reads no body
            head = UPGRADE.sub(b"", head)
        self._message_complete = False
        super().data_received(head)
        if self._closing and self.cycle is not None:
            self.cycle.keep_alive = False
        if not self._message_complete:
            lengths = [value for name, value in self.headers if name == b"content-length"]
            self._body_left = int(lengths[0]) if lengths else UNTIL_THE_END
            if not lengths and self.cycle is not None:
                self.cycle.keep_alive = False
        return data[end:]

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop

    def told(self, error: SpoolRefused | None) -> None:
        """Answer the beacon that waited, and go on with what arrived meanwhile."""
        if not self._pending:
            return
        self._pending = False
        self._served += 1
        assert self.express is not None  # noqa: S101 - for the type checker
        dated = self.server_state.default_headers
        answer = self.express.answer(self, error, [*dated, CLOSE] if self._closing else dated)
        if self.transport.is_closing():
            return
        self.server_state.total_requests += 1
        self.transport.write(answer)
        if self.closes or self._closing:
            self.transport.close()
        elif self._held:
            held, self._held = self._held, b""
            self.transport.resume_reading()
            self.data_received(held)  # at once: what arrives next must not overtake it

    def shutdown(self) -> None:
        """One more request may come, and is answered as the connection's last."""
        self._closing = True
        if self._at_rest():
            self.loop.call_later(self.linger_s, self._close_if_at_rest)
        elif not self._pending:
            super().shutdown()

    def _close_if_at_rest(self) -> None:
        if self._at_rest():
            self.transport.close()

    def _at_rest(self) -> bool:
        return not self._pending and (self.cycle is None or self.cycle.response_complete)

    def on_message_complete(self) -> None:
        self._message_complete = True
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client may close its half and still read: it gets its answer, then the connection ends."""
        if self._pending:
            self._closing = True
            return True
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def cut_off_if_stalled(self) -> None:
        """Called each SWEEP_S: ends a connection that is idle for too long, or in the middle of one request."""
        cycle = self.cycle
        at_work = self._pending or (cycle is not None and not cycle.response_complete and not cycle.more_body)
        answered = self._served > 0 or (cycle is not None and cycle.response_complete)
        between = not self._head and self._body_left == 0 and answered
        now = (cycle, self._served, between)  # the time between two requests is none of the second's
        self._looks = self._looks + 1 if now == self._looked_at and not at_work else 0
        self._looked_at = now
        if self._looks * SWEEP_S >= (KEEP_ALIVE_S if between else REQUEST_S):
            self.transport.abort()


def _is_unix(transport: asyncio.Transport) -> bool:
    connected = transport.get_extra_info("socket")
    return connected is not None and connected.family == socket.AF_UNIX


def escape_target(line: bytes) -> bytes:
    """The request line with everything escaped that may not stand in its target, and the target cut to what can be parsed."""
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    escaped = b"".join([bytes((c,)) if c in TARGET_BYTES else b"%%%02X" % c for c in target[:MAX_TARGET_BYTES]])
    return b"%s %s %s" % (method, escaped[:MAX_TARGET_BYTES], version)


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


def make_server(app: Any, grace_s: float, express: Express | None = None, linger_s: float = 0.0) -> Server:
    """A server for the public listener. Access logs are off: a line per beacon would hold addresses and queries.

    `linger_s`: at the end, how long a connection without a request is kept for one that is on its way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    protocol: type[BeaconProtocol] = type("Connection", (BeaconProtocol,), {"express": express, "linger_s": linger_s})
    protocol.max_connections = max(16, min(65_536, hard - SPARE_FDS))
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)  # a warning for each malformed request is the sender's to cause
    logger.addFilter(_not_a_cancellation)
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(grace_s - 2)),
        )
    )
