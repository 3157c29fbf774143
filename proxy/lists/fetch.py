"""The official lists, kept in the user's cache: fetched when old, asked for by condition, used as they are when that fails.

Size and time are bounded, and what comes is looked at before it replaces what is there: a portal's login page is no list.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import httpx
import msgspec

from proxy import __version__
from proxy.lists.engine import CannotRead
from proxy.lists.files import MAX_BYTES
from proxy.lists.sources import OFFICIAL, Source

FRESH_S = 4 * 86_400
"""As long as EasyList itself says that a copy is good."""
CONNECT_S, LIST_S = 10.0, 60.0
"""For a connection or a pause, and for one list in all."""
MOST_INCLUDES = 30
"""In all. Included lists include nothing."""
_INCLUDE = re.compile(r"^!#include ([A-Za-z0-9][A-Za-z0-9._-]{0,80}\.txt)\s*$", re.MULTILINE)


class Listing(NamedTuple):
    """A list as it is used."""

    name: str
    text: str
    note: str = ""
    """What the user should know: that the copy is an old one, say."""


class _Known(msgspec.Struct):
    """What is kept beside a copy."""

    url: str
    fetched_s: float
    etag: str = ""
    modified: str = ""


class _Failed(Exception):
    """Why a list did not come."""


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's cache, as the XDG base directories have it: what is relative does not count."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME", "") or Path.home()) / ".cache"
    return base / "beacon-proxy" / "lists"


class Cache:
    """The copies in one directory."""

    def __init__(
        self,
        directory: Path,
        sources: Iterable[Source] = OFFICIAL,
        *,
        now_s: Callable[[], float] = time.time,
        list_s: float = LIST_S,
    ) -> None:
        self._directory, self._sources, self._now_s, self._list_s = directory, tuple(sources), now_s, list_s
        self._away: set[str] = set()
        """Hosts that cannot be reached: nobody waits for them twice."""

    def lists(
        self, *, refresh: bool = False, offline: bool = False, progress: Callable[[str, int], None] = lambda name, of: None
    ) -> list[Listing]:
        """All that can be had, each with the lists it includes. Raises CannotRead if none can.

        `progress` is told each list's name before it is looked for, and of how many.
        """
        found: list[Listing] = []
        failed: list[str] = []
        with httpx.Client(
            timeout=CONNECT_S, follow_redirects=True, headers={"user-agent": f"beacon-proxy/{__version__}"}
        ) as client:
            waiting, known = list(self._sources), {source.name for source in self._sources}
            most = len(known) + MOST_INCLUDES
            while waiting:
                source = waiting.pop(0)
                progress(source.name, len(known))
                try:
                    listing = self._list(source, None if offline else client, refresh)
                except _Failed as why:
                    failed.append(f"{source.name}: {why}")
                    continue
                found.append(listing)
                for part in _INCLUDE.findall(listing.text) if source in self._sources else ():
                    name = f"{source.name}-{part.removesuffix('.txt')}"
                    if name not in known and len(name) < 100 and len(known) < most:
                        known.add(name)
                        waiting.append(Source(name, urljoin(source.url, part)))
        if not found:
            raise CannotRead(
                f"no filter list can be had: {failed[0] if failed else 'none is named'}; expected the network, a copy in "
                f"{self._directory}, or lists as arguments"
            )
        return found + [Listing("", "", why) for why in failed]

    def _list(self, source: Source, client: httpx.Client | None, refresh: bool) -> Listing:
        """From the cache or the network. Raises _Failed."""
        text, known = self._kept(source)
        if text is not None and not refresh and 0 <= self._now_s() - known.fetched_s < FRESH_S:
            return Listing(source.name, text)
        if client is None:
            if text is None:
                raise _Failed("not in the cache, and --offline")
            return Listing(source.name, text, f"{source.name}: {self._age(known)} old")
        try:
            new, told = self._ask(source, client, known if text is not None else None)
        except _Failed as why:
            if text is None:
                raise
            return Listing(source.name, text, f"{source.name}: {why}; the copy is used that is {self._age(known)} old")
        if new is None and text is None:
            raise _Failed("answered 304 though nothing was asked for by condition")
        note = self._keep(source, new, told)
        return Listing(source.name, new if new is not None else text or "", note)

    def _ask(self, source: Source, client: httpx.Client, known: _Known | None) -> tuple[str | None, _Known]:
        """The text, or None if the copy is still good. Raises _Failed."""
        headers = {}
        if known is not None and known.etag:
            headers["if-none-match"] = known.etag
        if known is not None and known.modified:
            headers["if-modified-since"] = known.modified
        deadline = time.monotonic() + self._list_s
        host = httpx.URL(source.url).netloc.decode("ascii")
        if host in self._away:
            raise _Failed(f"{host} cannot be reached")
        try:
            with client.stream("GET", source.url, headers=headers) as answer:
                told = _Known(
                    source.url,
                    self._now_s(),
                    answer.headers.get("etag", "")[:200],
                    answer.headers.get("last-modified", "")[:100],
                )
                if answer.status_code == 304 and known is not None:
                    return None, told
                if answer.status_code != 200:
                    raise _Failed(f"answered {answer.status_code}")
                parts: list[bytes] = []
                size = 0
                for part in answer.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_BYTES:
                        raise _Failed(f"has more than {MAX_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise _Failed(f"took more than {self._list_s:g} s")
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self._away.add(host)
            raise _Failed(f"{host} cannot be reached") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise _Failed(f"cannot be fetched ({type(error).__name__})") from None
        text = b"".join(parts).decode("utf-8", "replace")
        if text.lstrip("\ufeff \r\n")[:1] not in ("[", "!"):
            raise _Failed("what came is no filter list")
        return text, told

    def _kept(self, source: Source) -> tuple[str | None, _Known]:
        """The copy; None if there is none of that address."""
        try:
            known = msgspec.json.decode(self._path(source, ".json").read_bytes(), type=_Known)
            path = self._path(source, ".txt")
            if known.url != source.url or path.stat().st_size > MAX_BYTES:
                raise OSError
            return path.read_text("utf-8", "replace"), known
        except (OSError, ValueError, msgspec.MsgspecError):
            return None, _Known(source.url, 0.0)

    def _keep(self, source: Source, text: str | None, told: _Known) -> str:
        """Put it into the cache; "" or why that was not possible, which is no reason not to go on."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if text is not None:
                self._path(source, ".json").unlink(missing_ok=True)
                _write(self._path(source, ".txt"), text.encode("utf-8"))
            _write(self._path(source, ".json"), msgspec.json.encode(told))
        except OSError as error:
            return f"{source.name}: cannot be kept in {self._directory}: {error.strerror}"
        return ""

    def _path(self, source: Source, ending: str) -> Path:
        return self._directory / f"{source.name}{ending}"

    def _age(self, known: _Known) -> str:
        days = max(0.0, self._now_s() - known.fetched_s) / 86_400
        return f"{days:.0f} days" if days >= 1.5 else f"{days * 24:.0f} hours"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else does the same."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
