"""Which pages may send beacons: a site's allow-list, held against `Origin`, else `Referer`.

It keeps other sites' pages out. It is no protection against a program, which can send any header.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit


class AllowedOrigins:
    """One site's list: host names, `*.example.com`, or whole origins such as `https://www.example.com`."""

    def __init__(self, allowed: tuple[str, ...], missing_allowed: bool) -> None:
        self._whole = {entry for entry in allowed if "://" in entry}
        self._hosts = {entry for entry in allowed if "://" not in entry and not entry.startswith("*.")}
        self._below = tuple(entry[1:] for entry in allowed if entry.startswith("*."))
        self._missing_allowed = missing_allowed

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers may come in. An opaque origin ("null") counts as missing."""
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if not origin or origin == "null":
            origin = origin_of(headers.get(b"referer", b"").decode("latin-1"))
        return self.names(origin) if origin else self._missing_allowed

    def names(self, origin: str) -> bool:
        """Whether the list has that origin ("https://host[:port]", lower case)."""
        scheme, _, rest = origin.partition("://")
        host = rest if rest.startswith("[") else rest.partition(":")[0]
        if scheme not in ("http", "https") or not host:
            return False
        return origin in self._whole or host in self._hosts or host.endswith(self._below or ("\0",))


def origin_of(url: str) -> str:
    """The origin of an address, lower case; "" if it has none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.scheme}://{host}{port}".lower() if host and parts.scheme in ("http", "https") else ""
