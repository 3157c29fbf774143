"""A new configuration file: names drawn by lot, a word on each, and nothing that the defaults already say."""

import errno
import json
import os
import secrets
from pathlib import Path

from proxy.lists.naming import Names

MODE = 0o640
"""Its owner writes, its group reads: a key may come to stand in it."""


class CannotWrite(Exception):
    """The message says what is in the way and what to do."""


def text(names: Names, all_names: bool, spool: Path) -> str:
    """The file. `all_names`: the mark that hides properties' names is in force, else it is there as a comment."""
    endpoints = "\n".join(f'{call} = "{name}"' for call, name in names.endpoints.items())
    parameters = "\n".join(f'{name} = "{alias}"' for name, alias in names.parameters.items())
    mark = f'"*" = "{names.mark}"'
    return f"""\
# Settings of beacon-proxy, made by `beacon-proxy init`. All that can be set: docs/settings.md.
# The environment wins over this file: BEACON_PROXY_WORKERS=2 over workers = 1.

# The vendor's API key: in a file that only the proxy's user can read, or as BEACON_PROXY_API_KEY in the environment.
#api_key_file = "/etc/beacon-proxy/api-key"

# Where beacons wait until they are delivered: a directory of the proxy's own, by its whole path, so that each command finds it.
spool = {json.dumps(f"sqlite:{spool}", ensure_ascii=False)}

# Whose word on the visitor's address is taken: the web server before the proxy. Is it on another machine? Name that one.
trusted_proxies = ["loopback"]

# Names drawn by lot, this installation's own, so that no filter list knows them. Pages bear them: when you change one, keep the
# old one behind the new, prefix = ["/new", "/old"], as long as there are such pages (docs/paths.md).
prefix = "{names.prefix}"
script = "{names.script}"        # the browser script: {names.prefix}/{names.script}.js

# Several sites? A table for each:
#[sites.shop]
#hosts = ["www.shop.example"]
#api_key_file = "/etc/beacon-proxy/shop-key"

# What pages call the API's calls. The script uses that of b (several at once); e event, s set and a alias are for images that you
# write by hand ...
[endpoints]
{endpoints}

# ... as are all of these: _p person, _n name, _t time, _d "_t is given"; "*" is a mark before the name of any property, written
# in base64url.
[parameters]
{parameters}
{mark if all_names else "#" + mark}
"""


def write(path: Path, content: str, *, over: bool, mode: int = MODE) -> None:
    """Whole or not at all; an existing file only with `over`. Raises CannotWrite."""
    new = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        if not over:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))  # taken, so that nobody else's is replaced
        new.replace(path)
    except FileExistsError:
        raise CannotWrite(
            f"{path}: there is such a file already, and its names stand in pages; expected a new one. Name another, or let "
            "--force replace it"
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CannotWrite(f"{path}: cannot be written: {why}; expected a file in a directory that this user may write") from None
    finally:
        try:
            new.unlink(missing_ok=True)
        except (OSError, ValueError):
            pass  # it was never there
