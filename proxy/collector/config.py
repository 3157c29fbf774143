"""What a collector process needs to know: no key, no upstream. It travels as JSON to the process, so it is plain data."""

import msgspec

from proxy.spool.port import SpoolConfig

SCRIPT_EVENTS = {
    "visited_site": "Visited Site",
    "page_view": "Page View",
    "search_engine": "Search Engine Hit",
    "ad_campaign": "Ad Campaign Hit",
}
"""What the script may record unasked: the setting's word and the event's name, as the vendor's library has it."""


class ConsentRules(msgspec.Struct, frozen=True):
    """Whose beacons are forgotten."""

    gpc: bool = True
    dnt: bool = False
    opt_out_cookie: str = ""
    consent_cookie: str = ""


class ScriptRules(msgspec.Struct, frozen=True):
    """The browser script: where it is served, and what it does."""

    names: tuple[str, ...] = ()
    """File names under the prefixes, without ".js"; none: no script is served."""
    events: tuple[str, ...] = ()
    """What it records unasked, of SCRIPT_EVENTS."""
    beside_vendor: bool = False
    """Whether the vendor's script is on the page as well and shares the queue."""


class SiteRules(msgspec.Struct, frozen=True):
    """What differs from site to site."""

    origins: tuple[str, ...] = ()
    cookie_domain: str = ""


class CollectorConfig(msgspec.Struct, frozen=True):
    """The collector's part of the settings."""

    spool: SpoolConfig
    prefixes: tuple[str, ...] = ("",)
    """Paths before /e, /s, /a and /b: "" or "/x/y"; the first is the current one."""
    endpoints: dict[str, tuple[str, ...]] = {}
    """"e", "s", "a" or "b" → its other names under the prefixes, the current one first."""
    parameters: dict[str, tuple[str, ...]] = {}
    """A parameter's name → its other names in requests, the current one first; "*" → marks before names in base64url."""
    script: ScriptRules = ScriptRules()
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
