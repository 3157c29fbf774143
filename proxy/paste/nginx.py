"""nginx's locations for the configured names, made from deploy/nginx/beacon-location.conf: a block for each live prefix.

That file is part of the wheel, and beside the package in a checkout.
"""

import re
from pathlib import Path

import proxy
from proxy.collector.config import CollectorConfig
from proxy.hit import BATCH, KINDS

EXAMPLE = "/x7/"
CALLS = "^/x7/[esab]$"
HEAD = """\
# beacon-proxy, part 2 of 2: include this in the server block of your site. Debian: /etc/nginx/snippets/beacon-location.conf
# Part 1 is beacon-http.conf. Made from the settings by `beacon-proxy snippet nginx`: make it anew when the prefix or the names of
# endpoints change.
"""


class CannotPaste(Exception):
    """The settings have no such text. The message names the setting, what was found, what was expected and what to do."""


def source(name: str = "beacon-location.conf") -> str:
    """The text of a file of deploy/nginx. Raises CannotPaste."""
    package = Path(proxy.__file__).parent
    for place in (package / "deploy", package.parent / "deploy"):
        path = place / "nginx" / name
        if path.is_file():
            return path.read_text("utf-8")
    raise CannotPaste(f"nginx: found no deploy/nginx/{name} beside {package}; expected the whole package: reinstall it")


def locations(config: CollectorConfig) -> str:
    """The whole file. Raises CannotPaste."""
    if "" in config.prefixes:
        raise CannotPaste(
            "prefix: found none, and nginx's location would be the whole site; expected a prefix such as /amber-fjord-27 "
            "(`beacon-proxy init` draws one)"
        )
    names = [name for call in (*KINDS, BATCH) for name in (call, *config.endpoints.get(call, ()))]
    calls = "|".join(names)
    block = source().partition("\n\n")[2]
    if CALLS not in block:
        raise CannotPaste(f"nginx: found no {CALLS} in deploy/nginx/beacon-location.conf; expected the file of this version")
    return "\n".join((HEAD, *(_block(block, prefix, calls) for prefix in config.prefixes)))


def _block(block: str, prefix: str, calls: str) -> str:
    """In one pass: the prefix itself may look like the example."""
    return re.sub(
        f"({re.escape(CALLS)})|{re.escape(EXAMPLE)}",
        lambda found: f"^{_escaped(prefix)}/({calls})$" if found[1] else f"{prefix}/",
        block,
    )


def _escaped(path: str) -> str:
    """For a regular expression; of what settings let a path hold, only a dot means something there."""
    return path.replace(".", r"\.")
