"""The WSGI edge: the same rule for threaded servers. The thread waits for the commit; many threads share one."""

import hmac
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from proxy.collector.batch import collect_batch
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.collector.debug import DEBUG_HEADER, told
from proxy.collector.pixel import GIF, GIF_HEADERS, WRONG_METHOD_HEADERS, Headers, cors_headers, preflight_headers
from proxy.collector.serving import Scripts
from proxy.hit import BATCH, DEFAULT_SITE, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome
from proxy.spool.port import Intake, SpoolRefused

MAX_DISCARDED = 16 * 1024 * 1024
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode().title(), value.decode()) for name, value in headers]


GIF_TEXT = _text(GIF_HEADERS)
NOT_STORED_TEXT = [*GIF_TEXT, ("Retry-After", "1")]
WRONG_METHOD_TEXT = _text(WRONG_METHOD_HEADERS)


class CollectorWsgi:
    """The public application. `intake` is called at each request, so that it can be opened after a server forks."""

    def __init__(self, config: CollectorConfig, intake: Callable[[], Intake]) -> None:
        self._collector = Collector(config)
        self._scripts = Scripts(config)
        self._intake = intake
        self._debug_token = config.debug_token.encode("utf-8")

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        kind = self._collector.paths.get(path)
        if kind is None and path in self._scripts.paths:
            return self._script(environ, start_response)
        if kind is None:
            start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "9")])
            return [b"Not Found"]
        method = environ["REQUEST_METHOD"]
        headers = _headers(environ)
        if method not in ("GET", "POST"):
            if method == "HEAD":
                start_response("200 OK", GIF_TEXT)
            elif method == "OPTIONS":
                start_response("204 No Content", _text(preflight_headers(self._collector.allowed_origin(headers))))
            else:
                start_response("405 Method Not Allowed", WRONG_METHOD_TEXT)
            return []
        query = environ.get("QUERY_STRING", "").encode("latin-1", "replace")
        body = _read(environ)
        if body is None:
            start_response("400 Bad Request", GIF_TEXT)
            return [GIF]
        intake = self._intake()
        https = environ.get("wsgi.url_scheme") == "https"
        now_ms = time.time_ns() // 1_000_000
        peer = environ.get("REMOTE_ADDR", "")
        if kind == BATCH:
            beacons, cookies = collect_batch(self._collector, query, body, headers, peer, now_ms, https)
        else:
            one = self._collector.collect(kind, query, body, headers, peer, now_ms, https)
            beacons, cookies = [one], [one.cookie] if one.cookie else []
        for one in beacons:
            if isinstance(one.found, Outcome):
                intake.drop(one.site, one.found)
        stored = True
        try:
            intake.append_blocking(*(one.found for one in beacons if isinstance(one.found, Hit)))
        except SpoolRefused as refused:
            stored = False
            for hit in refused.hits:
                intake.refuse(hit.site)
        extra: Headers = [(b"set-cookie", cookie) for cookie in cookies] if stored else []
        if b"origin" in headers and (allowed := self._collector.allowed_origin(headers)):
            extra += cors_headers(allowed)
        token = headers.get(DEBUG_HEADER)
        if token is not None and self._debug_token and hmac.compare_digest(token, self._debug_token):
            extra.append((b"x-beacon-outcome", ", ".join(told(one.found, stored) for one in beacons).encode("ascii")))
        status, answer = ("200 OK", GIF_TEXT) if stored else ("503 Service Unavailable", NOT_STORED_TEXT)
        start_response(status, answer + _text(extra) if extra else answer)
        return [GIF]

    def _script(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        headers = _headers(environ)
        site = self._collector.site_name(headers) or DEFAULT_SITE
        status, answered, body = self._scripts.answer(environ["REQUEST_METHOD"], site, headers)
        start_response(f"{status} {HTTPStatus(status).phrase}", _text(answered))
        return [body] if body else []


def _headers(environ: dict[str, Any]) -> dict[bytes, bytes]:
    return {
        name[5:].replace("_", "-").lower().encode("latin-1"): value.encode("latin-1", "replace")
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }


def _read(environ: dict[str, Any]) -> bytes | None:
    """The body, kept up to one byte over the limit; None if it did not arrive whole (half a body is no beacon).
    A server that marks the end itself may send it chunked.

    What is over the limit is read and thrown away, within reason: a server that closes on unread bytes resets the connection,
    and the client would never see the answer.
    """
    limit = MAX_DISCARDED
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isdigit():
        limit = min(limit, int(length))
    elif not environ.get("wsgi.input_terminated"):
        return b""
    chunks, size = [], 0
    while size < limit:
        try:
            chunk: bytes = environ["wsgi.input"].read(min(limit - size, 65_536))
        except (OSError, ValueError):  # the client went away, or framed its body wrongly
            return None
        if not chunk:
            if length.isdigit():
                return None
            break
        if size <= MAX_BEACON_BYTES:
            chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)
