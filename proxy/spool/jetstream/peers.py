"""See Peers. All is in the state stream: each forwarder's words and what it tells, and one message for what they keep together.

A stream is one order of messages for everybody. A reading that has our own words in it, as they were stored just before, was made
after that, whichever replica answered; so it has all that anybody stored before them. And our words are stored only after those
that we know of: what was given up, and arrives late, must not take the place of what came later.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.spool.jetstream import api
from proxy.spool.jetstream.flight import Flights
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names, untoken
from proxy.spool.jetstream.settler import Settler
from proxy.spool.jetstream.state import all_of, last_of
from proxy.spool.peers import Left
from proxy.spool.port import Claim

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T], T], T]

PATIENCE_S = 1.5
"""For each step: a leader that is being elected shall cost one turn, and not all that one may do without."""
READINGS, PAUSE_S = 10, 0.02
"""A replica that is behind is asked again, so often at most."""


class JetStreamPeers:
    """The outlet runs the calls, and tells of troubles."""

    def __init__(self, names: Names, link: Link, run: "Run[Any]", flights: Flights, settler: Settler) -> None:
        self.me = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._names, self._link, self._run = names, link, run
        self._flights, self._settler = flights, settler
        self._mark = 0
        """Of our last words."""
        self.crowded_out = False

    def exchange(self, words: bytes) -> list[Left] | None:
        self.crowded_out = False  # whether or not it is begun
        found: list[Left] | None = self._run(self._exchange(words), None)
        return found

    def look(self) -> list[Left] | None:
        found: list[Left] | None = self._run(self._others(), None)
        return found

    def forget(self, gone: Left) -> None:
        self._run(self._purge("words", gone.who, gone.mark), None)
        self._run(self._purge("forwarder", gone.who), None)

    def leave(self) -> None:
        for what in ("words", "forwarder"):
            self._run(self._purge(what, self.me), None)

    def amend(self, change: Callable[[bytes], bytes]) -> bool:
        return bool(self._run(self._amend(change), False))

    def give_back(self, claims: Sequence[Claim], sites: Collection[str]) -> None:
        idle = [(claim.ticket, 0) for claim in claims if self._flights.is_out(claim.ticket)] + self._flights.waiting_of(sites)
        now_ms = time.time_ns() // 1_000_000
        replies = [(self._flights.hand_back(flight), max(0, due_ms - now_ms)) for flight, due_ms in idle]
        if replies:
            self._run(self._settler.put_off(self._link, replies), None)

    async def tell(self, state: bytes) -> None:
        """For whoever looks."""
        if (client := self._link.client()) is not None:
            await client.publish(self._names.state_of("forwarder", self.me), state)

    async def recall(self) -> bytes:
        """What all forwarders keep together."""
        return (await last_of(self._connected(), self._names, self._names.figures))[1]

    async def _exchange(self, words: bytes) -> list[Left] | None:
        client = self._connected()
        subject = self._names.state_of("words", self.me)
        try:
            stored = await api.store_after(client, subject, self._mark, words, PATIENCE_S)
        except api.ApiError as error:
            self.crowded_out = error.no_room
            raise
        if stored is None:  # those of a turn that was given up are there after all, or others counted us out
            self._mark, _ = await last_of(client, self._names, subject, PATIENCE_S)
            return None
        self._mark = stored
        for _ in range(READINGS):
            left = [_left(msg) for msg in await all_of(client, self._names, "words", PATIENCE_S)]
            if any(one.who == self.me and one.mark >= stored for one in left):
                return [one for one in left if one.who != self.me]
            await asyncio.sleep(PAUSE_S)
        return None

    async def _others(self) -> list[Left]:
        left = [_left(msg) for msg in await all_of(self._connected(), self._names, "words", PATIENCE_S)]
        return [one for one in left if one.who != self.me]

    async def _purge(self, what: str, who: str, up_to: int | None = None) -> None:
        """What is newer than `up_to` stays."""
        body: dict[str, Any] = {"filter": self._names.state_of(what, who)}
        await api.ask(
            self._connected(), f"STREAM.PURGE.{self._names.state}", body if up_to is None else {**body, "seq": up_to + 1}
        )

    async def _amend(self, change: Callable[[bytes], bytes]) -> bool:
        client = self._connected()
        last, before = await last_of(client, self._names, self._names.figures, PATIENCE_S)
        return await api.store_after(client, self._names.figures, last, change(before), PATIENCE_S) is not None

    def _connected(self) -> "Client":
        client = self._link.client()
        if client is None:
            raise self._link.unreachable()
        return client


def _left(msg: "Msg") -> Left:
    headers = msg.headers or {}
    return Left(untoken(headers["Nats-Subject"].rpartition(".")[2]), int(headers["Nats-Sequence"]), msg.data)
