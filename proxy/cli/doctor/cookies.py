"""Does a new visitor get an identity, does it come back, and does no cache answer in our place?

The beacons have no name (`_n`), so they end as `no_name` and reach no vendor.
"""

from collections.abc import Iterator

from proxy.cli.doctor.finding import Finding, ok, skipped, wrong
from proxy.cli.doctor.installation import Asked, Installation, nonce
from proxy.collector.collect import Collector
from proxy.collector.identity import ANONYMOUS
from proxy.outcome import Outcome

NAME = ANONYMOUS.decode()


def look(installation: Installation) -> Iterator[Finding]:
    if installation.outside:
        yield skipped(installation.outside)
        return
    if not installation.settings.identity:
        yield skipped("the proxy sets none (setting identity is off)")
        return
    first, second = f"doctor={nonce()}", f"doctor={nonce()}"
    new = installation.beacon(first)
    given = cookie_of(new)
    if not given:
        yield none_given(installation, new)
        return
    yield from attributes(given, installation.public[1], installation.url.startswith("https:"))
    value = given.partition(";")[0]
    back = cookie_of(installation.beacon(second, cookie=value))
    if back:
        yield wrong(
            f"{NAME} does not reach the proxy when it is sent back: each beacon is a new visitor's",
            'let nginx pass the Cookie header (no `proxy_set_header Cookie "";`), and the CDN, too',
        )
    else:
        yield ok(f"{NAME} is set, and taken when it is sent back")
    repeated = cookie_of(installation.beacon(first))
    if repeated == given or (not back and not cookie_of(installation.beacon(second))):
        yield wrong(
            "a cache answers in the proxy's place: those beacons never arrive"
            + (", and visitors share an identity" if repeated == given else ""),
            "no proxy_cache for this location (`proxy_cache off;`), and no rule of the CDN that ignores Cache-Control",
        )
    else:
        yield ok("no cache answers in the proxy's place")


def none_given(installation: Installation, new: Asked) -> Finding:
    """Why there is no cookie."""
    host = installation.public[1]
    if not Collector(installation.settings.collector()).site_name({b"host": host.encode("ascii", "replace")}):
        return wrong(
            f"{host} belongs to no site, and there is no top-level api_key: its beacons are dropped (unknown_host)",
            "add the host to sites.NAME.hosts, or set a top-level api_key",
        )
    outcome = new.headers.get("x-beacon-outcome", "").partition(";")[0]
    if new.status != 200:
        return wrong(
            f"a beacon without an identity is answered {new.status}", "see /readyz of the admin listener, and nginx's error log"
        )
    if outcome == Outcome.UNKNOWN_HOST:
        return wrong(
            "the proxy takes the public address for no site of its own, and drops its beacons (unknown_host)",
            "nginx: `proxy_set_header Host $host;`, and the host in sites.NAME.hosts",
        )
    if outcome and outcome not in ("no_name", "stored"):
        return skipped(f"the proxy drops our beacon ({outcome}), so none is set; with --site-url it comes from that page")
    return wrong(
        f"no {NAME} cookie comes with the answer to a new visitor",
        "nginx or the CDN strips Set-Cookie (`proxy_hide_header Set-Cookie`), or answers from a cache; or our beacon was dropped "
        "by `origins` or consent (set debug_token to be told)",
    )


def cookie_of(asked: Asked) -> str:
    """The Set-Cookie value; "" if there is none."""
    return next((value for value in asked.headers.get_list("set-cookie") if value.startswith(f"{NAME}=")), "")


def attributes(cookie: str, host: str, https: bool) -> Iterator[Finding]:
    """Whether browsers take it, and keep it."""
    told = {name.strip().lower(): value.strip() for name, _, value in (part.partition("=") for part in cookie.split(";")[1:])}
    domain = told.get("domain", "").lstrip(".").lower()
    if domain and host.lower() != domain and not host.lower().endswith(f".{domain}"):
        yield wrong(
            f"{NAME} is for {domain}, which {host} is not part of: browsers throw it away",
            f"set cookie_domain to {host}, to a domain above it, or to nothing",
        )
    if https and "secure" not in told:
        yield wrong(
            f"{NAME} is not Secure though the visitor comes by https",
            "nginx: `proxy_set_header X-Forwarded-Proto $scheme;`, and its address in trusted_proxies",
        )
    if "max-age" not in told:
        yield wrong(
            f"{NAME} ends with the browser's session (no Max-Age)",
            "something between rewrites it: look at nginx's proxy_cookie_flags",
        )
