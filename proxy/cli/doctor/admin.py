"""Does the admin listener answer where it should? It is `serve`'s: elsewhere the spool is asked what it would say."""

from collections.abc import Iterator

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, wrong
from proxy.cli.doctor.installation import Installation
from proxy.cli.options import Runs
from proxy.spool import unready

REFUSED = "beacons are refused until this is mended"


def look(installation: Installation) -> Iterator[Finding]:
    if installation.runs is not Runs.SERVE:
        yield _without(installation)
        return
    url = installation.admin_url()
    if not url:
        yield skipped("its port is not known (admin_port is 0: a free one is taken)")
        return
    try:
        health = installation.ask(f"{url}/healthz")
    except httpx.HTTPError as error:
        yield wrong(
            f"nothing answers at {url}: {error or type(error).__name__}",
            "start `beacon-proxy serve`, or run doctor with the service's settings (admin_host, admin_port); on a host "
            "with `forward` alone, or with the application inside another server: doctor --runs forward, or app",
        )
        return
    if (health.status, health.body) != (200, b"alive\n"):
        yield wrong(
            f"{url}/healthz answers {health.status}, not as ours does", "another program has the port: choose another admin_port"
        )
        return
    ready = installation.ask(f"{url}/readyz")
    said = ready.body.decode("utf-8", "replace").strip()[:300]
    if ready.status == 200:
        yield ok(f"{url} answers: alive, and {said}")
    else:
        yield wrong(f"{url}/readyz answers {ready.status}: {said}", REFUSED)


def _without(installation: Installation) -> Finding:
    if installation.runs is Runs.FORWARD:
        return skipped("`forward` has none")
    if reason := unready(installation.spool):
        return wrong(f"the application cannot take beacons: {reason}", REFUSED)
    return ok("an application has none; the spool is ready to take beacons")
