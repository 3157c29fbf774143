"""The browser script: first-party, and a drop-in for pages written for the vendor's `_kmq` queue.

`source.js` is what is read and changed; `built.js` and `beside.js` are made from it (`make script`) and are what is served,
settings put in.
"""

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from typing import Any, NamedTuple

from proxy import __version__

SETTINGS, VERSION = "__SETTINGS__", "__VERSION__"
"""What stands for them in the script, once each."""


class Script(NamedTuple):
    """Ready to be served."""

    body: bytes
    gzipped: bytes
    etag: bytes
    """As the header has it: weak, since it is the same for the gzipped body (RFC 9110, section 8.8.3)."""
    integrity: str
    """For `<script integrity="…">` (Subresource Integrity, section 3.5)."""


def make(settings: dict[str, Any], beside: bool = False) -> Script:
    """The script with these settings; the same settings always give the same bytes. `beside`: the one for pages that have the
    vendor's own script as well."""
    text = (files(__package__) / ("beside.js" if beside else "built.js")).read_text("utf-8")
    plain = json.dumps(settings, separators=(",", ":"), sort_keys=True)
    body = text.replace(SETTINGS, plain).replace(VERSION, __version__).encode("utf-8")
    digest = hashlib.sha384(body).digest()
    return Script(
        body,
        gzip.compress(body, mtime=0),
        b'W/"%s"' % digest[:12].hex().encode("ascii"),
        "sha384-" + base64.b64encode(digest).decode("ascii"),
    )
