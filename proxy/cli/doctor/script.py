"""Do pages get the browser script, and is it the one that the settings make?"""

from collections.abc import Iterator

from proxy.cli.doctor.finding import Finding, ok, skipped, wrong
from proxy.cli.doctor.installation import Asked, Installation
from proxy.collector.collect import Collector
from proxy.collector.serving import script_of
from proxy.hit import DEFAULT_SITE
from proxy.script import Script


def look(installation: Installation) -> Iterator[Finding]:
    if not installation.settings.script:
        yield skipped("no script is served (setting script)")
        return
    if installation.outside:
        yield skipped(installation.outside)
        return
    config = installation.settings.collector()
    site = Collector(config).site_name({b"host": installation.public[1].encode("ascii", "replace")}) or DEFAULT_SITE
    url = f"{installation.url}/{config.script.names[0]}.js"
    yield judge(url, installation.ask(url), script_of(config, site))


def judge(url: str, asked: Asked, expected: Script) -> Finding:
    """What is to be said of the answer."""
    if asked.status != 200 or "javascript" not in asked.headers.get("content-type", ""):
        return wrong(
            f"{url} answers {asked.status} {asked.headers.get('content-type', '')}: pages get no script",
            "nginx must hand on all of the prefix: make its file anew with `beacon-proxy snippet nginx`",
        )
    if asked.headers.get("etag", "").removeprefix("W/") != expected.etag.decode("ascii").removeprefix("W/"):
        return wrong(
            f"{url} is not the script that these settings make",
            "restart `beacon-proxy serve`, or SIGHUP; clear the CDN's copy; if pages have an integrity, paste it anew",
        )
    return ok(f"{url} is the script that these settings make")
