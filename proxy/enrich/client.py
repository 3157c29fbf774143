"""What the visitor uses: browser, its version, operating system, device type. Client hints are preferred where they are sent.

The data is the ua-parser project's, matched by its Rust engine where there is a wheel of it. A few thousand user agents make
nearly all traffic, so they are remembered.
"""

import re
from functools import lru_cache

from proxy.beacon import Beacon
from proxy.hit import Hit

REMEMBERED = 4096
_BRAND = re.compile(r'"([^"]{1,60})";\s*v="(\d{1,6})')
_GREASE = re.compile(r"not.{0,3}a.{0,3}brand", re.IGNORECASE)
BRANDS = {"Google Chrome": "Chrome", "Microsoft Edge": "Edge"}
"""Client hint → the name that ua-parser uses."""


def client(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """`Browser`, `Browser Version`, `Operating System`, `Device Type` (Desktop, Mobile, Tablet)."""
    return _client(hit.user_agent, hit.hints) if hit.user_agent or hit.hints else {}


@lru_cache(REMEMBERED)
def _client(user_agent: str, hints: str) -> dict[str, str]:
    found = dict(_from_user_agent(user_agent)) if user_agent else {}
    if hints:
        brands, mobile, platform = ([*hints.split("\n"), "", ""])[:3]
        named = [(name, version) for name, version in _BRAND.findall(brands) if not _GREASE.search(name)]
        named = [brand for brand in named if brand[0] != "Chromium"] or named
        if named:
            found["Browser"], found["Browser Version"] = BRANDS.get(named[0][0], named[0][0]), named[0][1]
        if platform.strip('" ') and platform.strip('" ') != "Unknown":
            found["Operating System"] = platform.strip('" ')[:60]
        if mobile.strip() == "?1":
            found["Device Type"] = "Mobile"
    return found


@lru_cache(REMEMBERED)
def _from_user_agent(user_agent: str) -> dict[str, str]:
    browser, system = _lookup(user_agent)
    found = {"Device Type": _device(user_agent)}
    if browser is not None and browser.family != "Other":
        found |= {"Browser": browser.family, "Browser Version": browser.major or ""}
    if system is not None and system.family != "Other":
        found["Operating System"] = system.family
    return found


def _device(user_agent: str) -> str:
    if "iPad" in user_agent or "Tablet" in user_agent or ("Android" in user_agent and "Mobile" not in user_agent):
        return "Tablet"
    return "Mobile" if "Mobi" in user_agent else "Desktop"


@lru_cache(1)
def engine():  # type: ignore[no-untyped-def]
    """The matcher; a tenth of a second to build, so it is asked for before the first beacon.

    Without the 600 patterns of device models, which nothing here asks for: they would take 15 MB.
    """
    from ua_parser.loaders import load_builtins

    try:
        from ua_parser.regex import Resolver
    except ImportError:  # no wheel of the Rust engine for this platform
        from ua_parser.basic import Resolver  # type: ignore[assignment]
    browsers, systems, _ = load_builtins()
    return Resolver((browsers, systems, []))


def _lookup(user_agent: str):  # type: ignore[no-untyped-def]
    from ua_parser.core import Domain

    found = engine()(user_agent, Domain.USER_AGENT | Domain.OS)
    return found.user_agent, found.os
