"""What a forwarder needs to know. The API key lives here; it travels to the forwarder's process only, and shows in no repr."""

import msgspec

from proxy.delivery import Policy
from proxy.enrich.config import EnrichConfig
from proxy.spool.port import SpoolConfig


class CannotTrace(Exception):
    """Traces are asked for and cannot be told; the message says what to do."""


class Site(msgspec.Struct, frozen=True):
    """Where a site's beacons go, and under which key."""

    upstream: str
    """Base URL without a trailing slash."""
    api_key: str

    def __repr__(self) -> str:
        return f"Site(upstream={self.upstream!r}, api_key='***')"


class ForwarderConfig(msgspec.Struct, frozen=True):
    """The forwarder's part of the settings."""

    spool: SpoolConfig
    sites: dict[str, Site]
    engine: str = "pyreqwest"
    concurrency: int = 128
    attempt_timeout_s: float = 10.0
    policy: Policy = Policy()
    address_property: str = ""
    enrich: EnrichConfig = EnrichConfig()
    trace_ratio: float = 0.0
    """Share of beacons of which traces are told; 0: none."""
    log_level: str = "info"
    log_format: str = "auto"
    shutdown_grace_s: float = 10.0
