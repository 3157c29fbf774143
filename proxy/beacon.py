"""A Beacon: a Hit understood by the rules of the beacon API. Pure: no clock, no I/O, no configuration.

Whatever a client sends ends here as a Beacon or as one Outcome, never as an exception. Server-owned names are recognised in
every spelling that some server might read as theirs, so that a client can never speak in the proxy's name.
"""

import re
import string
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec

from proxy.hit import Hit
from proxy.outcome import Outcome

MAX_NAME = 255
"""Characters of `_p`, `_n` and property names (API page, "limits")."""
MAX_VALUE = 512
"""Characters of a property's value (today's API page)."""
MAX_PROPERTIES = 256
"""Properties of one beacon; what comes after is left out."""
EARLIEST_S = 1_230_768_000
"""2009-01-01: the vendor keeps nothing before it."""
FUTURE_MS = 3_600_000
"""A client's clock may be this far ahead of ours."""

KNOWN_BYTES = 128
"""Longest raw name that is remembered, so that what is remembered stays small."""
RESERVED = frozenset({"_k", "_p", "_n", "_t", "_d"})
_TIMESTAMP = re.compile(r"\d{1,15}(\.\d{1,9})?")
_PHP_UNDERSCORE = str.maketrans(". [", "___")
_TELLING = frozenset(string.ascii_letters + string.digits + "_.[ ")


class Beacon(msgspec.Struct, frozen=True):
    """What goes upstream, but for enrichment and the key."""

    kind: str
    person: str
    name: str
    """The event's name; for an alias the other identity; "" for a set."""
    time_s: int
    """Whole seconds since the epoch."""
    properties: dict[str, str]
    trimmed: bool
    """Something was shortened or left out to keep the API's limits."""

    def property(self, folded: str) -> str:
        """The value of the property with that folded name; "" if there is none."""
        for name, value in self.properties.items():
            if len(name) == len(folded) and fold(name) == folded:
                return value
        return ""


def parse(hit: Hit) -> Beacon | Outcome:
    """Read the hit's parameters. The last of several same-named parameters wins, as property names upstream ignore case."""
    reserved: dict[str, str] = {}
    properties: dict[str, tuple[str, str]] = {}
    trimmed = False
    for raw_name, raw_value in _pairs(hit):
        name, owned, folded = (_known_name if len(raw_name) <= KNOWN_BYTES else _name)(raw_name)
        if not name:
            continue
        value = _text(raw_value)
        if owned is not None:
            if owned == name:
                reserved[name] = value
            continue
        if len(name) > MAX_NAME or len(value) > MAX_VALUE:
            name, value, trimmed = name[:MAX_NAME], value[:MAX_VALUE], True
        if folded in properties or len(properties) < MAX_PROPERTIES:
            properties.pop(folded, None)
            properties[folded] = (name, value)
        else:
            trimmed = True

    person, name = reserved.get("_p", ""), reserved.get("_n", "")
    if not person.strip():
        person = hit.identity
    if hit.kind == "a":
        if not person.strip() or not name.strip():
            return Outcome.NO_PERSON
        if len(name) > MAX_NAME:
            return Outcome.PERSON_TOO_LONG
    if not person.strip():
        return Outcome.NO_PERSON
    if len(person) > MAX_NAME:
        return Outcome.PERSON_TOO_LONG
    if hit.kind == "e":
        if not name.strip():
            return Outcome.NO_NAME
        if len(name) > MAX_NAME:
            name, trimmed = name[:MAX_NAME], True
    return Beacon(
        kind=hit.kind,
        person=person,
        name="" if hit.kind == "s" else name,
        time_s=timestamp(reserved.get("_t", ""), reserved.get("_d", ""), hit.received_ms),
        properties={} if hit.kind == "a" else dict(properties.values()),
        trimmed=trimmed and hit.kind != "a",
    )


def parameters(hit: Hit) -> Iterator[tuple[str, str]]:
    """The (name, value) pairs of query and body in order, decoded as urlencoded forms are (WHATWG URL, section 5.1).

    "+" is a space; an invalid escape stays as it is; invalid UTF-8 becomes U+FFFD; empty pairs are skipped. A fragment without
    "=" (a "&" that leaked out of a value) is a name with an empty value, which is what the vendor itself would read.
    """
    for raw_name, raw_value in _pairs(hit):
        if name := _text(raw_name):
            yield name, _text(raw_value)


def _pairs(hit: Hit) -> Iterator[tuple[bytes, bytes]]:
    for source in (hit.query, hit.body.rstrip(b"\r\n")) if hit.body else (hit.query,):
        for pair in source.replace(b"+", b" ").split(b"&"):
            if pair:
                name, _, value = pair.partition(b"=")
                yield name, value


def _name(raw: bytes) -> tuple[str, str | None, str]:
    """A parameter's name, the server-owned name it could pass for, and its folded form."""
    name = _text(raw)
    return name, reserved_name(name), fold(name[:MAX_NAME])


_known_name = lru_cache(2048)(_name)
"""A site has a few names and sends them all day."""


def _text(raw: bytes) -> str:
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace")


def reserved_name(name: str) -> str | None:
    """The server-owned name that some upstream could read this one as, else None."""
    if name in RESERVED:
        return name
    for plain in (plain_name(name), plain_name(name.partition("\0")[0])):  # for some servers a NUL ends a name
        if plain in RESERVED:
            return plain
    return None


def plain_name(name: str) -> str:
    """What the laxest of servers could take a name for: of two names with the same plain form, one may pass for the other.

    Case, white space, punctuation, invisible and full-width characters are gone. ".k" and
    "[k" are "_k" (PHP), and so is "_k[]" (an array named "_k").
    """
    if len(name) <= MAX_NAME and name.isascii() and name.isalnum():
        return name.lower()
    plain = unicodedata.normalize("NFKC", name[:MAX_NAME])
    plain = "".join(c for c in plain if c in _TELLING).strip()
    plain = (plain[:1].translate(_PHP_UNDERSCORE) + plain[1:].partition("[")[0]).lower()
    return "".join(c for c in plain if c == "_" or c.isalnum())


@lru_cache(2048)
def fold(name: str) -> str:
    """The form under which the vendor takes two property names for the same: case ignored, "," and ":" are spaces."""
    return name.replace(",", " ").replace(":", " ").casefold()


def timestamp(t: str, d: str, received_ms: int) -> int:
    """Whole seconds: the client's time if it came with `_d=1` and lies between 2009 and an hour ahead, else receipt time.

    Floats and milliseconds are understood (clients in the field send both); anything absurd is receipt time.
    """
    if d.strip() == "1" and _TIMESTAMP.fullmatch(t.strip()):
        seconds = float(t)
        if seconds >= 100_000_000_000:  # in seconds that is the year 5138: these are milliseconds
            seconds /= 1000
        if EARLIEST_S <= seconds <= (received_ms + FUTURE_MS) / 1000:
            return int(seconds)
    return received_ms // 1000
