"""Publishing with acknowledgement: many at once in flight, each repeated under the same id until it is acknowledged.

A repeated message is stored once, within the stream's duplicate window (docs.nats.io, "Message Deduplication"): so a lost
acknowledgement, a lost connection or a new leader cost time and nothing else.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from proxy.spool.jetstream import api
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.refusal import in_words

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

LOOK_S = 0.25
"""Between two looks whether something must be repeated."""
UNANSWERED = "the spool's server does not acknowledge in time"
TOO_LARGE = "too large: "
"""So begins why a message is never stored, however often it is sent."""
OVERSIZE = (10054, 10097)
"""The server's numbers for a message, or headers, larger than the stream takes."""
LEADER_S = 2.0
"""For a server to pass a question on to who leads them all, and the answer back."""
REPEATS = 3
"""How often a message is sent within the patience of whoever waits for it."""


def lasting(error: str) -> bool:
    """Whether it is the message's own fault, and not that of its stream or of the servers."""
    return error.startswith(TOO_LARGE)


Stored = Callable[[list[int]], None]
"""Told now and then, where some messages keep others waiting, the numbers of those that are stored."""


def nobody(numbers: list[int]) -> None:
    """Who waits for all of them anyway."""


class Message(NamedTuple):
    """What to publish. The headers bear its id."""

    subject: str
    payload: bytes
    headers: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes, as the server counts them."""
        return len(self.payload) + sum(len(name) + len(value) + 4 for name, value in self.headers.items()) + 12


class _Batch:
    """Messages that are waited for together."""

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.errors = [""] * size
        self.left = size
        self.done: asyncio.Future[None] = loop.create_future()

    def settle(self, number: int, error: str = "") -> None:
        self.errors[number] = error
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


async def _leave(link: Link, subject: str) -> None:
    """Go to another server, unless this one has an answer from who leads them all: then a stream is silent, wherever we ask."""
    if (client := link.client()) is not None:
        try:
            await api.ask(client, "STREAM.NAMES", {"subject": subject}, LEADER_S)
        except Exception:
            await link.move_on()


class Publisher:
    """Used on the link's loop. `subscribe` must have been called with the link's client."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[_Batch, int]] = {}
        self._inbox = ""
        self._leaving: asyncio.Task[None] | None = None
        self.heard = float("-inf")
        """When a server last took something, or refused it (monotonic)."""

    async def subscribe(self, client: "Client") -> None:
        """Where acknowledgements come in: one subscription for all of them."""
        self._inbox = client.new_inbox() + "."
        await client.subscribe(self._inbox + "*", cb=self._acknowledged, pending_msgs_limit=-1, pending_bytes_limit=-1)

    async def publish(self, link: Link, messages: Sequence[Message], patience_s: float, stored: Stored = nobody) -> list[str]:
        """For each message why it is not known to be stored; "" if it is."""
        if not messages:
            return []
        batch = _Batch(len(messages), link.loop)
        mine = [f"{next(self._numbers):x}" for _ in messages]
        self._waiting.update((token, (batch, number)) for number, token in enumerate(mine))
        began = time.monotonic()
        sent_at, sent_in, deadline = 0.0, -1, began + patience_s
        try:
            while True:
                now = time.monotonic()
                if (client := link.client()) is not None and (
                    sent_in != link.generation or now - sent_at > max(LOOK_S, patience_s / REPEATS)
                ):
                    sent_at, sent_in = now, link.generation
                    await self._send(client, messages, mine)
                done, _ = await asyncio.wait([batch.done], timeout=min(LOOK_S, max(0.0, deadline - now)))
                if done:
                    return batch.errors
                stored([n for n, token in enumerate(mine) if token not in self._waiting and not batch.errors[n]])
                if time.monotonic() >= deadline:
                    why = link.trouble or link.denied_since(began) or UNANSWERED
                    if self.heard < began and (self._leaving is None or self._leaving.done()):
                        self._leaving = asyncio.create_task(_leave(link, messages[0].subject))
                    return [why if token in self._waiting else batch.errors[number] for number, token in enumerate(mine)]
        finally:
            for token in mine:
                self._waiting.pop(token, None)

    async def _send(self, client: "Client", messages: Sequence[Message], tokens: Sequence[str]) -> None:
        from nats.errors import Error

        for message, token in zip(messages, tokens, strict=True):
            if token not in self._waiting:
                continue
            if message.size > client.max_payload:  # the server would close the connection
                self._settle(token, f"{TOO_LARGE}{message.size:,} bytes, the server's max_payload is {client.max_payload:,}")
                continue
            try:
                await client.publish(message.subject, message.payload, self._inbox + token, message.headers)
            except Error:
                return  # the connection is just lost: all is repeated on the next

    async def _acknowledged(self, msg: "Msg") -> None:
        token = msg.subject[len(self._inbox) :]
        if msg.data.startswith(b'{"stream"'):
            self.heard = time.monotonic()
            self._settle(token)
        elif msg.data:
            error = json.loads(msg.data).get("error", {})
            if error.get("err_code") != api.UNAVAILABLE:
                self.heard = time.monotonic()
                number, description = error.get("err_code", 0), error.get("description", "no reason given")
                why = TOO_LARGE if number in OVERSIZE else ""
                self._settle(token, f"{why}the spool's server refuses: {in_words(number, description)}")
        # else nobody has the stream just now (no responders): it is repeated

    def _settle(self, token: str, error: str = "") -> None:
        if (waiting := self._waiting.pop(token, None)) is not None:
            waiting[0].settle(waiting[1], error)
