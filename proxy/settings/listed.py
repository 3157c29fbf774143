"""Shapes of paths that filter lists are known to match, whatever the host: refused, with the reason."""

import re

_SHAPES: list[tuple[str, str]] = [
    (r"\.gif\b", "filter lists match the names of small GIFs (/e.gif?, /pixel.gif?)"),
    (r"kissmetrics", "filter lists match the vendor's name"),
    (r"beacon", "filter lists match it (/beacon.js, /beacon/event/)"),
]


def why_listed(path: str) -> str:
    """Why a path of that shape is blocked by filter lists; "" if none is known to."""
    return next((reason for shape, reason in _SHAPES if re.search(shape, path, re.IGNORECASE)), "")
