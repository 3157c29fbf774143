"""Which enrichers run, and how. Plain data: it travels to the forwarder's process."""

import msgspec

DEFAULT = ("page", "search", "campaign", "client", "language", "bot")


class EnrichConfig(msgspec.Struct, frozen=True):
    """The enrichment part of the settings."""

    enrichers: tuple[str, ...] = DEFAULT
    """Names of ENRICHERS or of entry points, in any order; each at most once."""
    rename: dict[str, str] = {}
    """An enricher's property name → the name to send; "" leaves the property out."""
    bots: str = "flag"
    """"flag", "drop" or "ignore"."""
    geo_database: str = ""
    """A MaxMind-format file; "" for none."""
