"""Does the vendor answer? Asked without any key, and nothing is recorded: any answer counts."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation, addresses, is_loopback

SOON_DAYS = 14


def look(installation: Installation) -> Iterator[Finding]:
    if not installation.delivers:
        yield skipped("no forwarder runs on this host: it need not reach the vendor")
    for url in installation.upstreams():
        try:
            asked = installation.ask(f"{url}/", "HEAD")
        except httpx.HTTPError as error:
            yield wrong(
                f"{url} does not answer: {error or type(error).__name__}; beacons wait in the spool meanwhile",
                "look at the setting upstream, at DNS and at the firewall: this machine must reach it directly, without a proxy",
            )
            continue
        yield ok(f"{url} answers ({asked.status})")
        if asked.certificate_days is not None and asked.certificate_days < SOON_DAYS:
            yield warning(
                f"the certificate of {url} ends in {asked.certificate_days:.0f} days", "whoever runs it has to renew it"
            )
        host = urlsplit(url).hostname or ""
        if asked.certificate_days is None and not all(is_loopback(address) for address in addresses(host)):
            yield warning(
                f"{url} is asked without TLS: the key and the visitors' data go in the clear", "use https:// (setting upstream)"
            )
