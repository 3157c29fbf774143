"""Enrichment: what the proxy knows of a beacon and the browser did not say. Pure functions of (Beacon, Hit).

An enricher is one file here and one entry in ENRICHERS; nothing else knows it. What the page sent always wins: only blanks are
filled. No clock, no network, no chance, so that a resend is byte-identical.
"""

from collections.abc import Callable, Mapping

from proxy.beacon import MAX_VALUE, Beacon, fold
from proxy.enrich.campaign import campaign
from proxy.enrich.page import page
from proxy.hit import Hit

Enricher = Callable[[Beacon, Hit], Mapping[str, str]]

ENRICHERS: tuple[Enricher, ...] = (page, campaign)
"""In order: an earlier enricher's property is not overwritten by a later one's."""


def enrich(beacon: Beacon, hit: Hit, enrichers: tuple[Enricher, ...] = ENRICHERS) -> dict[str, str]:
    """The beacon's properties with the blanks filled in. Only events are enriched; a set or an alias goes as it came."""
    properties = dict(beacon.properties)
    if beacon.kind != "e":
        return properties
    taken = {fold(name) for name, value in properties.items()}
    for enricher in enrichers:
        for name, value in enricher(beacon, hit).items():
            if value and fold(name) not in taken:
                taken.add(fold(name))
                properties[name] = value[:MAX_VALUE]
    return properties
