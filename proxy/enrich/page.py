"""The page the beacon came from: `URL`, and `Referrer` when that page lies on another site.

A browser names the page in the Referer header of the image request. If that page is not on the host the beacon was sent to
(a link in a mail, a partner's page), the other site is also what referred the visitor to us.
"""

from functools import lru_cache
from urllib.parse import urlsplit

from proxy.beacon import Beacon
from proxy.hit import Hit


def page(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """`URL` and, from a foreign page, `Referrer`; nothing when the header is missing or not an http(s) address."""
    return _page(hit.referer, hit.host) if hit.referer.startswith(("http://", "https://")) else {}


@lru_cache(2048)
def _page(url: str, beacon_host: str) -> dict[str, str]:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return {}
    found = {"URL": url}
    own = (beacon_host if beacon_host.endswith("]") else beacon_host.rsplit(":", 1)[0]).strip("[]").lower()
    if host and own and not same_site(host, own):
        found["Referrer"] = url
    return found


def same_site(a: str, b: str) -> bool:
    """Equal, or one a subdomain of the other, or both under one name of two labels (www.shop.com, t.shop.com)."""
    if a == b or a.endswith("." + b) or b.endswith("." + a):
        return True
    last = a.rsplit(".", 2)[-2:]
    return len(last) == 2 and not last[1].isdigit() and len(last[0]) > 3 and last == b.rsplit(".", 2)[-2:]
