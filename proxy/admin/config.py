"""What the admin process needs to know: no key."""

import msgspec

from proxy.spool.port import SpoolConfig


class AdminConfig(msgspec.Struct, frozen=True):
    """The admin listener's part of the settings."""

    spool: SpoolConfig
    sites: tuple[str, ...] = ()
    """Their names: a counter is there, with 0, before there is anything to count."""
    log_level: str = "info"
    log_format: str = "auto"
