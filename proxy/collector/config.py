"""What a collector process needs to know: no key, no upstream. It travels as JSON to the process, so it is plain data."""

import msgspec

from proxy.spool.port import SpoolConfig


class ConsentRules(msgspec.Struct, frozen=True):
    """Whose beacons are forgotten."""

    gpc: bool = True
    dnt: bool = False
    opt_out_cookie: str = ""
    consent_cookie: str = ""


class SiteRules(msgspec.Struct, frozen=True):
    """What differs from site to site."""

    origins: tuple[str, ...] = ()
    cookie_domain: str = ""


class CollectorConfig(msgspec.Struct, frozen=True):
    """The collector's part of the settings."""

    spool: SpoolConfig
    prefix: str = ""
    """Path before /e, /s and /a: "" or "/x/y"."""
    hosts: dict[str, str] = {}
    """Host name, or "*.example.com" for every name below it → site. Lower case."""
    default_site: bool = True
    """Whether a host that is in no site belongs to the default site."""
    sites: dict[str, SiteRules] = {}
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) whose forwarding headers are believed."""
    identity: bool = True
    """Whether cookies name the person when the page does not."""
    cookie_http_only: bool = False
    consent: ConsentRules = ConsentRules()
    missing_origin: bool = True
    """Whether a request without Origin and Referer passes a site's allow-list."""
    addresses: str = "keep"
    """"keep", "truncate" or "forget": applied before storing."""
    redact: tuple[str, ...] = ()
    mask_personal: bool = False
    rate_limit: int = 0
    """Beacons per address and minute; 0 is no limit."""
    debug_token: str = ""
    traces: bool = False
    """Whether a request's `traceparent` is kept."""
    log_level: str = "info"
    log_format: str = "auto"
    shutdown_grace_s: float = 10.0

    def __repr__(self) -> str:
        return "CollectorConfig(…)"
