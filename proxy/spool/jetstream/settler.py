"""Endings carried out: first recorded, then acknowledged. What does not succeed is kept, and tried again with the next.

Acknowledgements are sent without waiting, all but the last of a stream: a consumer takes them in order, so its answer to the last
says that all are done.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.delivery import Final
from proxy.spool.jetstream.endings import records
from proxy.spool.jetstream.flight import Flight, Flights, Key
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.publisher import Publisher

if TYPE_CHECKING:
    from nats.aio.client import Client

RECORD_S, ACK_S = 3.0, 2.0
"""Patience for records, and for the answer to acknowledgements."""
FARTHEST_MS = 3_600_000
"""No verdict puts a hit off for longer (delivery.MAX_RETRY_AFTER_MS)."""
ACK = b"+ACK"


class _Ending:
    """A hit's ending, and whether it is recorded already."""

    def __init__(self, flight: Flight, final: Final) -> None:
        self.flight, self.final = flight, final
        self.recorded = False


class Settler:
    """`end` is called from the forwarder's thread, all else on the link's loop."""

    def __init__(self, names: Names, flights: Flights) -> None:
        self._names, self._flights = names, flights
        self._publisher = Publisher()
        self.kept: dict[Key, _Ending] = {}
        """Endings that are not yet carried out."""

    async def subscribe(self, client: "Client") -> None:
        await self._publisher.subscribe(client)

    def end(self, flight: Flight, final: Final) -> None:
        """To be carried out with the next `record`."""
        self._flights.ended(flight)
        self.kept[flight.key] = _Ending(flight, final)

    async def record(self, link: Link) -> None:
        """Carry out what is kept, as far as that succeeds."""
        endings = list(self.kept.values())
        now_ms = time.time_ns() // 1_000_000
        messages, whose = [], []
        for ending in endings:
            if not ending.recorded:
                ending.recorded = True
                for message in records(self._names, ending.flight, ending.final, now_ms):
                    messages.append(message)
                    whose.append(ending)
        errors = await self._publisher.publish(link, messages, RECORD_S)
        for ending, error in zip(whose, errors, strict=True):
            if error:
                ending.recorded = False
        await self._acknowledge(link, [ending.flight for ending in endings if ending.recorded])
        if failed := next(filter(None, errors), ""):
            raise RuntimeError(failed)

    async def _acknowledge(self, link: Link, flights: Sequence[Flight]) -> None:
        by_stream: dict[str, list[Flight]] = {}
        for flight in flights:
            if not flight.reply:
                self._done(flight)
                continue
            by_stream.setdefault(flight.key[0], []).append(flight)
        client = link.client()
        if client is None:
            return
        for some in by_stream.values():
            for flight in some[:-1]:
                await client.publish(flight.reply, ACK)
        last = (client.request(some[-1].reply, ACK, timeout=ACK_S) for some in by_stream.values())
        answers = await asyncio.gather(*last, return_exceptions=True)
        for some, answer in zip(by_stream.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                continue
            for flight in some:
                self._done(flight)
        if failed := next((answer for answer in answers if isinstance(answer, BaseException)), None):
            raise failed

    def _done(self, flight: Flight) -> None:
        self.kept.pop(flight.key, None)
        self._flights.forget(flight)

    async def put_off(self, link: Link, replies: Sequence[tuple[str, int]]) -> None:
        """Let the server give those hits out again, not before so many milliseconds. What this does not reach waits
        for ack_wait. The delay is in nanoseconds (ADR-13).
        """
        client = link.client()
        if client is None:
            return
        for reply, wait_ms in replies:
            if not reply:
                continue
            delay = f" {json.dumps({'delay': min(wait_ms, FARTHEST_MS) * 1_000_000})}" if wait_ms > 0 else ""
            await client.publish(reply, f"-NAK{delay}".encode())
        await client.flush(2)
