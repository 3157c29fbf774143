"""What the admin process needs to know: no key."""

import msgspec

from proxy.spool.port import SpoolConfig


class AdminConfig(msgspec.Struct, frozen=True):
    """The admin listener's part of the settings."""

    spool: SpoolConfig
    log_level: str = "info"
