"""`tail`: beacons as they go by, live. Nothing here decides or counts; it reads what collectors and forwarder tell a watcher.

A thread reads, so that a slow terminal loses little; what was lost is said. Values and persons are masked unless asked for.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TextIO

import msgspec
from rich.console import Console
from rich.text import Text

from proxy.admin.report import STALE_MS, read_report
from proxy.cli.plain import plain
from proxy.forward.watch import RETRY
from proxy.hit import KINDS
from proxy.outcome import Ending, Outcome
from proxy.spool import watching
from proxy.spool.port import REFUSED, SpoolConfig, Tapped
from proxy.spool.tap import DATAGRAM_BYTES

OUTCOMES = (*(outcome.value for outcome in Outcome), REFUSED, RETRY)
HELD = 10_000
"""Beacons that may wait for a slow terminal."""
PATIENCE_S = STALE_MS / 1000 + 1
"""After so long without a line, one says what is waited for; then less and less often. By then a dead forwarder is known."""
MASK = "…"
LONGEST = 400
"""Characters of one name or value that are shown."""
COLOURS = {Ending.DELIVERED: "green", Ending.DROPPED: "magenta", Ending.DEAD: "red"}
ENDINGS = {outcome.value: COLOURS[outcome.ending] for outcome in Outcome}


class Wanted(NamedTuple):
    """Which beacons; what is empty does not restrict."""

    sites: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    name: str = ""
    failing: bool = False

    def admits(self, seen: Tapped) -> bool:
        """Whether it is one of them."""
        return (
            (not self.sites or seen.site in self.sites)
            and (not self.kinds or seen.kind in self.kinds)
            and (not self.outcomes or seen.outcome in self.outcomes)
            and (not self.name or fnmatch.fnmatchcase(_event(seen).lower(), self.name.lower()))
            and not (self.failing and seen.outcome == Outcome.DELIVERED)
        )

    def __str__(self) -> str:
        """In plain words."""
        parts = ["that were not delivered"] if self.failing else []
        parts += [f"of {' or '.join('/' + kind for kind in self.kinds)}"] if self.kinds else []
        parts += [f"of site {' or '.join(self.sites)}"] if self.sites else []
        parts += [f"named {self.name}"] if self.name else []
        parts += [f"that end as {' or '.join(self.outcomes)}"] if self.outcomes else []
        return harmless(", ".join(parts))


class Masks:
    """A visitor is shown as a short sign that stays the same while this runs, and tells nothing."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)

    def masked(self, seen: Tapped) -> Tapped:
        """Without persons and values. An alias' name is a person too."""
        return msgspec.structs.replace(
            seen,
            person=self._sign(seen.person),
            name=self._sign(seen.name) if seen.kind == "a" else seen.name,
            properties={name: MASK if value else "" for name, value in seen.properties.items()},
        )

    def _sign(self, person: str) -> str:
        if not person:
            return ""
        return "visitor-" + hashlib.blake2b(person.encode("utf-8", "replace"), digest_size=3, key=self._salt).hexdigest()


def follow(config: SpoolConfig, wanted: Wanted, most: int | None, seconds: float | None, *, values: bool, as_json: bool) -> None:
    """Print beacons until `most` were printed, `seconds` are over, Ctrl-C or SIGTERM. Raises SpoolError."""
    masks, shown = Masks(), 0
    printer = _Json(sys.stdout) if as_json else _Lines(sys.stdout)
    with watching(config) as listener, _until_told_to_stop():
        waiting = _Waiting(config, wanted)
        for seen in _read(listener, seconds):
            if seen is None:
                waiting.tick()
                continue
            admitted = wanted.admits(seen)
            waiting.passed(seen, admitted)
            if admitted:
                printer.show(seen if values else masks.masked(seen))
                shown += 1
                if shown == most:
                    return


@contextlib.contextmanager
def _until_told_to_stop() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a pipe that nobody reads any more are good ends."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at the end
    finally:
        signal.signal(signal.SIGTERM, before)


def _read(listener: socket.socket, seconds: float | None) -> Iterator[Tapped | None]:
    """What is told, and None now and then while nothing is."""
    held: queue.Queue[Tapped] = queue.Queue(HELD)
    threading.Thread(target=_take_in, args=(listener, held), daemon=True).start()
    deadline = None if seconds is None else time.monotonic() + seconds
    while (left := 0.5 if deadline is None else min(0.5, deadline - time.monotonic())) > 0:
        try:
            yield held.get(timeout=left)
        except queue.Empty:
            yield None


def _take_in(listener: socket.socket, held: "queue.Queue[Tapped]") -> None:
    missed = 0
    decode = msgspec.json.Decoder(Tapped).decode
    with contextlib.suppress(OSError):  # the socket is closed at the end
        while True:
            told = listener.recv(DATAGRAM_BYTES)
            with contextlib.suppress(msgspec.DecodeError):  # of another version, or whoever may write in the spool
                seen = decode(told)
                try:
                    held.put_nowait(msgspec.structs.replace(seen, missed=seen.missed + missed) if missed else seen)
                    missed = 0
                except queue.Full:
                    missed += 1 + seen.missed


class _Waiting:
    """Says on standard error what is waited for, when it may be asked: at first, and when nothing comes."""

    def __init__(self, config: SpoolConfig, wanted: Wanted) -> None:
        self._config, self._wanted = config, wanted
        self._last, self._patience = time.monotonic(), PATIENCE_S
        self._others = 0
        self._say(f"watching {config.url}; Ctrl-C ends")

    def passed(self, seen: Tapped, shown: bool) -> None:
        if seen.missed:
            self._say(f"{seen.missed:,} beacons are not shown: they came faster than they could be read")
        if shown:
            self._last, self._patience, self._others = time.monotonic(), PATIENCE_S, 0
        else:
            self._others += 1
            self.tick()

    def tick(self) -> None:
        if time.monotonic() - self._last < self._patience:
            return
        self._last, self._patience = time.monotonic(), min(self._patience * 4, 600)
        wanted = str(self._wanted)
        line = f"still waiting for beacons{' ' + wanted if wanted else ''}"
        if self._others:
            line += f"; {self._others:,} others went by"
        if not read_report(self._config).is_running():
            line += "; no forwarder is running, so deliveries cannot be seen (start `beacon-proxy serve`)"
        self._say(line)

    def _say(self, line: str) -> None:
        print(f"beacon-proxy: {harmless(line)}", file=sys.stderr, flush=True)


class _Json:
    """An object a line; control characters are escaped."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, seen: Tapped) -> None:
        plain: dict[str, Any] = msgspec.structs.asdict(seen)
        del plain["missed"]
        print(json.dumps(plain), file=self._out, flush=True)


class _Lines:
    """Columns: time, outcome, site, call and name, then what is known of it."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False, soft_wrap=True)
        self._width = 4

    def show(self, seen: Tapped) -> None:
        self._width = min(20, max(self._width, len(seen.site)))
        line = Text()
        line.append(time.strftime("%H:%M:%S ", time.localtime(seen.at_ms / 1000)), style="dim")
        line.append(f"{harmless(seen.outcome):<13} ", style=ENDINGS.get(seen.outcome, "yellow"))
        line.append(f"{harmless(seen.site):<{self._width}} ", style="dim")
        if seen.kind:
            line.append(f"/{harmless(seen.kind)} ")
            line.append(harmless(seen.name), style="bold")
            line.append(" " if seen.name else "")
        line.append("  ".join(_facts(seen)))
        self._console.print(line)


def _facts(seen: Tapped) -> Iterator[str]:
    if seen.person:
        yield harmless(seen.person)
    if seen.attempt:
        tried = f"{harmless(seen.answer)}, attempt {seen.attempt}" if seen.answer else "not sent"
        yield f"{tried}, after {_span(seen.age_ms)}"
    for name, value in seen.properties.items():
        yield f"{harmless(name)}={harmless(value)}"


def _span(ms: int) -> str:
    if ms < 1000:
        return f"{ms} ms"
    return f"{ms / 1000:.1f} s" if ms < 120_000 else f"{ms / 60_000:.0f} min"


def _event(seen: Tapped) -> str:
    """An alias has no name; what stands there is a person."""
    return seen.name if seen.kind == "e" else ""


def harmless(text: str) -> str:
    """Nothing that a terminal would obey, and not endless."""
    kept = plain(text[: LONGEST + 1])
    return kept if len(kept) <= LONGEST else kept[:LONGEST] + "…"


def unknown(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those that are not known."""
    expected = set(known)
    return [one for one in found if one not in expected]


__all__ = ["KINDS", "OUTCOMES", "Wanted", "follow", "harmless", "unknown"]
