"""sign(): a beacon and its properties → the request to the vendor, with the key. Pure, and the same bytes every time.

What the client sent is never passed on as it came: the request is built anew from what was parsed, every part escaped, so that
nothing a client writes can become a parameter of its own.
"""

from typing import NamedTuple
from urllib.parse import quote

from proxy.beacon import Beacon
from proxy.forward.config import Site

MAX_URL = 2048
"""Above it a beacon is sent as POST, as a known server integration does. An alias is always GET: `/a` takes no POST."""


class UpstreamRequest(NamedTuple):
    """One request to the vendor. `body` is an urlencoded form, or None for GET."""

    url: str
    body: bytes | None

    def masked(self, api_key: str) -> "UpstreamRequest":
        """The same for human eyes."""
        secret = f"_k={quote(api_key, safe='')}"
        body = None if self.body is None else self.body.replace(secret.encode(), b"_k=***")
        return UpstreamRequest(self.url.replace(secret, "_k=***"), body)


def sign(beacon: Beacon, properties: dict[str, str], site: Site) -> UpstreamRequest:
    """Properties first, then `_n`, `_k`, `_p`, `_t`, `_d`: the order of the vendor's own browser library."""
    pairs = [] if beacon.kind == "a" else list(properties.items())
    if beacon.name:
        pairs.append(("_n", beacon.name))
    pairs += [("_k", site.api_key), ("_p", beacon.person)]
    if beacon.kind != "a":
        pairs += [("_t", str(beacon.time_s)), ("_d", "1")]
    query = "&".join([f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs])
    url = f"{site.upstream}/{beacon.kind}"
    if beacon.kind != "a" and len(url) + 1 + len(query) > MAX_URL:
        return UpstreamRequest(url, query.encode("ascii"))
    return UpstreamRequest(f"{url}?{query}", None)
