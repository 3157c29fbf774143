"""Who may see the page's data and press its button: the page itself, opened under a name that is this machine's own. Pure.

A browser that shows a stranger's page can be made to send requests here. It can't set a header of our own across origins without
asking first (a preflight, which is never granted), and it says where a request comes from; so a plain form never passes.
Under DNS rebinding a stranger's name leads here and his page counts as the same origin: so the name in `Host` must be none that
somebody can register.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

HEADER = "x-beacon-proxy-page"
PRIVATE = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Names that nobody can register (RFC 6761, 6762, 8375; ICANN reserved .internal), besides those without a dot."""


def strange_host(host: str) -> str:
    """Why a request for that `Host` is refused; "" for an address, a name without a dot, and names for private use."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        name = ""
    if name and ("." not in name or name.endswith(PRIVATE) or _is_address(name)) and "@" not in host:
        return ""
    return (
        f"Host: found {name[:100] or 'none'}; expected an address, localhost or another private name. Open the "
        "page by its address or through an SSH tunnel; a reverse proxy in front of it shall set `Host: localhost`."
    )


def foreign(headers: Mapping[str, str]) -> str:
    """Why a request that changes something is refused; "" if our own page sent it, or no browser did."""
    if headers.get(HEADER) != "1":
        return f"{HEADER}: expected 1, as the status page sends it; plain forms are refused"
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return (
            "" if site == "same-origin" else f"Sec-Fetch-Site: found {site[:20]!r}; only the status page itself may ask for this"
        )
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return f"Origin: found {origin[:100]!r}; only the status page itself may ask for this"
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
