"""Does the public address take beacons, as a browser asks: TLS, the right path, the GIF, and no cache?"""

import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Asked, Installation
from proxy.collector.pixel import GIF

SOON_DAYS = 14
OURS = ("pragma", "expires", "surrogate-control", "cdn-cache-control")
"""Headers of the proxy's GIF; nginx's fallback has none of them, and no CDN takes all of them away."""


def look(installation: Installation) -> Iterator[Finding]:
    if installation.outside:
        yield skipped(installation.outside)
        return
    url = f"{installation.url}/e"
    try:
        asked = installation.ask(url, "HEAD")
    except httpx.HTTPError as error:
        installation.outside = "the public address does not answer, see there"
        yield unreachable(url, error)
        return
    answered = answer(url, asked, " or ".join(filter(None, installation.settings.prefix)))
    if answered is not None:
        installation.outside = "the public address does not answer as ours, see there"
        yield answered
        return
    yield ok(f"{url} answers with the GIF")
    yield cacheable(asked)
    yield certificate(installation.url, asked.certificate_days)
    yield _plain(installation)


def unreachable(url: str, error: Exception) -> Finding:
    """No connection, or no trust."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return wrong(
            f"TLS of {url} is not valid: {error}; browsers refuse it",
            "install a certificate for this host and its chain in nginx; for an authority of your own, --ca FILE",
        )
    return wrong(f"{url} does not answer: {error or type(error).__name__}", "look at DNS, at nginx and at the firewall")


def answer(url: str, asked: Asked, prefix: str) -> Finding | None:
    """What is wrong with it; None if it is the GIF's."""
    if asked.status == 200 and asked.headers.get("content-length") == str(len(GIF)):
        if any(header in asked.headers for header in OURS):
            return None
        return wrong(
            f"{url} answers with a GIF that is not the proxy's: the web server gives its own while no collector answers",
            "start `beacon-proxy serve`, then `beacon-proxy ingest` the fallback log (docs/nginx.md); if it runs, "
            "nginx's upstream (beacon-http.conf) must name the port of the setting port",
        )
    if 300 <= asked.status < 400:
        return wrong(
            f"{url} answers {asked.status}, to {asked.headers.get('location', 'nowhere')}", "use the address it leads to"
        )
    if asked.status == 404:
        return wrong(
            f"{url} answers 404: no beacon is taken there",
            f"--url and nginx's location must end with the setting prefix, which is {prefix or 'empty'}",
        )
    if asked.status in (502, 503, 504):
        return wrong(
            f"{url} answers {asked.status}: nginx does not reach the proxy",
            "start `beacon-proxy serve`; nginx's proxy_pass must name its host and port",
        )
    return wrong(
        f"{url} answers {asked.status}, but not with the 43 bytes of the GIF: something else answers there",
        "look at nginx's location for this path",
    )


def cacheable(asked: Asked) -> Finding:
    """A cached pixel is a beacon that never arrives."""
    control = asked.headers.get("cache-control", "")
    if "no-store" not in control.lower():
        return wrong(
            f"cache-control: no-store does not come through (found {control or 'none'}): browsers and CDNs may keep the GIF",
            "take `expires`, `proxy_hide_header Cache-Control` and rules of the CDN away from this location",
        )
    return ok("every cache is told to keep nothing")


def certificate(url: str, days: float | None) -> Finding:
    """Days until it ends; None without TLS."""
    if days is None:
        return warning(
            f"{url} is no https: pages with https may not send there, and the cookie cannot be Secure", "give it TLS in nginx"
        )
    if days < SOON_DAYS:
        return warning(f"the certificate ends in {days:.0f} days", "renew it; see why it does not renew itself")
    return ok(f"TLS is valid, the certificate for {days:.0f} more days")


def _plain(installation: Installation) -> Finding:
    parts = urlsplit(installation.url)
    if parts.scheme != "https" or parts.port is not None:
        return skipped("what plain http does: only looked at for an https address without a port")
    url = f"http://{parts.netloc}{parts.path}/e"
    try:
        asked = installation.ask(url, "HEAD")
    except httpx.HTTPError:
        return ok("plain http does not answer")
    if 300 <= asked.status < 400:
        return ok(f"plain http is sent on ({asked.status})")
    if asked.status == 200:
        return warning(f"{url} takes beacons, too: a cookie set there is not Secure", "redirect http to https in nginx")
    return ok(f"plain http takes no beacons ({asked.status})")
