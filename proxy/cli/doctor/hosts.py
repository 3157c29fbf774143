"""Is the beacon host a part of the site, as browsers see it?

WebKit keeps cookies for seven days only if the host that sets them is a CNAME to another site, or has an address whose first half
is not that of the site's (WebKit#5347; IPv4 /16, IPv6 /64).
"""

import ipaddress
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from proxy.cli.doctor.finding import Finding, ok, skipped, warning
from proxy.cli.doctor.installation import Installation, addresses

SHORT_LABEL = 3
"""A second-level domain such as co.uk: the registrable one has a label more."""


def look(installation: Installation) -> Iterator[Finding]:
    if not installation.url:
        yield skipped(installation.outside)
        return
    host = installation.public[1]
    yield canonical(host, _canonical_name(host))
    site = urlsplit(installation.site_url).hostname
    if site is None:
        yield skipped("whether it has the site's address: no --site-url was given")
    else:
        yield compared(host, addresses(host), site, addresses(site))


def canonical(host: str, name: str) -> Finding:
    """`name`: what DNS says the host is called."""
    if name and _is_name(name) and _is_name(host) and "." in name and registrable(name) != registrable(host):
        return warning(
            f"{host} is another name (CNAME) for {name}, of another domain: browsers cap its cookies, blockers look through it",
            "give it an address record of its own, or serve the beacons under the site's own host",
        )
    return ok(f"{host} is no other domain's name")


def compared(host: str, found: list[str], site: str, of_site: list[str]) -> Finding:
    """Whether they share the first half of an address."""
    if host == site:
        return ok("the beacons go to the site's own host")
    if not found or not of_site:
        return skipped(f"{site if found else host} does not resolve here")
    if registrable(host) != registrable(site):
        return warning(
            f"{host} is of another domain than {site}: browsers treat its cookies as a third party's",
            "use a host of the site's domain",
        )
    if {_half(address) for address in found} & {_half(address) for address in of_site}:
        return ok(f"{host} lies where {site} lies")
    return warning(
        f"{host} ({', '.join(found)}) and {site} ({', '.join(of_site)}) have no network in common: "
        "Safari keeps the cookie for 7 days only",
        "serve the beacons under the site's own host, through the same front end",
    )


def registrable(host: str) -> str:
    """The domain that somebody registered, as well as can be told without a list of public suffixes."""
    labels = host.rstrip(".").lower().split(".")
    return ".".join(labels[-3:] if len(labels) > 2 and len(labels[-2]) <= SHORT_LABEL and len(labels[-1]) == 2 else labels[-2:])


def _half(address: str) -> str:
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(ipaddress.ip_network((found, 16 if found.version == 4 else 64), strict=False))


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _canonical_name(host: str) -> str:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)[0][3].rstrip(".")
    except (OSError, UnicodeError):
        return ""
