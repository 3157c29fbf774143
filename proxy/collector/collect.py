"""collect(): one request's facts → a Hit to store, or the Outcome for which it is deliberately not stored. Pure.

Both edges call it. It copies; it does not interpret. What must not be stored is decided here, before anything is written.
"""

from collections.abc import Mapping
from functools import lru_cache

from proxy.collector.address import TrustedProxies
from proxy.collector.config import CollectorConfig
from proxy.hit import DEFAULT_SITE, KINDS, MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome

MAX_REFERER, MAX_USER_AGENT, MAX_LANGUAGE, MAX_HOST = 4096, 1024, 256, 255
"""Characters kept of each header."""


class Collector:
    """The rule for one configuration."""

    def __init__(self, config: CollectorConfig) -> None:
        self.paths: dict[str, str] = {f"{config.prefix}/{kind}": kind for kind in KINDS}
        """Public path → kind."""
        self._hosts = config.hosts
        self._default = DEFAULT_SITE if config.default_site else ""
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._site = lru_cache(maxsize=1024)(self._find_site) if config.hosts else lambda host: self._default

    def site(self, host: str) -> str:
        """The site that a Host header names; "" if none."""
        return self._site(host)

    def collect(
        self, kind: str, query: bytes, body: bytes, headers: Mapping[bytes, bytes], peer: str, now_ms: int
    ) -> Hit | Outcome:
        """`headers` are lower-case names to values as received; `peer` is the socket's address, "" for a Unix socket."""
        if len(query) + len(body) > MAX_BEACON_BYTES:
            return Outcome.TOO_LARGE
        get = headers.get
        host = get(b"host", b"").decode("latin-1")
        site = self._site(host)
        if not site:
            return Outcome.UNKNOWN_HOST
        forwarded_for = get(b"x-forwarded-for")
        return Hit(
            kind,
            query,
            body,
            site,
            host[:MAX_HOST],
            self._proxies.client(peer, forwarded_for.decode("latin-1")) if forwarded_for is not None else peer,
            get(b"user-agent", b"").decode("latin-1")[:MAX_USER_AGENT],
            get(b"referer", b"").decode("latin-1")[:MAX_REFERER],
            get(b"accept-language", b"").decode("latin-1")[:MAX_LANGUAGE],
            now_ms,
        )

    def _find_site(self, host: str) -> str:
        name = (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).rstrip(".").lower()
        if name in self._hosts:
            return self._hosts[name]
        parts = name.split(".")
        for i in range(1, min(len(parts), 16)):
            site = self._hosts.get("*." + ".".join(parts[i:]))
            if site:
                return site
        return self._default
