"""Whose address does a beacon get: the visitor's, the proxy's, or whatever the visitor claims?

Asked with the debug token, whose bearer is told the address that was stored. Two claims are made: an address, and a word that is
none. The word stops the walk through the chain, so what is stored then is what the nearest proxy itself said.
"""

import ipaddress
from collections.abc import Iterator

from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation, addresses, nonce
from proxy.collector.address import TrustedProxies, truncated

CLAIMED = "203.0.113.77"
"""For documentation (RFC 5737); nobody's."""
NO_ADDRESS = "unknown"
LINE = "nginx: `proxy_set_header X-Forwarded-For $remote_addr;`"


def look(installation: Installation) -> Iterator[Finding]:
    settings = installation.settings
    if installation.outside:
        yield skipped(installation.outside)
    elif settings.addresses == "forget":
        yield skipped('addresses are not stored (addresses = "forget")')
    elif not installation.token():
        yield skipped(
            "the address that is stored is told to the debug token only: set debug_token, and restart, to have this looked at"
        )
    elif not installation.may_be_told():
        yield skipped("the debug token is not sent in the clear: give an https --url")
    else:
        stored, own = [], ""
        for claim in (CLAIMED, NO_ADDRESS):
            asked = installation.beacon(f"doctor={nonce()}", {"x-forwarded-for": claim})
            own = asked.own_address
            outcome, _, address = asked.headers.get("x-beacon-outcome", "").partition("; address=")
            if not address:
                yield _untold(outcome)
                return
            stored.append(address)
        shorten = truncated if settings.addresses == "truncate" else str
        yield judge(
            stored[0],
            stored[1],
            shorten(own),
            shorten(CLAIMED),
            [shorten(address) for address in addresses(installation.public[1])],
            tuple(settings.trusted_proxies),
        )


def _untold(outcome: str) -> Finding:
    if outcome:
        return skipped(f"our beacon was dropped ({outcome}); with --site-url it comes from that page")
    return warning(
        "the running proxy does not know the debug token, or the header X-Beacon-Debug does not reach it",
        "restart it with the settings that doctor has, and let nginx pass the header",
    )


def judge(claimed: str, unclaimed: str, own: str, claim: str, public: list[str], trusted: tuple[str, ...]) -> Finding:
    """What is stored when an address is claimed, and when a word is; our own, the claim, the public host's; trusted_proxies."""
    proxies = TrustedProxies(trusted)
    if claimed == claim:
        if unclaimed == own and proxies.trusts(own):
            return ok(
                f"the proxy in front says who we are ({own}); as that is one of trusted_proxies, our claims are believed: "
                "run doctor elsewhere to see a visitor's"
            )
        return wrong(
            f"the visitor is believed: claiming to be {claim} in X-Forwarded-For, we were taken for it",
            f"{LINE}, so that what the visitor claims is discarded; trusted_proxies must name your proxies only",
        )
    if claimed == own:
        return ok(f"the visitor's own address is stored ({claimed}), whatever they claim")
    if claimed == "none":
        return wrong("no address is stored: the proxy in front is on a Unix socket and does not say whom it speaks for", LINE)
    if claimed in public or not _is_global(claimed):
        if proxies.trusts(claimed):
            return wrong(
                f"every visitor looks like {claimed}: the proxy in front is trusted, but does not say whom it speaks for", LINE
            )
        return wrong(
            f"every visitor looks like {claimed}: that proxy is not trusted, so what it says is not read",
            f"add {claimed} to trusted_proxies if it is yours",
        )
    if not _is_global(own):
        return ok(f"the address stored is {claimed}, which is not what we claimed; see that it is this machine's public one")
    return warning(
        f"the address stored is {claimed}; ours is {own}",
        f"if {claimed} is a proxy or CDN of yours, add its networks to trusted_proxies; if addresses are translated, all is well",
    )


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
