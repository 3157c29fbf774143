"""The addresses that browsers will ask for under a configuration: every live prefix, every name, and queries as pages write them.

Pure. An address is kept in parts, each of which names the setting it comes from, so that one of them can be put another way.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from proxy.collector.aliases import ANY
from proxy.collector.config import CollectorConfig
from proxy.hit import BATCH, KINDS

PAIRS = tuple[tuple[str, str], ...]
"""(name as the API knows it, value) of a query."""

TYPICAL: dict[str, tuple[PAIRS, ...]] = {
    "e": (
        (("_n", "Viewed Product"), ("_p", "me@example.com"), ("Product", "Teapot"), ("Price", "19.90")),
        (("_p", "Xy7"), ("_n", "Purchased"), ("_t", "1790000000"), ("_d", "1"), ("Order ID", "A-17"), ("Order Total", "59.80")),
        (("_n", "Visited Site"), ("URL", "https://www.example.com/tea?a=1"), ("Referrer", "https://www.example.net/")),
        (("_n", "Ad Campaign Hit"), ("Campaign Source", "news"), ("Campaign Medium", "email"), ("_p", "x")),
        (("_n", "Search"), ("utm_source", "news"), ("utm_medium", "email"), ("utm_campaign", "spring")),
        (("_p", "x"), ("_n", "Added to Cart"), ("item_id", "17"), ("quantity", "2"), ("currency", "EUR"), ("value", "19.90")),
    ),
    "s": ((("_p", "x"), ("Plan", "Gold"), ("gender", "f")), (("_p", "x"), ("_t", "1790000000"), ("_d", "1"), ("email", "a@b"))),
    "a": ((("_p", "x"), ("_n", "me@example.com")),),
    BATCH: ((),),
}
"""Call → queries of real clients, for an installation that has seen none of its own yet."""

_WHO = "&_p=Qm9yZWFzLU5vdHVzLVplcGh5cnVz&_t=1790000000&_d=1 https://www.example.com/"
LINES = (
    "s?Plan=Gold" + _WHO,
    "a?_n=me%40example.com" + _WHO,
    "e?Viewed%20URL=https%3A%2F%2Fwww.example.com%2Ftea%3Fa%3D1&Referrer=Direct&_n=Page%20View" + _WHO + "tea?a=1",
    "e?Product=Teapot&Price=19.90&Order%20ID=A-17&_n=Purchased" + _WHO + "checkout/thanks?order=A-17&utm_source=news",
    "e?Search=" + "blue%20teapot%20with%20a%20lid%20" * 12 + "&_n=Searched" + _WHO + "search?q=teapot",
    "e?" + "&".join(f"Item%20{n}=Teapot%20No%20{n}" for n in range(90)) + "&_n=Added%20to%20Cart" + _WHO + "cart",
)
"""What the script sends as an image, in base64url, where it can send nothing else: short, usual and long."""


class Part(NamedTuple):
    """A part of an address: the setting that says what it is, and what it says."""

    setting: str
    """"prefix", "script", "endpoints.e", "parameters._n", …"""
    found: str


class Address(NamedTuple):
    """One address on the site's own host."""

    prefix: Part
    name: Part
    """Of the endpoint or the script."""
    query: tuple[tuple[Part, str], ...] = ()
    """Parameters as they are written, and their values."""
    line: str = ""
    """In place of a query: a line of the script's."""

    def target(self, instead: Mapping[Part, str] | None = None) -> str:
        """Path and query; `instead`: other words for parts."""
        words = instead or {}
        query = self.line and in_base64url(self.line)
        query = query or "&".join(
            f"{quote(words.get(part, part.found), safe='')}={quote(value, safe='')}" for part, value in self.query
        )
        return self._path(words) + ("?" + query if query else "")

    def shown(self) -> str:
        """The same for people: no value of a visitor's is in it."""
        query = "…" if self.line else "&".join(f"{quote(part.found, safe='')}=…" for part, _ in self.query)
        return self._path({}) + ("?" + query if query else "")

    def parts(self) -> tuple[Part, ...]:
        """Those that may have another word, the likeliest to be matched first."""
        path = (self.name, self.prefix) if self.prefix.found else (self.name,)
        return path + tuple(part for part, _ in self.query)

    def _path(self, words: Mapping[Part, str]) -> str:
        name = words.get(self.name, self.name.found) + (".js" if self.name.setting == "script" else "")
        return f"{words.get(self.prefix, self.prefix.found)}/{name}"


def addresses(config: CollectorConfig, seen: Mapping[str, tuple[PAIRS, ...]] | None = None) -> Iterator[Address]:
    """Every address; `seen`: call → queries beside the typical ones."""
    spellings = _spellings(config)
    for path in config.prefixes:
        prefix = Part("prefix", path)
        for name in config.script.names:
            yield Address(prefix, Part("script", name))
        for call in (*KINDS, BATCH):
            queries = dict.fromkeys(
                tuple((Part(f"parameters.{name}", spell(name)), value) for name, value in pairs)
                for pairs in TYPICAL[call] + (seen or {}).get(call, ())
                for spell in spellings
            )
            for name in (call, *config.endpoints.get(call, ())):
                endpoint = Part(f"endpoints.{call}", name)
                yield Address(prefix, endpoint)
                yield from (Address(prefix, endpoint, query) for query in queries if query)
                yield from (Address(prefix, endpoint, line=line) for line in LINES if call == BATCH)


def in_base64url(text: str) -> str:
    """As the script and a mark's names have it: without padding."""
    return base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode("ascii").rstrip("=")


class _Spelling(msgspec.Struct, frozen=True):
    """How names are written."""

    aliases: Mapping[str, str]
    mark: str = ""

    def __call__(self, name: str) -> str:
        if name in self.aliases:
            return self.aliases[name]
        return self.mark + in_base64url(name) if self.mark else name


def _spellings(config: CollectorConfig) -> list[_Spelling]:
    """By the API's own names, by the current aliases, and by mark: each is what some page may write."""
    aliases = {name: names[0] for name, names in config.parameters.items() if name != ANY and names}
    spellings = [_Spelling({})]
    if aliases:
        spellings.append(_Spelling(aliases))
    return spellings + [_Spelling(aliases, mark) for mark in config.parameters.get(ANY, ())[:1]]
