"""Several beacons in one request, as the browser script sends what comes together: a line each, and each with its own outcome.

A line is `e?QUERY` (or `s?`, `a?`), and after a space, where it is not the request's Referer, the address of the page it is of: a
beacon sent again from another page must be the same to the byte. Its parameters bear the API's own names: no filter list sees
a body, and a property of the page's own may be called like an alias.
"""

from typing import NamedTuple

from proxy.collector.collect import Collected, Collector, Headers
from proxy.hit import DEFAULT_SITE, KINDS, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome

MAX_BEACONS = 100
"""Each is stored with the request's headers: a small request must not become a large one on the disk."""


class Batch(NamedTuple):
    """What became of the request."""

    beacons: list[Collected]
    cookie: bytes = b""
    """A Set-Cookie value for the answer, or b""."""


def collect_batch(collector: Collector, body: bytes, headers: Headers, peer: str, now_ms: int, https: bool = False) -> Batch:
    """The lines, each by the collector's rule. A new visitor's beacons all get one identity; a known one's anonymous cookie is
    set again, so that it lasts."""
    lines = [line.strip() for line in body.split(b"\n") if line.strip()]
    site = collector.site_name(headers)
    if site is None:
        return Batch([Collected(DEFAULT_SITE, Outcome.UNKNOWN_HOST)] * min(len(lines), MAX_BEACONS))
    if len(body) > MAX_BEACON_BYTES:
        return Batch([Collected(site, Outcome.TOO_LARGE)])
    if len(lines) > MAX_BEACONS:
        return Batch([Collected(site, Outcome.TOO_MANY_BEACONS)])
    beacons: list[Collected] = []
    cookie, identity = b"", ""
    for line in lines:
        call, _, page = line.partition(b" ")
        kind, mark, query = call.removeprefix(b"/").partition(b"?")
        if not mark or (known := kind.decode("latin-1")) not in KINDS:
            beacons.append(Collected(site, Outcome.NO_BEACON))
            continue
        one = collector.collect(known, query, b"", headers, peer, now_ms, https, aliased=False, page=page, identity=identity)
        beacons.append(one)
        if one.cookie and isinstance(one.found, Hit):
            cookie, identity = one.cookie, one.found.identity
    if not cookie and any(isinstance(one.found, Hit) for one in beacons):
        cookie = collector.renewed(site, headers, peer, https)
    return Batch(beacons, cookie)
