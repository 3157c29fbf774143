"""What the mover's process needs to know: no key."""

import msgspec

from proxy.spool.port import SpoolConfig


class MoverConfig(msgspec.Struct, frozen=True):
    """The mover's part of the settings."""

    spool: SpoolConfig
    log_level: str = "info"
    log_format: str = "auto"
