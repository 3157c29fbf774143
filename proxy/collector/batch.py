"""Several beacons in one request, as the browser script sends what comes together: a line each, and each with its own outcome.

A line is `e?QUERY` (or `s?`, `a?`), and after a space, where it is not the request's Referer, the address of the page it is of: a
beacon sent again from another page must be the same to the byte. Its parameters bear the API's own names: no filter list sees
a body, and a property of the page's own may be called like an alias. Where a page can only ask for images, the lines are the
query, in base64url (RFC 4648, section 5, without padding), so that there, too, is nothing for a list to see.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from proxy.collector.base64url import decoded
from proxy.collector.collect import Collected, Collector, Headers
from proxy.hit import DEFAULT_SITE, KINDS, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome

MAX_BEACONS = 100
"""Each is stored with the request's headers: a small request must not become a large one on the disk."""


class Batch(NamedTuple):
    """What became of the request."""

    beacons: list[Collected]
    cookies: Sequence[bytes] = ()
    """Set-Cookie values for the answer."""


PAGE = re.compile(rb"https?://[!-~]{1,4096}")
"""A page's address; what is none is no better than the Referer."""


def collect_batch(
    collector: Collector, query: bytes, body: bytes, headers: Headers, peer: str, now_ms: int, https: bool = False
) -> Batch:
    """The lines, each by the collector's rule. A new visitor's beacons all get one identity; a known one's cookies are set
    again, so that they last."""
    if query and not body:
        body = decoded(query) or query
    lines = [line.strip() for line in body.split(b"\n") if line.strip()]
    site = collector.site_name(headers)
    if site is None:
        return Batch([Collected(DEFAULT_SITE, Outcome.UNKNOWN_HOST)] * min(len(lines), MAX_BEACONS))
    if len(body) > MAX_BEACON_BYTES:
        return Batch([Collected(site, Outcome.TOO_LARGE)])
    if len(lines) > MAX_BEACONS:
        return Batch([Collected(site, Outcome.TOO_MANY_BEACONS)])
    beacons: list[Collected] = []
    cookies, identity = list[bytes](), ""
    for line in lines:
        call, _, page = line.partition(b" ")
        kind, mark, query = call.removeprefix(b"/").partition(b"?")
        if not mark or (known := kind.decode("latin-1")) not in KINDS:
            beacons.append(Collected(site, Outcome.NO_BEACON))
            continue
        one = collector.collect(
            known,
            query,
            b"",
            headers,
            peer,
            now_ms,
            https,
            aliased=False,
            page=page if PAGE.fullmatch(page) else b"",
            identity=identity,
        )
        beacons.append(one)
        if one.cookie and isinstance(one.found, Hit):
            cookies, identity = [one.cookie], one.found.identity
    if not cookies and any(isinstance(one.found, Hit) for one in beacons):
        cookies = collector.renewed(site, headers, peer, https)
    return Batch(beacons, cookies)
