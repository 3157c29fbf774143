"""The ASGI edge: a raw callable in front of Starlette. A beacon path is a dictionary look-up; everything else is Starlette's.

The answer to a beacon is sent only after `append` returned, so a 200 is written to the socket after the commit.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from proxy.collector.batch import collect_batch
from proxy.collector.collect import Collected, Collector
from proxy.collector.config import CollectorConfig
from proxy.collector.debug import DEBUG_HEADER, told
from proxy.collector.pixel import GIF, GIF_HEADERS, WRONG_METHOD_HEADERS, Headers, cors_headers, preflight_headers
from proxy.collector.serving import Scripts
from proxy.hit import BATCH, DEFAULT_SITE, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome
from proxy.spool.port import Intake, SpoolRefused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Observer = Callable[[str, Hit], None]
"""Told ("received" | "stored" | "refused", hit)."""


def _start(status: int, headers: Headers) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


STORED = _start(200, GIF_HEADERS)
NOT_STORED = _start(503, [*GIF_HEADERS, (b"retry-after", b"1")])
UNREAD_BODY = _start(200, [*GIF_HEADERS, (b"connection", b"close")])
WRONG_METHOD = _start(405, WRONG_METHOD_HEADERS)
JOINED = {b"x-forwarded-for": b",", b"forwarded": b",", b"cookie": b"; ", b"sec-gpc": b",", b"dnt": b","}
PIXEL: Message = {"type": "http.response.body", "body": GIF}
EMPTY: Message = {"type": "http.response.body", "body": b""}


class CollectorApp:
    """The public application. `intake` is opened by whoever mounts it."""

    def __init__(
        self,
        config: CollectorConfig,
        intake: Intake | Callable[[], Intake],
        routes: Sequence[BaseRoute] = (),
        observe: Observer | None = None,
    ) -> None:
        self.collector = Collector(config)
        self._paths = self.collector.paths
        self._scripts = Scripts(config)
        self._intake = intake
        self._rest = Starlette(routes=routes)
        self._observe = observe
        self._debug_token = config.debug_token.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if root := scope.get("root_path"):  # mounted: Starlette leaves the mount's own path in front
                path = path.removeprefix(root)
            kind = self._paths.get(path)
            if kind is not None:
                await self._beacon(kind, scope, receive, send)
                return
            if path in self._scripts.paths:
                await self._script(scope, send)
                return
        await self._rest(scope, receive, send)

    async def _beacon(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        headers = joined(scope["headers"])
        if method not in ("GET", "POST"):
            if method == "OPTIONS":
                await send(_start(204, preflight_headers(self.collector.allowed_origin(headers))))
            else:
                await send(STORED if method == "HEAD" else WRONG_METHOD)
            await send(EMPTY)
            return
        body, start = b"", STORED
        if b"content-length" in headers or b"transfer-encoding" in headers:
            arrived = await _read(receive)
            if arrived is None:
                return
            body = arrived
            if len(body) > MAX_BEACON_BYTES:
                start = UNREAD_BODY
        client = scope.get("client")
        peer, now_ms, https = client[0] if client else _no_address(scope), time.time_ns() // 1_000_000, scope["scheme"] == "https"
        if kind == BATCH:
            beacons, cookies = collect_batch(self.collector, scope["query_string"], body, headers, peer, now_ms, https)
        else:
            one = self.collector.collect(kind, scope["query_string"], body, headers, peer, now_ms, https)
            beacons, cookies = [one], [one.cookie] if one.cookie else []
        intake = self._intake() if callable(self._intake) else self._intake
        stored = await self._store(beacons[0], intake) if len(beacons) == 1 else await self._store_all(beacons, intake)
        if not stored:
            start = NOT_STORED
        if cookies or b"origin" in headers or self._debugs(headers):
            start = self.with_extras(start, headers, [one.found for one in beacons], cookies)
        await send(start)
        await send(PIXEL)

    async def _store(self, one: Collected, intake: Intake) -> bool:
        """Store or count it; whether it may be answered 200."""
        if isinstance(one.found, Outcome):
            intake.drop(one.site, one.found)
            return True
        observe = self._observe
        if observe is not None:
            observe("received", one.found)
        try:
            await intake.append(one.found)
        except SpoolRefused:
            intake.refuse(one.site)
            if observe is not None:
                observe("refused", one.found)
            return False
        if observe is not None:
            observe("stored", one.found)
        return True

    async def _store_all(self, beacons: list[Collected], intake: Intake) -> bool:
        """One commit for all of them, as a rule."""
        return all(await asyncio.gather(*(self._store(one, intake) for one in beacons)))

    async def _script(self, scope: Scope, send: Send) -> None:
        headers = joined(scope["headers"])
        status, answered, body = self._scripts.answer(scope["method"], self.collector.site_name(headers) or DEFAULT_SITE, headers)
        await send(_start(status, answered))
        await send({"type": "http.response.body", "body": body})

    def _debugs(self, headers: Mapping[bytes, bytes]) -> bool:
        token = headers.get(DEBUG_HEADER)
        return token is not None and self._debug_token != b"" and hmac.compare_digest(token, self._debug_token)

    def with_extras(
        self, start: Message, headers: Mapping[bytes, bytes], found: Sequence[Hit | Outcome], cookies: Sequence[bytes]
    ) -> Message:
        """The answer with cookies, what a script of an allowed origin needs to read it, and the outcome for who may know."""
        extra: Headers = []
        if start["status"] == 200:
            extra += [(b"set-cookie", cookie) for cookie in cookies]
        if b"origin" in headers and (allowed := self.collector.allowed_origin(headers)):
            extra += cors_headers(allowed)
        if self._debugs(headers):
            told_all = ", ".join(told(one, start["status"] == 200) for one in found)
            extra.append((b"x-beacon-outcome", told_all.encode("ascii")))
        return _start(start["status"], [*start["headers"], *extra])


def _no_address(scope: Scope) -> str:
    """Of a peer without one: "" over a Unix socket. Over TCP it reset the connection before it was asked for: not trusted."""
    server = scope.get("server")
    return "" if server is None or server[1] is None else "unknown"


def joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name. Of the same name several times the last counts, but lists are joined (RFC 9110, section 5.3)."""
    headers = dict(pairs)
    if len(headers) != len(pairs):
        for wanted, separator in JOINED.items():
            if wanted in headers:
                headers[wanted] = separator.join(value for name, value in pairs if name == wanted)
    return headers


async def _read(receive: Receive) -> bytes | None:
    """The body, read no further than one byte over the limit; None if the client went away in the middle of it.

    Half a body is no beacon: an identity that was cut off could be somebody else's.
    """
    chunks, size = [], 0
    while size <= MAX_BEACON_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(chunk := message.get("body", b""))
        size += len(chunk)
        if not message.get("more_body", False):
            break
    return b"".join(chunks)
