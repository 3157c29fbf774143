"""collect(): one request's facts → a Hit to store, or the Outcome for which it is deliberately not stored.

Both edges call it. It copies; it does not interpret. What must not be stored is decided here, before anything is written.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from proxy.collector.address import TrustedProxies, forwarded_chain, truncated
from proxy.collector.aliases import Aliases
from proxy.collector.config import CollectorConfig, SiteRules
from proxy.collector.consent import objection
from proxy.collector.identity import (
    ALIASED,
    ANONYMOUS,
    RENEWABLE,
    cookie_maker,
    cookie_value,
    from_cookies,
    new_identity,
    says_person,
)
from proxy.collector.limit import AddressLimit
from proxy.collector.origins import AllowedOrigins
from proxy.collector.redact import Redaction
from proxy.collector.stamp import FARTHEST_MS, STAMP, Stamp, read_stamp
from proxy.hit import BATCH, DEFAULT_SITE, KINDS, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome

MAX_REFERER, MAX_USER_AGENT, MAX_LANGUAGE, MAX_HOST, MAX_HINTS = 4096, 1024, 256, 255, 1024
"""Characters kept of each header."""
MAX_PARAMETERS = 1000
"""Pairs in query and body; more is nobody's beacon."""

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

Headers = Mapping[bytes, bytes]
"""Lower-case names to values as received."""


class Collected(NamedTuple):
    """What became of a request."""

    site: str
    found: Hit | Outcome
    cookie: bytes = b""
    """A Set-Cookie value for the answer, or b""."""


class _Site(NamedTuple):
    """A site's rules, made ready."""

    name: str
    origins: AllowedOrigins | None
    domain: str


class Collector:
    """The rule for one configuration. Clock, addresses' counts and new identities aside, the same request always
    gives the same; of a stamped request, its time and a new identity too."""

    def __init__(self, config: CollectorConfig) -> None:
        self.paths: dict[str, str] = {
            f"{prefix}/{name}": call
            for prefix in config.prefixes
            for call in (*KINDS, BATCH)
            for name in (call, *config.endpoints.get(call, ()))
        }
        """Public path → kind, or BATCH."""
        self._hosts = config.hosts
        names = {DEFAULT_SITE, *config.hosts.values()}
        self._sites = {name: self._ready(name, config.sites.get(name, SiteRules()), config) for name in names}
        self._default = self._sites[DEFAULT_SITE] if config.default_site else None
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._site = lru_cache(maxsize=1024)(self._find_site) if config.hosts else lambda host: self._default
        self._consent = config.consent
        self._identity = config.identity
        self._cookies = {site.domain: cookie_maker(site.domain, config.cookie_http_only) for site in self._sites.values()}
        self._addresses = config.addresses
        self._traces = config.traces
        self._aliases = Aliases(config.parameters)
        self._redaction = Redaction(config.redact, config.mask_personal)
        self._limit = AddressLimit(config.rate_limit) if config.rate_limit else None

    def collect(
        self,
        kind: str,
        query: bytes,
        body: bytes,
        headers: Headers,
        peer: str,
        now_ms: int,
        https: bool = False,
        *,
        aliased: bool = True,
        page: bytes = b"",
        identity: str = "",
    ) -> Collected:
        """`peer` is the socket's address, "" for a Unix socket; `https`: the connection itself is. `aliased`: whether
        parameters may bear other names; `page`: the page that the beacon comes from, where it is not the Referer; `identity`:
        the one that this request was just given."""
        get = headers.get
        host = get(b"host", b"").decode("latin-1")
        site = self._site(host)
        if site is None:
            return Collected(DEFAULT_SITE, Outcome.UNKNOWN_HOST)
        refusal = self._refusal(query, body, headers, site)
        if refusal is not None:
            return Collected(site.name, refusal)
        if aliased and self._aliases.active:
            query, body = self._aliases.query(query), self._aliases.query(body)
            if len(query) + len(body) > MAX_BEACON_BYTES:  # names may be longer than their aliases
                return Collected(site.name, Outcome.TOO_LARGE)
        address = self._client(headers, peer)
        if self._limit is not None and self._limit.exceeded(address, now_ms):
            return Collected(site.name, Outcome.RATE_LIMITED)
        stamp = self._stamp(headers[STAMP], peer, now_ms) if STAMP in headers else None
        cookie = b""
        if not self._identity or says_person(query, body):
            identity = ""
        elif not identity:
            identity = from_cookies(get(b"cookie", b""))
            if not identity and kind != "a":
                identity = stamp.identity() if stamp is not None else new_identity()
                cookie = self._cookies[site.domain](ANONYMOUS, identity.encode("ascii"), self._secure(headers, peer, https))
        if self._addresses != "keep":
            address = truncated(address) if self._addresses == "truncate" else ""
        referer = (page or get(b"referer", b"")).decode("latin-1")
        if self._redaction.active:
            query, body, referer = self._redaction.query(query), self._redaction.query(body), self._redaction.url(referer)
        hints = get(b"sec-ch-ua")
        return Collected(
            site.name,
            Hit(
                kind,
                query,
                body,
                site.name,
                host[:MAX_HOST],
                address,
                get(b"user-agent", b"").decode("latin-1")[:MAX_USER_AGENT],
                referer[:MAX_REFERER],
                get(b"accept-language", b"").decode("latin-1")[:MAX_LANGUAGE],
                now_ms if stamp is None else stamp.at_ms,
                identity,
                _hints(hints, headers) if hints is not None else "",
                _trace(get(b"traceparent", b"")) if self._traces else "",
            ),
            cookie,
        )

    def site_name(self, headers: Headers) -> str | None:
        """The site whose host the request names; None if there is none."""
        site = self._site(headers.get(b"host", b"").decode("latin-1"))
        return site.name if site is not None else None

    def renewed(self, site: str, headers: Headers, peer: str, https: bool) -> list[bytes]:
        """Set-Cookie values that let the visitor's anonymous identity last, with the note that it was aliased; as they came.

        Browsers keep a cookie that a script has set for a week only (WebKit's tracking prevention), one from a server longer.
        The known identity is not renewed: the answer could overtake the page that clears it.
        """
        if not self._identity or b"km_a" not in headers.get(b"cookie", b""):
            return []
        values = [(name, cookie_value(headers[b"cookie"], name)) for name in (ANONYMOUS, ALIASED)]
        make, secure = self._cookies[self._sites[site].domain], self._secure(headers, peer, https)
        return [make(name, value, secure) for name, value in values if value is not None and RENEWABLE.fullmatch(value)]

    def allowed_origin(self, headers: Headers) -> bytes:
        """What to answer in Access-Control-Allow-Origin: the origin itself if the site's list has it, "*" where there is no list
        (never with credentials), b"" for nothing."""
        origin = headers.get(b"origin", b"")
        site = self._site(headers.get(b"host", b"").decode("latin-1"))
        if site is None:
            return b""
        if site.origins is None:
            return b"*"
        return origin if site.origins.names(origin.decode("latin-1").lower()) else b""

    def _refusal(self, query: bytes, body: bytes, headers: Headers, site: _Site) -> Outcome | None:
        if len(query) + len(body) > MAX_BEACON_BYTES:
            return Outcome.TOO_LARGE
        if query.count(b"&") + body.count(b"&") >= MAX_PARAMETERS:
            return Outcome.TOO_MANY
        if site.origins is not None and not site.origins.admits(headers):
            return Outcome.ORIGIN_DENIED
        return objection(self._consent, headers)

    def _client(self, headers: Headers, peer: str) -> str:
        forwarded_for = headers.get(b"x-forwarded-for")
        if forwarded_for is not None:
            return self._proxies.client(peer, forwarded_for.decode("latin-1"))
        forwarded = headers.get(b"forwarded")
        if forwarded is not None:
            return self._proxies.client(peer, forwarded_chain(forwarded.decode("latin-1")))
        return peer

    def _secure(self, headers: Headers, peer: str, https: bool) -> bool:
        """Whether the visitor's connection is https: this one, or by the word of a trusted proxy."""
        if https or b"x-forwarded-proto" not in headers:
            return https
        return self._proxies.trusts(peer) and headers[b"x-forwarded-proto"].split(b",")[-1].strip().lower() == b"https"

    def _stamp(self, value: bytes, peer: str, now_ms: int) -> Stamp | None:
        """None if it is nobody's whom we trust, or absurd."""
        stamp = read_stamp(value) if self._proxies.trusts(peer) else None
        return stamp if stamp is not None and abs(stamp.at_ms - now_ms) <= FARTHEST_MS else None

    @staticmethod
    def _ready(name: str, rules: SiteRules, config: CollectorConfig) -> _Site:
        return _Site(name, AllowedOrigins(rules.origins, config.missing_origin) if rules.origins else None, rules.cookie_domain)

    def _find_site(self, host: str) -> _Site | None:
        name = (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).rstrip(".").lower()
        if name in self._hosts:
            return self._sites[self._hosts[name]]
        parts = name.split(".")
        for i in range(1, min(len(parts), 16)):
            site = self._hosts.get("*." + ".".join(parts[i:]))
            if site:
                return self._sites[site]
        return self._default


def _trace(header: bytes) -> str:
    """A `traceparent` of version 00 (W3C Trace Context, section 3.2); "" for anything else."""
    match = _TRACEPARENT.fullmatch(header)
    return header.decode("ascii") if match and match[1].strip(b"0") and match[2].strip(b"0") else ""


def _hints(brands: bytes, headers: Headers) -> str:
    """The client hints that browsers send unasked, one a line: brands, mobile, platform."""
    mobile, platform = headers.get(b"sec-ch-ua-mobile", b""), headers.get(b"sec-ch-ua-platform", b"")
    return b"\n".join((brands, mobile, platform)).decode("latin-1")[:MAX_HINTS]
