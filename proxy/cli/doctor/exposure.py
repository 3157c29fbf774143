"""Is the admin listener kept from the public? What it shows is no secret of a visitor's, but it is nobody else's business."""

from collections.abc import Iterator

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation, addresses, is_here, is_loopback

SIGNS = {"/metrics": b"beacon_proxy_", "/readyz": b"", "/healthz": b"alive\n", "/": b'"oldest_pending_s"'}
FILTERED_S, MOST_ADDRESSES = 1.5, 4
"""A firewall that drops packets never answers."""
READY = (b"ready\n", b"ready; ")
UNREADY = (b"the spool", b"spool", b"no collector", b"the disk")


def look(installation: Installation) -> Iterator[Finding]:
    if installation.outside:
        yield skipped(installation.outside)
        return
    origin, host = installation.public
    exposed = []
    for base in dict.fromkeys((installation.url, origin)):
        for path in SIGNS:
            try:
                asked = installation.ask(f"{base}{path}")
            except httpx.HTTPError:
                continue
            if is_ours(path, asked.status, asked.body):
                exposed.append(f"{base}{path}")
    if exposed:
        yield wrong(
            f"everybody can read {', '.join(exposed)}",
            "take the location that passes these to the admin port out of nginx, or `allow` your own networks there, `deny all`",
        )
    else:
        yield ok(f"{origin} shows nothing of it")
    yield from _at_its_port(installation, host)


def is_ours(path: str, status: int, body: bytes) -> bool:
    """Whether the answer is the admin listener's."""
    if path == "/readyz":
        return body.startswith({200: READY, 503: UNREADY}.get(status, ()))
    return status == 200 and (body == SIGNS[path] if path == "/healthz" else SIGNS[path] in body)


def _at_its_port(installation: Installation, host: str) -> Iterator[Finding]:
    port = installation.settings.admin_port
    if not port:
        return
    outer = [address for address in addresses(host) if not is_loopback(address)]
    if not outer:
        yield skipped(f"port {port} of {host}: from here the name stands for this machine's own loopback")
        return
    for address in outer[:MOST_ADDRESSES]:
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        try:
            asked = installation.ask(f"{url}/healthz", patience_s=FILTERED_S)
        except httpx.HTTPError:
            continue
        if is_ours("/healthz", asked.status, asked.body):
            mend = 'set admin_host = "127.0.0.1", or close the port in the firewall'
            if is_here(address):
                yield warning(
                    f"{url} answers from this machine; whether a firewall keeps others out cannot be seen from here", mend
                )
            else:
                yield wrong(f"{url} answers to everybody", mend)
            return
    yield ok(f"{host} does not answer at port {port}")
