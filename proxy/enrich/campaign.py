"""The campaign that brought the visitor: the five properties the vendor's own library sets, from the page's utm parameters.

`clicks` does the same for the advertisers' click ids, which name a single click and thereby a person: off by default.
"""

from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from proxy.beacon import Beacon
from proxy.hit import Hit

NAMES = {
    "utm_source": "Campaign Source",
    "utm_medium": "Campaign Medium",
    "utm_campaign": "Campaign Name",
    "utm_term": "Campaign Terms",
    "utm_content": "Campaign Content",
}
"""utm parameter → property, as the vendor's library names them."""

CLICK_IDS = {
    name: name
    for name in (
        "gclid",
        "gbraid",
        "wbraid",
        "dclid",
        "fbclid",
        "msclkid",
        "ttclid",
        "twclid",
        "li_fat_id",
        "yclid",
        "epik",
        "rdt_cid",
    )
}
"""Of Google, Meta, Microsoft, TikTok, X, LinkedIn, Yandex, Pinterest, Reddit; sent under their own names."""

BY_HINT = {"utm_": NAMES, "=": CLICK_IDS}
"""What an address must have to be worth a second look → the parameters looked for."""


def campaign(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """The utm parameters of the page: of the `URL` the page itself sent, else of the Referer header. The first of each counts."""
    return _from_page(beacon, hit, "utm_")


def clicks(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """The click ids of the page's address."""
    return _from_page(beacon, hit, "=")


def _from_page(beacon: Beacon, hit: Hit, hint: str) -> dict[str, str]:
    url = beacon.property("url") or hit.referer
    return _from_address(url, hint) if hint in url.lower() else {}


@lru_cache(2048)
def _from_address(url: str, hint: str) -> dict[str, str]:
    names = BY_HINT[hint]
    try:
        pairs = parse_qsl(urlsplit(url).query, max_num_fields=100)
    except ValueError:
        return {}
    found: dict[str, str] = {}
    for name, value in pairs:
        target = names.get(name.lower())
        if target:
            found.setdefault(target, value)
    return found
