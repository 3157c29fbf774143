"""What pages really send: the queries of hits in the spool, and those that the user names, each set of names once. Values are for
the check, and never shown."""

import string
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote

from proxy.collector.aliases import Aliases
from proxy.collector.config import CollectorConfig
from proxy.hit import Hit
from proxy.lists.addresses import PAIRS

MOST = 300
"""Sets of names that are checked."""
MOST_CHARACTERS, MOST_PARAMETERS = 2000, 50
"""Of a query: what a page sends by an address fits, and nobody's flood makes the check long."""


def queries(hits: Iterable[Hit]) -> dict[str, tuple[PAIRS, ...]]:
    """Call → its queries. A body is no part of an address, so what came in one is left out."""
    found: dict[tuple[str, tuple[str, ...]], PAIRS] = {}
    for hit in hits:
        pairs = tuple(parse_qsl(hit.query[:MOST_CHARACTERS].decode("latin-1"), keep_blank_values=True, encoding="utf-8"))
        if pairs and len(found) < MOST:
            pairs = pairs[:MOST_PARAMETERS]
            found.setdefault((hit.kind, tuple(name for name, _ in pairs)), pairs)
    by_call: dict[str, tuple[PAIRS, ...]] = {}
    for (call, _), pairs in found.items():
        by_call[call] = (*by_call.get(call, ()), pairs)
    return by_call


def event(query: str, config: CollectorConfig) -> Hit:
    """An event with that query, as the spool would hold it."""
    raw = quote(query.removeprefix("?"), safe=string.punctuation, errors="replace").encode("ascii")
    return Hit("e", Aliases(config.parameters).query(raw), b"", "", "", "", "", "", "", 0)
