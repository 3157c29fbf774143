"""What a collector process needs to know: no key, no upstream. It travels as JSON to the process, so it is plain data."""

import msgspec

from proxy.spool.port import SpoolConfig


class CollectorConfig(msgspec.Struct, frozen=True):
    """The collector's part of the settings."""

    spool: SpoolConfig
    prefix: str = ""
    """Path before /e, /s and /a: "" or "/x/y"."""
    hosts: dict[str, str] = {}
    """Host name, or "*.example.com" for every name below it → site. Lower case."""
    default_site: bool = True
    """Whether a host that is in no site belongs to the default site."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed."""
    log_level: str = "info"
    shutdown_grace_s: float = 10.0
