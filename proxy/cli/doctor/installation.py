"""What is examined: the settings, the public address, and how to ask through it. One reading of options for all checks."""

import ipaddress
import secrets
import socket
import ssl
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from proxy import __version__
from proxy.cli.options import Runs
from proxy.collector.debug import DEBUG_HEADER
from proxy.settings import Settings
from proxy.spool.port import SpoolConfig

PATIENCE_S = 4.0
"""For one request."""
OWN_LOOPBACK = "127.9.9.9"
"""Where a request to this machine comes from, so that it is not taken for the proxy's (127.0.0.1)."""
BODY_BYTES = 65_536
"""No more is read of any answer."""


class Asked(NamedTuple):
    """An answer, and what is known of its connection."""

    status: int
    headers: httpx.Headers
    body: bytes
    clock_off_s: float | None
    """Its Date less this machine's time; None without a Date."""
    certificate_days: float | None
    """Until it expires; None for plain HTTP."""
    own_address: str
    """This end of the connection."""


class Installation:
    """The patient."""

    def __init__(
        self,
        settings: Settings,
        url: str = "",
        site_url: str = "",
        ca: Path | None = None,
        canary: str = "",
        runs: Runs = Runs.SERVE,
    ) -> None:
        self.settings = settings
        self.runs = runs
        self.url = url
        self.site_url = site_url
        self.canary = canary
        self.spool: SpoolConfig = settings.spool_config()
        self.away = ""
        """Why the spool cannot be asked; "" if it can."""
        self.outside = ""
        """Why nothing can be asked through the public address; "" if it can."""
        if not url:
            self.outside = "no --url was given: the public address as browsers see it, such as https://www.shop.example/x7"
        self._tls = httpx.create_ssl_context()
        if ca is not None:
            self._tls.load_verify_locations(ca)

    @property
    def delivers(self) -> bool:
        """Whether a forwarder runs on this host: it needs the key, and reaches the vendor."""
        if self.runs is Runs.APP:
            return self.settings.embedded_forwarder
        return self.runs is Runs.FORWARD or self.settings.forward

    @property
    def directory(self) -> Path | None:
        """Where beacons wait on this host: the spool's, or the fallback's; None if nowhere on a disk."""
        scheme, _, place = (self.spool.fallback or self.spool.url).partition(":")
        return Path(place) if scheme == "sqlite" else None

    @property
    def public(self) -> tuple[str, str]:
        """Origin and host of the public address."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}", parts.hostname or ""

    def upstreams(self) -> list[str]:
        """Those that this host delivers to, each once."""
        if not self.delivers:
            return []
        sites = [site.upstream for site in self.settings.sites.values() if site.upstream is not None]
        return list(dict.fromkeys([self.settings.upstream, *sites]))

    def admin_url(self) -> str:
        """Where the admin listener answers on this machine; "" if its port is not known."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.admin_host, self.settings.admin_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.admin_port}" if self.settings.admin_port else ""

    def ask(
        self,
        url: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        local: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Asked:
        """Ask anything, straight (as the forwarder does) and without following. Raises httpx.HTTPError."""
        transport = httpx.HTTPTransport(verify=self._tls, local_address=local, retries=0)
        with httpx.Client(
            transport=transport, timeout=patience_s, headers={"user-agent": f"beacon-proxy-doctor/{__version__}"}
        ) as client:
            asked_at = time.time()
            with client.stream(method, url, headers=headers) as answer:
                middle = (asked_at + time.time()) / 2
                stream: Any = answer.extensions["network_stream"]
                tls, own = stream.get_extra_info("ssl_object"), stream.get_extra_info("client_addr")
                body = b""
                for chunk in answer.iter_raw():
                    body += chunk
                    if len(body) > BODY_BYTES:
                        break
                return Asked(
                    answer.status_code,
                    answer.headers,
                    body,
                    _clock_off(answer.headers, middle),
                    _days(tls),
                    own[0] if own else "",
                )

    def beacon(self, query: str, headers: dict[str, str] | None = None, cookie: str = "", kind: str = "e") -> Asked:
        """Ask through the public address as a page of the site does. Without `_n` in the query it reaches no vendor."""
        sent = {"origin": _origin(self.site_url or self.url), "referer": self.site_url or f"{self.public[0]}/"}
        cookies = "; ".join(part for part in (self._consent(), cookie) if part)
        if cookies:
            sent["cookie"] = cookies
        if self.token() and self.may_be_told():
            sent[DEBUG_HEADER.decode()] = self.token()
        local = OWN_LOOPBACK if any(address.startswith("127.") for address in addresses(self.public[1])) else None
        return self.ask(f"{self.url}/{kind}?{query}", headers={**sent, **(headers or {})}, local=local)

    def token(self) -> str:
        """The debug token; "" if none is set."""
        return self.settings.debug_token.get_secret_value() if self.settings.debug_token else ""

    def may_be_told(self) -> bool:
        """Whether the debug token may travel to the public address: not in the clear to another machine."""
        return self.url.startswith("https:") or all(is_here(address) for address in addresses(self.public[1]))

    def _consent(self) -> str:
        name, equals, value = self.settings.consent_cookie.partition("=")
        return f"{name}={value if equals else '1'}" if name else ""


def nonce() -> str:
    """What no cache has seen."""
    return secrets.token_hex(8)


def addresses(host: str) -> list[str]:
    """What the name resolves to; none if it does not."""
    try:
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError):
        return []


def is_here(address: str) -> bool:
    """Whether the address is this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.partition("%")[0], 0))
    except OSError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """127.0.0.0/8 or ::1."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _clock_off(headers: httpx.Headers, middle: float) -> float | None:
    """A Date is cut to the second: half a one is added."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(headers["date"]).timestamp() + 0.5 - middle
    except (KeyError, ValueError, OverflowError):
        return None


def _days(tls: Any) -> float | None:
    certificate = tls.getpeercert() if tls is not None else None
    return (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400 if certificate else None
