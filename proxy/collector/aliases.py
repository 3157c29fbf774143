"""Other names of parameters: what a request calls `u` is `_p`. Mapped back before anything else is made of the request, so that
the spool holds the API's own names, whatever a page was written with.

Any property may be called by a mark and its name in base64url (RFC 4648, section 5, without padding), where a mark is set.
"""

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

from proxy.collector.base64url import decoded

ANY = "*"
"""Stands for every name, in the setting."""
KNOWN_BYTES = 512
"""Longest raw name that is remembered."""


class Aliases:
    """The rule for one configuration."""

    def __init__(self, parameters: Mapping[str, tuple[str, ...]]) -> None:
        self._names = {
            alias.encode("ascii"): quote_from_bytes(name.encode("utf-8"), safe="").encode("ascii")
            for name, aliases in parameters.items()
            if name != ANY
            for alias in aliases
        }
        self._marks = tuple(mark.encode("ascii") for mark in parameters.get(ANY, ()))
        self.active = bool(self._names or self._marks)
        self._known = lru_cache(2048)(self._plain)

    def query(self, raw: bytes) -> bytes:
        """An urlencoded query or body with the API's names; every other byte as it is."""
        pairs = []
        for pair in raw.split(b"&"):
            name, equals, value = pair.partition(b"=")
            pairs.append((self._known if len(name) <= KNOWN_BYTES else self._plain)(name) + equals + value)
        return b"&".join(pairs)

    def _plain(self, raw: bytes) -> bytes:
        """A name as the API knows it, escaped; itself if it is no alias."""
        name = unquote_to_bytes(raw.replace(b"+", b" "))
        if name in self._names:
            return self._names[name]
        for mark in self._marks:
            if name.startswith(mark) and (plain := decoded(name[len(mark) :])) and _is_text(plain):
                return quote_from_bytes(plain, safe="").encode("ascii")
        return raw


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
