"""The lists that most browsers' blockers begin with, and where their authors publish them."""

from typing import NamedTuple


class Source(NamedTuple):
    """A list and its address."""

    name: str
    """Also the name of its file in the cache."""
    url: str


_UBLOCK = "https://ublockorigin.github.io/uAssets/filters/"

OFFICIAL = (
    Source("easylist", "https://easylist.to/easylist/easylist.txt"),
    Source("easyprivacy", "https://easylist.to/easylist/easyprivacy.txt"),
    Source("peter-lowe", "https://pgl.yoyo.org/adservers/serverlist.php?hostformat=adblockplus&showintro=1&mimetype=plaintext"),
    Source("ublock-filters", _UBLOCK + "filters.txt"),
    Source("ublock-privacy", _UBLOCK + "privacy.txt"),
    Source("ublock-badware", _UBLOCK + "badware.txt"),
    Source("ublock-quick-fixes", _UBLOCK + "quick-fixes.txt"),
    Source("ublock-unbreak", _UBLOCK + "unbreak.txt"),
)

VENDOR_HOSTS = ("i.kissmetrics.io", "scripts.kissmetrics.io", "i.kissmetrics.com", "scripts.kissmetrics.com")
"""Hosts of the vendor's scripts: a control, since the lists are known to block them."""
NEUTRAL_HOST = "neutral.invalid"
"""A third party that nobody has on a list: what blocks it, too, says nothing of the vendor."""
