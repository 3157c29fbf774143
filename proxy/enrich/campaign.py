"""The campaign that brought the visitor: the five properties the vendor's own library sets, from the page's utm parameters.

`clicks` does the same for the advertisers' click ids, which name a single click and thereby a person: off by default.
"""

from urllib.parse import parse_qsl, urlsplit

from proxy.beacon import Beacon, fold
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


def campaign(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """The utm parameters of the page: of the `URL` the page itself sent, else of the Referer header. The first of each counts."""
    return _from_page(beacon, hit, NAMES, "utm_")


def clicks(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """The click ids of the page's address."""
    return _from_page(beacon, hit, CLICK_IDS, "=")


def _from_page(beacon: Beacon, hit: Hit, names: dict[str, str], hint: str) -> dict[str, str]:
    url = hit.referer
    for name, value in beacon.properties.items():
        if len(name) == 3 and fold(name) == "url":
            url = value
    if hint not in url.lower():
        return {}
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
