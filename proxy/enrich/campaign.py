"""The campaign that brought the visitor: the five properties the vendor's own library sets, from the page's utm parameters."""

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


def campaign(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """The utm parameters of the page: of the `URL` the page itself sent, else of the Referer header. The first of each counts."""
    url = next((value for name, value in beacon.properties.items() if fold(name) == "url"), hit.referer)
    if "utm_" not in url.lower():
        return {}
    try:
        pairs = parse_qsl(urlsplit(url).query, max_num_fields=100)
    except ValueError:
        return {}
    found: dict[str, str] = {}
    for name, value in pairs:
        target = NAMES.get(name.lower())
        if target:
            found.setdefault(target, value)
    return found
