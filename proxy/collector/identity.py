"""Who the visitor is when the page does not say: the site's own cookies, else a new anonymous id in a first-party cookie."""

import re
import secrets
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from proxy.beacon import MAX_NAME

KNOWN, ANONYMOUS = b"km_ni", b"km_ai"
"""The cookies of the vendor's browser library, so that known visitors stay known."""
ALIASED = b"km_aa"
"""The browser script's: the anonymous identity that was aliased to a known one, and must not be to another."""
MAX_AGE_S = 400 * 86_400
"""The longest that browsers keep a cookie (RFC 6265bis)."""

RENEWABLE = re.compile(rb"[A-Za-z0-9%._~+/=-]{1,1024}")
"""A cookie's value that may be set again as it came."""

_PERSON = re.compile(rb"(?:^|&)(?:_|%5[fF])(?:p|%70)=[^&]")


def says_person(query: bytes, body: bytes) -> bool:
    """Whether the page named the person (`_p`), however it is escaped."""
    return _PERSON.search(query) is not None or (body != b"" and _PERSON.search(body) is not None)


def from_cookies(cookies: bytes) -> str:
    """The known identity, else the anonymous one; "" if there is neither. Values are URL-encoded; what is absurd is ignored."""
    if b"km_" in cookies:
        for wanted in (KNOWN, ANONYMOUS):
            value = cookie_value(cookies, wanted)
            if value:
                identity = unquote_to_bytes(value.strip(b'"')).decode("utf-8", "replace")
                if identity.strip() and len(identity) <= MAX_NAME and identity.isprintable() and "\ufffd" not in identity:
                    return identity
    return ""


def cookie_value(cookies: bytes, name: bytes) -> bytes | None:
    """The first cookie of that name in a Cookie header (RFC 6265, section 4.2), as it stands there; None if there is none."""
    for pair in cookies.split(b";", 200):
        if pair.lstrip().startswith(name):
            found, equals, value = pair.partition(b"=")
            if equals and found.strip() == name:
                return value.strip()
    return None


def new_identity() -> str:
    """144 random bits, in characters that need no escaping anywhere."""
    return secrets.token_urlsafe(18)


def cookie_maker(domain: str, http_only: bool) -> Callable[[bytes, bytes, bool], bytes]:
    """(name, value, https) → the Set-Cookie header's value."""
    tail = f"; Max-Age={MAX_AGE_S}; Path=/; SameSite=Lax" + (f"; Domain={domain}" if domain else "")
    tail += "; HttpOnly" if http_only else ""
    plain, secure = tail.encode("ascii"), (tail + "; Secure").encode("ascii")

    def make(name: bytes, value: bytes, https: bool) -> bytes:
        return name + b"=" + value + (secure if https else plain)

    return make
