"""The short way of the commonest beacon: a GET without a body is collected and answered by the connection itself.

No ASGI scope, no task, no future for each request. Whatever is the least unusual is left to the long way (asgi.py), so the
two need not be two parsers of the same sloppiness; both ask the same Collector, and give the same answers.
"""

import time
from typing import Any, Protocol

from proxy.collector.asgi import JOINED, NOT_STORED, STORED, CollectorApp, Message
from proxy.collector.collect import Headers
from proxy.collector.pixel import GIF
from proxy.hit import BATCH, Hit
from proxy.outcome import Outcome
from proxy.spool.port import Caller, Intake, SpoolRefused

UNUSUAL = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"x-beacon-debug"})
"""Headers with which a request goes the long way."""
NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
CONTROL = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
KNOWN_NAMES = 512
"""Spellings of names that are remembered, so that most need no second look."""
_known: dict[bytes, bytes] = {}


class Express:
    """For one application and one intake."""

    def __init__(self, app: CollectorApp, intake: Intake) -> None:
        self._app = app
        self._collector = app.collector
        self._paths = {path.encode("ascii"): kind for path, kind in app.collector.paths.items() if kind != BATCH}
        self._append = intake.append_then
        self._intake = intake
        self._dated: list[tuple[bytes, bytes]] | None = None
        self._stored = b""

    def take(self, connection: "ExpressConnection", head: bytes) -> bool:
        """Take a whole request head in hand, if it is an ordinary beacon; else False, and nothing has happened.

        The connection is told (`told`) when the hit is stored, or answered at once.
        """
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.split(b" ")
        path, _, query = target.partition(b"?")
        kind = self._paths.get(path)
        if kind is None or method != b"GET" or version != b"HTTP/1.1":
            return False
        headers = parse_headers(rest)
        if headers is None or not UNUSUAL.isdisjoint(headers):
            return False
        site, hit, cookie = self._collector.collect(
            kind, query, b"", headers, connection.peer, time.time_ns() // 1_000_000, connection.https
        )
        connection.closes = headers.get(b"connection", b"").lower() == b"close"
        if cookie or b"origin" in headers:
            connection.extras = (headers, (hit,), (cookie,) if cookie else ())
        if isinstance(hit, Outcome):
            self._intake.drop(site, hit)
            connection.told(None)
            return True
        connection.site = site
        try:
            self._append(hit, connection)
        except SpoolRefused as refused:
            connection.told(refused)
        return True

    def answer(self, connection: "ExpressConnection", error: SpoolRefused | None, dated: list[tuple[bytes, bytes]]) -> bytes:
        """The whole answer as bytes; `dated` are the server's own headers."""
        start = STORED
        if error is not None:
            self._intake.refuse(connection.site)
            start = NOT_STORED
        elif connection.extras is None:
            if dated is not self._dated:
                self._dated, self._stored = dated, encode(STORED, dated)
            return self._stored
        if connection.extras is not None:
            start, connection.extras = self._app.with_extras(start, *connection.extras), None
        return encode(start, dated)


class ExpressConnection(Caller, Protocol):
    """What the short way asks of a connection."""

    peer: str
    https: bool
    site: str
    """Of the beacon that waits."""
    closes: bool
    """The client asked for the connection's end after this answer."""
    extras: tuple[Headers, tuple[Hit | Outcome], tuple[bytes, ...]] | None
    """What the answer needs beyond the usual."""


def parse_headers(block: bytes) -> dict[bytes, bytes] | None:
    """Lower-case names to values of a header block that ends with an empty line; None for anything unusual, which the long way's
    parser shall judge (folded lines, bare line ends, control characters, names that are no tokens)."""
    if not block.count(b"\n") == block.count(b"\r") == block.count(b"\r\n") or len(block.translate(None, CONTROL)) != len(block):
        return None
    headers: dict[bytes, bytes] = {}
    for line in block[:-4].split(b"\r\n"):
        raw, colon, value = line.partition(b":")
        name = _known.get(raw) or _lower_case(raw)
        if not colon or not name:
            return None
        value = value.lstrip(b" \t")  # what follows it, the long way leaves too
        if name in headers and name in JOINED:
            value = headers[name] + JOINED[name] + value
        headers[name] = value
    return headers


def _lower_case(raw: bytes) -> bytes:
    """A header's name in lower case; b"" for what is no token (RFC 9110, section 5.6.2)."""
    name = raw.lower()
    if name.translate(None, NAME_BYTES):
        return b""
    if len(_known) < KNOWN_NAMES:
        _known[raw] = name
    return name


def encode(start: Message, dated: list[tuple[bytes, bytes]]) -> bytes:
    """An ASGI answer's start and the GIF, as HTTP/1.1."""
    reason = {200: b"OK", 503: b"Service Unavailable"}[start["status"]]
    headers: Any = [*dated, *start["headers"]]
    lines = [b"HTTP/1.1 %d %s" % (start["status"], reason), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + GIF
