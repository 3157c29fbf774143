"""Endings carried out: first recorded, then acknowledged. What does not succeed is kept, and tried again with the next.

Acknowledgements are sent without waiting, all but the last of a stream: a consumer takes them in order, so its answer to the last
says that all are done. A stream that did not answer is not waited for again until it does. Nor are records, once some did not
get there in time, until none of those is missing; and what needs none waits for no record.

Servers that are full take no record, and only acknowledgements make room: some hits are then acknowledged first, on credit.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from proxy.delivery import Final
from proxy.outcome import Ending
from proxy.spool.jetstream.endings import records
from proxy.spool.jetstream.flight import Flight, Flights, Key
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.publisher import UNANSWERED, Message, Publisher
from proxy.spool.jetstream.refusal import for_want_of_room

if TYPE_CHECKING:
    from nats.aio.client import Client

RECORD_S, ACK_S = 3.0, 2.0
"""Patience for records, and for the answer to acknowledgements."""
WAIT_S = 2.0
"""For records that take longer nobody waits."""
REST_S = 1.0
"""Between two tries at a stream that is silent."""
FARTHEST_MS = 3_600_000
"""No verdict puts a hit off for longer (delivery.MAX_RETRY_AFTER_MS)."""
ACK = b"+ACK"
CREDIT = 16
"""Hits that may be acknowledged and not recorded, where there is no room for records. If this process dies then, they count as
delivered. Never a dead letter: it would be lost.
"""


class _Ending:
    """A hit's ending, and how far it is carried out."""

    def __init__(self, flight: Flight, final: Final) -> None:
        self.flight, self.final = flight, final
        self.recording = self.recorded = self.acknowledged = False
        self.late = False
        """Whether its record did not get there in time."""

    @property
    def on_credit(self) -> bool:
        """Whether it may be acknowledged before it is recorded."""
        return self.final.outcome.ending is not Ending.DEAD and bool(self.flight.reply)


class Settler:
    """`end` is called from the forwarder's thread, all else on the link's loop."""

    def __init__(self, names: Names, flights: Flights) -> None:
        self._names, self._flights = names, flights
        self._publisher = Publisher()
        self.kept: dict[Key, _Ending] = {}
        """Endings that are not yet carried out."""
        self._acknowledging: dict[str, asyncio.Task[None]] = {}
        """By stream."""
        self.silent: set[str] = set()
        """Streams that did not answer last."""
        self._why = ""
        """Why something was not recorded last."""

    async def subscribe(self, client: "Client") -> None:
        await self._publisher.subscribe(client)

    def end(self, flight: Flight, final: Final) -> None:
        """To be carried out with the next `record`."""
        self._flights.ended(flight)
        self.kept[flight.key] = _Ending(flight, final)

    async def record(self, link: Link) -> None:
        """Carry out what is kept, as far as that succeeds. Raises what goes wrong; RuntimeError where records are missing."""
        endings = list(self.kept.values())
        slow = any(ending.late and not ending.recorded for ending in endings)
        begun = [ending for ending in endings if not (ending.recorded or ending.recording)]
        recording = self._put_down(link, begun)
        await self._acknowledge(link, [ending for ending in endings if ending.recorded])
        if recording is not None and not slow:
            await asyncio.wait([recording], timeout=WAIT_S)
            for ending in begun:
                ending.late = ending.recording
        missing = [ending for ending in endings if not ending.recorded]
        credit = [ending for ending in missing if ending.on_credit][:CREDIT] if for_want_of_room(self._why) else []
        await self._acknowledge(link, [ending for ending in endings if ending.recorded] + credit)
        if missing:
            raise RuntimeError(self._why or UNANSWERED)

    def _put_down(self, link: Link, endings: Sequence[_Ending]) -> "asyncio.Task[None] | None":
        """Begin to record them. What a message has said before it may say again: it bears an id."""
        now_ms = time.time_ns() // 1_000_000
        messages, whose = [], []
        for ending in endings:
            told = records(self._names, ending.flight, ending.final, now_ms)
            ending.recorded, ending.recording = not told, bool(told)
            messages += told
            whose += [ending] * len(told)
        return asyncio.create_task(self._publish(link, messages, whose)) if messages else None

    async def _publish(self, link: Link, messages: Sequence[Message], whose: Sequence[_Ending]) -> None:
        try:
            errors = await self._publisher.publish(link, messages, RECORD_S)
        finally:
            for ending in whose:
                ending.recording = False
        failed = {id(ending) for ending, error in zip(whose, errors, strict=True) if error}
        for ending in whose:
            ending.recorded = id(ending) not in failed
            if ending.recorded and ending.acknowledged:
                self.kept.pop(ending.flight.key, None)
        self._why = next(filter(for_want_of_room, errors), "") or next(filter(None, errors), "")

    async def _acknowledge(self, link: Link, endings: Sequence[_Ending]) -> None:
        by_stream: dict[str, list[Flight]] = {}
        for flight in (ending.flight for ending in endings if not ending.acknowledged):
            if not flight.reply:
                self._done(flight)
            elif flight.key[0] not in self._acknowledging:
                by_stream.setdefault(flight.key[0], []).append(flight)
        client = link.client()
        if client is None:
            return
        for stream, some in by_stream.items():
            task = self._acknowledging[stream] = asyncio.create_task(self._acknowledge_to(client, stream, some))
            task.add_done_callback(partial(self._acknowledging.pop, stream))  # also of one that was cut off before it began
        awaited = [task for stream, task in self._acknowledging.items() if stream not in self.silent]
        answers = await asyncio.gather(*awaited, return_exceptions=True)
        if failed := next((answer for answer in answers if answer is not None), None):
            raise failed

    async def _acknowledge_to(self, client: "Client", stream: str, flights: Sequence[Flight]) -> None:
        """Raises what went wrong the first time; a stream that is silent again rests meanwhile."""
        try:
            for flight in flights[:-1]:
                await client.publish(flight.reply, ACK)
            await client.request(flights[-1].reply, ACK, timeout=ACK_S)
        except Exception:
            if stream not in self.silent:
                self.silent.add(stream)
                raise
            await asyncio.sleep(REST_S)
        else:
            self.silent.discard(stream)
            for flight in flights:
                self._done(flight)

    def _done(self, flight: Flight) -> None:
        if (ending := self.kept.get(flight.key)) is not None:
            ending.acknowledged = True
            if ending.recorded:
                del self.kept[flight.key]
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
