"""Taking hits out of their streams: no more than are wanted, so that none lies with a forwarder that does not get round to it."""

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple

from proxy.spool.jetstream.names import FORWARDERS

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

PATIENCE_S = 2.0
"""For the answer to one request; what comes later is given out with the next."""


class Pulled(NamedTuple):
    """A message as it came. `reply` is where its acknowledgement goes."""

    stream: str
    sequence: int
    stored: str
    """When; tells it from one with its sequence in an earlier or a later stream of that name."""
    delivered: int
    """How often the server gave it out, this time included."""
    reply: str
    content: bytes


class _Request:
    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Puller:
    """Used on the link's loop."""

    def __init__(self) -> None:
        self._inbox = ""
        self._requests: dict[str, _Request] = {}
        """By stream: one at a time for each."""
        self._arrived: list[Pulled] = []

    async def subscribe(self, client: "Client") -> None:
        """Where messages come in; once for each client."""
        self._inbox = client.new_inbox() + "."
        await client.subscribe(self._inbox + "*", cb=self._arrive, pending_msgs_limit=-1, pending_bytes_limit=-1)

    async def fetch(self, client: "Client", stream: str, wanted: int) -> bool:
        """Ask for that many and wait until they are here or there are no more. False if the stream or its
        consumer is gone, or does not answer.
        """
        request = self._requests[stream] = _Request(wanted)
        try:
            body = json.dumps({"batch": wanted, "no_wait": True}).encode()
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{FORWARDERS}", body, self._inbox + stream)
            done, _ = await asyncio.wait([request.done], timeout=PATIENCE_S)
        finally:
            del self._requests[stream]
        return bool(done) and not request.gone

    def take(self) -> list[Pulled]:
        """What has arrived."""
        arrived, self._arrived = self._arrived, []
        return arrived

    async def _arrive(self, msg: "Msg") -> None:
        if msg.reply.startswith("$JS.ACK."):
            pulled = _pulled(msg)
            self._arrived.append(pulled)
            if (request := self._requests.get(pulled.stream)) is not None:
                request.left -= 1
                if not request.left:
                    request.end()
        elif (request := self._requests.get(msg.subject[len(self._inbox) :])) is not None:
            status = (msg.headers or {}).get("Status", "")
            request.gone = status in ("409", "503")
            request.end()


def _pulled(msg: "Msg") -> Pulled:
    """`$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE.CONSUMER_SEQUENCE.TIMESTAMP.PENDING`, or with a domain and an
    account after `$JS.ACK` (ADR-15).
    """
    tokens = msg.reply.split(".")
    at = 2 if len(tokens) == 9 else 4
    return Pulled(tokens[at], int(tokens[at + 3]), tokens[at + 5], int(tokens[at + 2]), msg.reply, msg.data)
