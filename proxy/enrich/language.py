"""The language the visitor prefers, from Accept-Language (RFC 9110, section 12.5.4)."""

import re
from functools import lru_cache

from proxy.beacon import Beacon
from proxy.hit import Hit

_RANGE = re.compile(r"\s*([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8}){0,3})\s*(?:;\s*[qQ]=([01](?:\.\d{0,3})?))?\s*")


def language(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """`Language`: the tag with the highest weight, the first of equals, such as "de-CH"."""
    return _language(hit.language) if hit.language else {}


@lru_cache(1024)
def _language(header: str) -> dict[str, str]:
    best, weight = "", 0.0
    for part in header.split(",")[:20]:
        found = _RANGE.fullmatch(part)
        if found and float(found[2] or 1) > weight:
            best, weight = found[1], float(found[2] or 1)
    return {"Language": best} if best else {}
