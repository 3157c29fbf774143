"""Does the admin listener answer where it should?"""

from collections.abc import Iterator

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, wrong
from proxy.cli.doctor.installation import Installation


def look(installation: Installation) -> Iterator[Finding]:
    url = installation.admin_url()
    if not url:
        yield skipped("its port is not known (admin_port is 0: a free one is taken)")
        return
    try:
        health = installation.ask(f"{url}/healthz")
    except httpx.HTTPError as error:
        yield wrong(
            f"nothing answers at {url}: {error or type(error).__name__}",
            "start `beacon-proxy serve`, or run doctor with the service's settings (admin_host, admin_port)",
        )
        return
    if (health.status, health.body) != (200, b"alive\n"):
        yield wrong(
            f"{url}/healthz answers {health.status}, not as ours does", "another program has the port: choose another admin_port"
        )
        return
    ready = installation.ask(f"{url}/readyz")
    if ready.status == 200:
        yield ok(f"{url} answers: alive, and ready to take beacons")
    else:
        reason = ready.body.decode("utf-8", "replace").strip()[:300]
        yield wrong(f"{url}/readyz answers {ready.status}: {reason}", "beacons are refused until this is mended")
