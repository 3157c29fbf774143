"""What each kind of setting may be: validators that say what was expected, and the types that bear them."""

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from proxy.beacon import plain_name, reserved_name
from proxy.collector.config import SCRIPT_EVENTS
from proxy.enrich import ENRICHERS, own_enrichers
from proxy.spool.jetstream import address as jetstream

PRESETS = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}


def listed_values(value: object) -> list[object]:
    """One value or several, as a list; text may be comma-separated. Raises ValueError."""
    found = _comma_separated(value)
    if not isinstance(found, list):
        raise ValueError("expected a value or a list of them")
    return found


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


A_URL = "expected a URL such as https://trk.kissmetrics.io"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")


def url(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(A_URL)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host) or len(host) > 253:
            raise ValueError
    except ValueError:
        raise ValueError(A_URL) from None
    if parts.scheme not in ("http", "https") or port == 0:
        raise ValueError(A_URL)
    if "?" in value or "#" in value or "@" in parts.netloc:
        raise ValueError("expected a URL without user, query or fragment")
    if not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*", parts.path):
        raise ValueError("expected a URL with a plain path")
    return value.rstrip("/")


def address_property(value: object) -> object:
    if isinstance(value, str) and value and (len(value) > 255 or not value.isprintable() or reserved_name(value)):
        raise ValueError("expected a property name such as _ip, other than the API's own _k, _p, _n, _t and _d")
    return value


def spool(value: object) -> object:
    if isinstance(value, str) and value.startswith("nats:"):
        jetstream.parse(value)
    elif not isinstance(value, str) or not re.fullmatch(r"sqlite:.+|memory:.*", value):
        raise ValueError(f"expected sqlite:DIR (a directory), {jetstream.EXAMPLE}, or memory:")
    return value


def fallback(value: object) -> object:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"(sqlite:.+)?", value)):
        raise ValueError("expected sqlite:DIR (a directory on this host), or nothing for none")
    return value


def networks(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list):
        raise ValueError("expected a list of networks")
    networks: list[str] = []
    for name in names:
        if name in PRESETS:
            networks += PRESETS[name]
            continue
        try:
            networks.append(str(ipaddress.ip_network(name, strict=False)))
        except ValueError:
            known = " or ".join(PRESETS)
            raise ValueError(f"{name!r} is no network; expected CIDRs such as 10.0.0.0/8, or {known}") from None
    return networks


def key(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise ValueError("expected the key from the vendor's settings page: 1 to 255 printable characters, no spaces")
    return value


_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4}


def size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,15})\s*([a-z]*)\s*", value.lower())
        if match and match[2] in _UNITS:
            return int(match[1]) * _UNITS[match[2]]
        raise ValueError("expected a size in bytes, or with a unit such as 500MB or 10GiB")
    return value


def _ascii(host: str) -> str:
    """A host name as browsers send it: bücher.example is xn--bcher-kva.example."""
    if host.isascii():
        return host
    try:
        return host.lower().encode("idna").decode("ascii")
    except UnicodeError:
        return host


def hosts(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list) or not names:
        raise ValueError("expected at least one host name")
    names = [_ascii(name) if isinstance(name, str) else name for name in names]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9a-fA-F:.]+\]", name):
            raise ValueError(f"{name!r} is no host name; expected names such as www.example.com or *.example.com")
    return [name.lower() for name in names]


def origins(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list):
        raise ValueError("expected a list of hosts or origins")
    found = []
    for name in names:
        scheme, separator, host = name.rpartition("://") if isinstance(name, str) else ("", "", "")
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:\d{1,5})?", host) or (
            separator and scheme not in ("http", "https")
        ):
            raise ValueError(f"{name!r} is no host or origin; expected www.example.com, *.example.com or https://www.example.com")
        if not separator and ":" in host:
            raise ValueError(f"{name!r}: a port needs its scheme; expected https://{name}")
        found.append(name.lower())
    return found


def cookie_test(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"([A-Za-z0-9_.-]+(=[!#-+\-./0-9:<-\[\]-~]*)?)?", value):
        raise ValueError("expected a cookie as NAME or NAME=VALUE")
    return value


def cookie_domain(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"(\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)?", value):
        raise ValueError("expected a domain such as example.com")
    return value.lstrip(".").lower()


def patterns(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list) or not all(isinstance(name, str) and 0 < len(name) <= 255 for name in names):
        raise ValueError("expected a list of parameter names or patterns such as *email*")
    for name in names:
        if reserved_name(name):
            raise ValueError(f"{name!r} is the API's own: without it there is no beacon; expected names of properties")
    return names


def script_events(value: object) -> object:
    names = listed_values(value)
    for name in names:
        if name not in SCRIPT_EVENTS:
            raise ValueError(f"{name!r} is none that the script records; expected {', '.join(SCRIPT_EVENTS)}")
    return names


def enrichers(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list):
        raise ValueError("expected a list of enrichers")
    for name in names:
        if name not in ENRICHERS and name not in own_enrichers():
            raise ValueError(f"{name!r} is no enricher; expected {', '.join(ENRICHERS)}, or one that an installed package brings")
    return names


def rename(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError('expected a table: [rename] with lines such as Browser = "UA", or BEACON_PROXY_RENAME__BROWSER=UA')
    return value


def property_name(value: object) -> object:
    if value and isinstance(value, str) and (reserved_name(value) or not plain_name(value)):
        raise ValueError("expected the name of a property, such as UA, and none of the API's own")
    return value


Origins = Annotated[list[str], BeforeValidator(origins)]
CookieTest = Annotated[str, BeforeValidator(cookie_test)]
CookieDomain = Annotated[str, BeforeValidator(cookie_domain)]
ApiKey = Annotated[SecretStr, BeforeValidator(key)]
Url = Annotated[str, BeforeValidator(url)]
