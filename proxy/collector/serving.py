"""The browser script, served under the prefixes: cached by browsers for an hour, then asked for again by its ETag."""

from functools import lru_cache
from typing import NamedTuple

from proxy import __version__
from proxy.collector.collect import Headers as Asked
from proxy.collector.config import SCRIPT_EVENTS, CollectorConfig, SiteRules
from proxy.collector.pixel import Headers
from proxy.hit import BATCH
from proxy.script import Script, make

MAX_AGE_S = 3600
"""For so long a browser may use a script without asking; changed settings reach every page after it."""


class Served(NamedTuple):
    """An answer, for either edge."""

    status: int
    headers: Headers
    body: bytes


def script_of(config: CollectorConfig, site: str) -> Script:
    """The script as that site's pages get it."""
    settings = {
        "b": (*config.endpoints.get(BATCH, ()), BATCH)[0],
        "g": int(config.consent.gpc),
        "n": int(config.consent.dnt),
        "o": config.consent.opt_out_cookie,
        "r": config.consent.consent_cookie,
        "d": config.sites.get(site, SiteRules()).cookie_domain,
        "i": int(config.identity),
        "u": [SCRIPT_EVENTS[event] for event in config.script.events],
    }
    return make({name: value for name, value in settings.items() if value}, config.script.beside_vendor)


class Scripts:
    """The script's paths, and what is answered there."""

    def __init__(self, config: CollectorConfig) -> None:
        self.paths = frozenset(f"{prefix}/{name}.js" for prefix in config.prefixes for name in config.script.names)
        self._of = lru_cache(256)(lambda site: script_of(config, site))

    def answer(self, method: str, site: str, asked: Asked) -> Served:
        """`asked`: the request's headers."""
        if method not in ("GET", "HEAD"):
            return Served(405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")], b"")
        script = self._of(site)
        headers: Headers = [
            (b"etag", script.etag),
            (b"cache-control", b"public, max-age=%d" % MAX_AGE_S),
            (b"vary", b"Accept-Encoding"),
        ]
        known = [tag.strip().removeprefix(b"W/") for tag in asked.get(b"if-none-match", b"").split(b",")]
        if script.etag.removeprefix(b"W/") in known or b"*" in known:
            return Served(304, headers, b"")
        body = script.body
        if _takes_gzip(asked.get(b"accept-encoding", b"")):
            body = script.gzipped
            headers.append((b"content-encoding", b"gzip"))
        headers += [
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"x-content-type-options", b"nosniff"),
            (b"access-control-allow-origin", b"*"),  # a page of another host can check the integrity only of what it may read
            (b"x-version", __version__.encode("ascii")),
        ]
        return Served(200, headers, body if method == "GET" else b"")


def _takes_gzip(accepted: bytes) -> bool:
    """RFC 9110, section 12.5.3; "*" is not taken for it."""
    for coding in accepted.lower().split(b","):
        name, _, weight = coding.partition(b";")
        if name.strip() == b"gzip":
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False
