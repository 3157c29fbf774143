"""The spool over JetStream as a place: the servers, and the streams under one name."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.hit import Hit
from proxy.log import log
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.address import Address, parse
from proxy.spool.jetstream.book import Book
from proxy.spool.jetstream.dead import JetStreamDeadLetters
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.link import Link, ServersAway
from proxy.spool.jetstream.login import login
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.jetstream.publisher import Publisher
from proxy.spool.jetstream.state import all_intake_stats, all_told, last_of
from proxy.spool.jetstream.tap import listening
from proxy.spool.port import DeadFilter, DeadLetters, Intake, IntakeStats, Ledger, Outlet, SpoolConfig, SpoolError, Told

if TYPE_CHECKING:
    from nats.aio.client import Client

T = TypeVar("T")


class _Reader:
    """One connection for all who look from this process, and what it saw last."""

    def __init__(self, address: Address) -> None:
        self.names = Names(address.stream)
        self.publisher = Publisher()
        self.book, self.sizes = Book(self.names), streams.Sizes(self.names)
        self.link = Link(address, "beacon-proxy", self.publisher.subscribe, quiet=True)


READY_S = 0.9
"""To be connected, and for an answer: readiness is to be told within two seconds (admin/app.py), whatever it is."""

_READERS: dict[tuple[int, str], _Reader] = {}
_LOCK = threading.Lock()


async def _nothing(client: "Client") -> None:
    """There is nothing to subscribe to."""


class JetStreamPlace:
    """See Place."""

    patience_s = 15.0
    """For an answer."""

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config
        try:
            self._address = parse(config.url)
        except ValueError as error:
            raise SpoolError(f"spool: {error}") from None
        self._names = Names(self._address.stream)

    def prepare(self) -> None:
        """Servers that are away, or elect a leader, just now: until then collectors refuse beacons, and say why."""
        if reason := self._reader().link.trouble:
            log.warning("the spool's servers are away", reason=reason)
            return
        try:
            self._ask(self._ensure)
        except ServersAway as away:
            log.warning("the spool's servers do not answer yet", reason=str(away))

    def begun(self) -> bool:
        return self._ask(self._is_there)

    def look_into(self) -> None:
        self.begun()

    def look_at(self) -> None:
        """Asks no server."""
        login(self._address)

    def intake(self) -> Intake:
        return JetStreamIntake(self._config)

    def outlet(self) -> Outlet:
        return JetStreamOutlet(self._config)

    def dead_letters(self) -> DeadLetters:
        reader = self._reader()
        return JetStreamDeadLetters(reader.link, reader.publisher, self._names)

    def ledger(self) -> Ledger:
        """Of an account without our streams: empty."""
        return self._ask(self._reader().book.read) if self.begun() else Ledger({}, 0, None)

    def some_hits(self, most: int) -> list[Hit]:
        """Of the dead letters alone: a look at a work queue would take hits away from forwarders."""
        if not self.begun():
            return []
        return [letter.hit for letter in self.dead_letters().list(DeadFilter(), most) if letter.hit is not None]

    def forwarder_states(self) -> list[Told]:
        return self._ask(lambda client: all_told(client, self._names)) if self.begun() else []

    def forwarder_figures(self) -> bytes:
        return self._ask(lambda client: last_of(client, self._names, self._names.figures))[1]

    def intake_stats(self) -> IntakeStats:
        return self._ask(lambda client: all_intake_stats(client, self._names)) if self.begun() else IntakeStats()

    def ledger_off(self, most: int) -> int | None:
        """The ledger is read from the content, so they differ by what was deleted with it."""
        return self._reader().book.lost

    def watching(self) -> contextlib.AbstractContextManager[socket.socket]:
        link = Link(self._address, "beacon-proxy tail", _nothing, quiet=True)
        link.wait_open()
        return listening(link, self._names)

    def bytes(self) -> int:
        return self._ask(lambda client: self._reader().sizes.read(client))

    def unready(self) -> str:
        """Silent streams, of some sites or common ones, keep no other site's hits away."""
        try:
            used = self._ask(lambda client: self._reader(READY_S).sizes.read(client, READY_S / 2, any_site=True), READY_S)
        except SpoolError as error:
            return str(error)
        most = self._config.max_bytes
        return f"the spool is full: {used:,} of max_bytes {most:,}" if used >= most else ""

    def fallback_pending(self) -> int:
        return 0

    async def _ensure(self, client: "Client") -> None:
        try:
            await streams.ensure_common(client, self._names, self._address.replicas)
        except api.ApiError as error:
            if error.number != api.UNAVAILABLE:
                raise
            log.warning("the spool is not ready yet", reason=str(error))

    async def _is_there(self, client: "Client") -> bool:
        try:
            await api.ask(client, f"STREAM.INFO.{self._names.state}")  # the last that is made
        except api.ApiError as error:
            if error.number == api.STREAM_NOT_FOUND:
                return False
            raise
        return True

    def _reader(self, *patience_s: float) -> _Reader:
        with _LOCK:
            key = (os.getpid(), self._config.url)
            reader = _READERS.get(key)
            if reader is None or reader.link.loop.is_closed():
                reader = _READERS[key] = _Reader(self._address)
        reader.link.wait_open(*patience_s)
        return reader

    def _ask(self, call: Callable[["Client"], Coroutine[Any, Any, T]], *patience_s: float) -> T:
        link = self._reader(*patience_s).link
        client = link.client()
        if client is None:
            raise link.unreachable()
        return link.ask(call(client), *patience_s or (self.patience_s,))
