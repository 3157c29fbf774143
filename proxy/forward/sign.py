"""sign(): a beacon and its properties → the request to the vendor, with the key. Pure, and the same bytes every time.

What the client sent is never passed on as it came: the request is built anew from what was parsed, every part escaped, so that
nothing a client writes can become a parameter of its own.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from proxy.beacon import Beacon
from proxy.forward.config import Site

MAX_URL = 2048
"""Above it a beacon is sent as POST, as a known server integration does. An alias is always GET: `/a` takes no POST."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.~-]")
_ESCAPES = {chr(byte): f"%{byte:02X}" for byte in range(256)}


def escape(text: str) -> str:
    """Percent-encode all but the unreserved characters (RFC 3986, section 2.3), as `urllib.parse.quote` does, quicker."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("latin-1")
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return _ESCAPES[found[0]]


_known = lru_cache(1024)(escape)


@lru_cache(2048)
def _pair(name: str, value: str) -> str:
    """Pages, browsers, places come again and again. Each has at most MAX_VALUE characters, so this stays small."""
    return f"{_known(name)}={escape(value)}"


class UpstreamRequest(NamedTuple):
    """One request to the vendor. `body` is an urlencoded form, or None for GET."""

    url: str
    body: bytes | None

    def masked(self, api_key: str) -> "UpstreamRequest":
        """The same for human eyes."""
        secret = f"_k={escape(api_key)}"
        body = None if self.body is None else self.body.replace(secret.encode(), b"_k=***")
        return UpstreamRequest(self.url.replace(secret, "_k=***"), body)


def sign(beacon: Beacon, properties: dict[str, str], site: Site) -> UpstreamRequest:
    """Properties first, then `_n`, `_k`, `_p`, `_t`, `_d`: the order of the vendor's own browser library."""
    pairs = [] if beacon.kind == "a" else [_pair(name, value) for name, value in properties.items()]
    if beacon.name:
        pairs.append(f"_n={_known(beacon.name)}")
    pairs.append(f"_k={_known(site.api_key)}&_p={escape(beacon.person)}")
    if beacon.kind != "a":
        pairs.append(f"_t={beacon.time_s}&_d=1")
    query = "&".join(pairs)
    url = f"{site.upstream}/{beacon.kind}"
    if beacon.kind != "a" and len(url) + 1 + len(query) > MAX_URL:
        return UpstreamRequest(url, query.encode("ascii"))
    return UpstreamRequest(f"{url}?{query}", None)
