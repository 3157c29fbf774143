"""Enrichment: what the proxy knows of a beacon and the browser did not say. Pure functions of (Beacon, Hit).

An enricher is one file here and one line in ENRICHERS, or an entry point of the operator's own package. What the page sent
always wins: only blanks are filled. No clock, no network, no chance, so that a resend is byte-identical.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module

from proxy.beacon import MAX_NAME, MAX_VALUE, Beacon, fold, plain_name, reserved_name
from proxy.enrich.config import DEFAULT, EnrichConfig
from proxy.hit import Hit

__all__ = ["DEFAULT", "ENRICHERS", "Enricher", "EnricherError", "Enrichment", "load", "own_enrichers"]

Enricher = Callable[[Beacon, Hit], Mapping[str, str]]
"""(the beacon, the facts of its request) → properties to fill in. Must always give the same for the same."""

ENRICHERS = {
    "page": "proxy.enrich.page:page",
    "search": "proxy.enrich.search:search",
    "campaign": "proxy.enrich.campaign:campaign",
    "clicks": "proxy.enrich.campaign:clicks",
    "client": "proxy.enrich.client:client",
    "language": "proxy.enrich.language:language",
    "bot": "proxy.enrich.bot:bot",
    "geo": "proxy.enrich.geo:Geo",
}
"""In this order; an earlier one's property is not overwritten by a later one's. Imported only where it is used."""

GROUP = "beacon_proxy.enrichers"
"""The entry-point group of enrichers from elsewhere."""


class EnricherError(Exception):
    """An enricher cannot be had; the message says which, and what to do."""


def own_enrichers() -> list[str]:
    """The names of enrichers that installed packages bring."""
    from importlib.metadata import entry_points

    return sorted(point.name for point in entry_points(group=GROUP))


def load(config: EnrichConfig) -> "Enrichment":
    """The enrichers that the configuration names. Raises EnricherError."""
    loaded: list[Enricher] = []
    wanted = {*config.enrichers, *(["geo"] if config.geo_database else [])}
    for name in [*(name for name in ENRICHERS if name in wanted), *sorted(wanted - ENRICHERS.keys())]:
        if name == "bot" and config.bots != "flag":
            continue
        loaded.append(_load(name, config))
    return Enrichment(tuple(loaded), config.rename)


def _load(name: str, config: EnrichConfig) -> Enricher:
    try:
        if name in ENRICHERS:
            path, _, attribute = ENRICHERS[name].partition(":")
            module = import_module(path)
            if hasattr(module, "engine"):
                module.engine()
            found = getattr(module, attribute)
            return found(config.geo_database) if name == "geo" else found  # type: ignore[no-any-return]
        from importlib.metadata import entry_points  # slow to load, and most have no use for it

        points = entry_points(group=GROUP, name=name)
        if not points:
            raise EnricherError(f"enrichers: found {name!r}; expected {', '.join(ENRICHERS)} or an entry point in {GROUP}")
        return next(iter(points)).load()  # type: ignore[no-any-return]
    except (ImportError, OSError, ValueError) as error:
        raise EnricherError(f"enrichers: {name} cannot be loaded: {error}") from None


class Enrichment:
    """The enrichers of one configuration."""

    def __init__(self, enrichers: tuple[Enricher, ...], rename: Mapping[str, str] | None = None) -> None:
        self._enrichers = enrichers
        self._rename = {fold(name): to for name, to in (rename or {}).items()}  # environment variables are upper case

    def fill(self, beacon: Beacon, hit: Hit) -> dict[str, str]:
        """The beacon's properties with the blanks filled in. Only events are enriched; a set or an alias goes as it came."""
        properties = dict(beacon.properties)
        if beacon.kind != "e" or not self._enrichers:
            return properties
        taken = {fold(name) for name in properties}
        for enricher in self._enrichers:
            for name, value in enricher(beacon, hit).items():
                if self._rename:
                    name = self._rename.get(fold(name), name)
                if value and name and (folded := fold(name)) not in taken and not _owned(name):
                    taken.add(folded)
                    properties[name] = value[:MAX_VALUE]
        return properties


@lru_cache(1024)
def _owned(name: str) -> bool:
    """An enricher from elsewhere may not speak for the API either."""
    return len(name) > MAX_NAME or reserved_name(name) is not None or not plain_name(name)
