"""The forwarder's half over JetStream. Any number may be at work: the server deals the hits out, and none to two at once.

A hit that is to be tried again soon waits here, and stays this forwarder's by saying so now and then; one that is put off for
long, or for which there is no room, goes back to the server with a delay. The number of its attempts is exact while a hit stays
here. Once another forwarder has it, or this one anew, the server's count of deliveries stands for it: one more for each time that
it was handed back without an attempt (a forwarder that stopped or died), one less for each attempt but the last that it had where
it stayed.
"""

import asyncio
import contextlib
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from proxy import hit as hits
from proxy.delivery import Final
from proxy.log import Trouble, log
from proxy.outcome import Outcome
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.address import parse
from proxy.spool.jetstream.book import Book
from proxy.spool.jetstream.flight import Flights, Source
from proxy.spool.jetstream.link import Link, in_words
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.peers import JetStreamPeers
from proxy.spool.jetstream.pull import Puller
from proxy.spool.jetstream.settler import Settler
from proxy.spool.jetstream.tap import Tap
from proxy.spool.port import Claim, Ledger, Settlement, SpoolConfig, SpoolError, Tapped, Wanted

if TYPE_CHECKING:
    from nats.aio.client import Client

T = TypeVar("T")

LOOK_S = 1.0
"""Between two looks for streams of new sites."""
SITE_PATIENCE_S, COMMON_PATIENCE_S, REST_S = 1.0, 2.0, 5.0
"""For one site's stream to answer, and for the common ones; if they do not, they are asked again after so long."""
HURRY_S = 0.1
"""How long is waited for what did not answer before; if it takes longer, its answer counts when it comes."""
POLLED_AT_ONCE, POLL_S = 16, 0.002
"""With more sites, one without hits is asked again after so long for each of them: idle sites shall not keep a server busy."""
SAY_S, UNHEARD_S = 5.0, streams.ACK_WAIT_S / 3
"""How often is looked for hits of which the server was told nothing for so long."""
PATIENCE_S = 10.0
FORGET_S = 10.0
"""A call that failed, and was not made again for so long, says nothing any more: not every one recurs."""


class JetStreamOutlet:
    """Used from one thread at a time. Raises SpoolError for what waiting cannot mend."""

    def __init__(self, config: SpoolConfig) -> None:
        address = parse(config.url)
        self._names, self._replicas = Names(address.stream), address.replicas
        self._flights = Flights()
        self._puller, self._settler = Puller(), Settler(self._names, self._flights)
        self._book, self._tap = Book(self._names), Tap(self._names)
        self._sources: dict[str, Source] = {}
        """By stream, where our consumer is known to be there."""
        self._dry: dict[str, float] = {}
        """Stream → when (monotonic) it last had less than was asked for."""
        self._resting: dict[str, float] = {}
        """Streams that did not answer last → until when (monotonic) they are left alone."""
        self._asking: dict[str, asyncio.Task[Exception | None]] = {}
        """By stream, where we are making sure of our consumer."""
        self._births = streams.Births()
        self._next_prepare = float("-inf")
        """When (monotonic) to make sure of the common streams again; infinite while nothing has failed since they were there."""
        self._wrong: dict[str, float] = {}
        """The calls that failed last → when (monotonic)."""
        self._looked, self._seen_in = float("-inf"), 0
        """When we last looked for sites, and in which of the link's generations."""
        self._told_of = Trouble()
        self._link = Link(address, "beacon-proxy forwarder", self._subscribe)
        self.peers = JetStreamPeers(self._names, self._link, self._run, self._flights, self._settler)
        if self._link.wait_open():
            try:
                self._link.run(self._prepare(), 4 * api.PATIENCE_S)
            except SpoolError:
                self._link.close()
                raise
            except Exception as error:
                self._in_trouble(error)
        self._saying = asyncio.run_coroutine_threadsafe(self._keep_saying(), self._link.loop)

    def claim(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted] = {}) -> list[Claim]:
        """As the port says; each site gets its share."""
        self._settle_kept()
        self._prepare_again()
        closed = {site for site, (fresh, _) in wanted.items() if fresh <= 0}
        self._run(self._fetch(limit, closed), None)
        claimed = self._flights.due(limit, now_ms, wanted) + self._flights.fresh(limit, closed)
        claims = []
        for flight in claimed:
            try:
                claims.append(Claim(flight, hits.decode(flight.content), flight.attempt, flight.failed))
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._settler.end(flight, Final(Outcome.UNREADABLE))
        if len(claims) < len(claimed):
            self._settle_kept()
        return claims

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """As the port says."""
        now_ms = time.time_ns() // 1_000_000
        put_off: list[tuple[str, int]] = []
        for claim, verdict in settlements:
            flight = claim.ticket
            if not self._flights.is_out(flight):
                continue
            if isinstance(verdict, Final):
                self._settler.end(flight, verdict)
            elif not self._flights.wait(flight, verdict, now_ms):
                put_off.append((self._flights.hand_back(flight), verdict.due_ms - now_ms))
        if put_off:
            self._run(self._settler.put_off(self._link, put_off), None)
        self._settle_kept()

    def ledger(self) -> Ledger:
        """Raises SpoolError where it cannot be read."""
        client = self._link.client()
        if client is None:
            raise self._link.unreachable()
        return self._link.ask(self._book.read(client), PATIENCE_S)

    def publish(self, state: bytes) -> None:
        self._prepare_again()  # who has no share claims nothing
        self._run(self.peers.tell(state), None)
        self._settle_kept()

    def recall(self) -> bytes:
        return self._run(self.peers.recall(), b"")

    def watched(self) -> bool:
        return self._tap.watched()

    def show(self, event: Tapped) -> None:
        self._tap.show_from(self._link, event)

    def close(self) -> None:
        self._settle_kept()
        self._saying.cancel()
        self._run(self._settler.put_off(self._link, [(reply, 0) for reply in self._flights.clear()]), None)
        self._link.close()

    def _prepare_again(self) -> None:
        if time.monotonic() >= self._next_prepare:
            self._run(self._ensure_common(), None, COMMON_PATIENCE_S)

    def _settle_kept(self) -> None:
        if self._settler.kept:
            self._run(self._record(), None)

    async def _record(self) -> None:
        if (client := self._link.client()) is not None and self._link.generation != self._seen_in:
            await self._look_for_sites(client)  # servers may have come back without their streams
        await self._settler.record(self._link)

    def _run(self, call: Coroutine[Any, Any, T], otherwise: T, patience_s: float = PATIENCE_S) -> T:
        """What the call gives; in trouble, what is given otherwise. The trouble is told of once, and its end when every call that
        failed has succeeded, or is not made any more.
        """
        what = getattr(call, "__qualname__", "")
        try:
            if self._link.client() is None:
                call.close()
                self._wrong = dict.fromkeys(self._wrong, time.monotonic())  # what cannot be tried is not over
                return otherwise
            found = self._link.run(call, patience_s)
        except Exception as error:
            self._wrong[what] = time.monotonic()
            self._in_trouble(error)
            self._next_prepare = min(self._next_prepare, time.monotonic() + REST_S)  # somebody may have deleted one
            away = isinstance(error, TimeoutError) or (isinstance(error, api.ApiError) and error.number == api.UNAVAILABLE)
            if away and not self._sources:  # as long as a site answers, it is not the server
                asyncio.run_coroutine_threadsafe(self._link.move_on(), self._link.loop)
            return otherwise
        self._wrong.pop(what, None)
        lately = time.monotonic() - FORGET_S
        over = all(at < lately for at in self._wrong.values()) and not self._resting and self._next_prepare == float("inf")
        if over and not self._settler.silent & self._sources.keys() and self._told_of.ends():
            log.info("the spool works again")
        return found

    def _in_trouble(self, error: Exception) -> None:
        if self._told_of.begins():
            log.error("spool in trouble", reason=in_words(error))

    async def _subscribe(self, client: "Client") -> None:
        await self._puller.subscribe(client)
        await self._settler.subscribe(client)
        await self._tap.subscribe(client)

    async def _prepare(self) -> None:
        if (client := self._link.client()) is not None:
            await self._ensure_common()
            wrong = await self._look_for_sites(client)
            if found := next((error for error in wrong if isinstance(error, SpoolError)), None):
                raise found

    async def _ensure_common(self) -> None:
        if (client := self._link.client()) is not None:
            self._next_prepare = time.monotonic() + REST_S
            await streams.ensure_common(client, self._names, self._replicas, self._births)
            self._next_prepare = float("inf")

    async def _look_for_sites(self, client: "Client") -> list[Exception]:
        """What is wrong with single sites: it does not stop the others. Raises where nobody answers at all."""
        if self._link.generation != self._seen_in:
            self._flights.take_off(self._puller.take(), self._source_of, ())  # those are of the streams that were there before
            self._sources.clear()
            self._seen_in = self._link.generation
        try:
            asked = api.ask_all(client, "STREAM.NAMES", "streams", {"subject": self._names.all_hits})
            found = await asyncio.wait_for(asked, SITE_PATIENCE_S)
        except Exception as error:
            self._wrong["look"] = time.monotonic()
            if not self._sources:
                raise
            return [error]
        finally:
            now = self._looked = time.monotonic()
        self._wrong.pop("look", None)
        for gone in self._sources.keys() - set(found):
            del self._sources[gone]
        self._resting = {stream: until for stream, until in self._resting.items() if stream in found}
        new = [s for s in found if s not in self._sources and s not in self._asking and self._resting.get(s, 0.0) <= now]
        if not new:
            return []
        for stream in new:
            task = self._asking[stream] = asyncio.create_task(self._ask_for(client, stream))
            task.add_done_callback(partial(self._asking.pop, stream))
        begun = [self._asking[stream] for stream in new]
        done, _ = await asyncio.wait(begun, timeout=HURRY_S if self._resting.keys() >= set(new) else None)
        self._sources = {stream: self._sources[stream] for stream in found if stream in self._sources}  # in their order
        wrong = [failed for task in done if (failed := task.result()) is not None]
        if wrong and not self._sources and not any(isinstance(error, SpoolError) for error in wrong):
            raise wrong[0]
        return wrong

    async def _ask_for(self, client: "Client", stream: str) -> Exception | None:
        """Our consumer is there from now on; or why it is not, and the stream rests."""
        try:
            async with asyncio.timeout(SITE_PATIENCE_S):
                born = await streams.born(client, self._names, stream)
                await streams.ensure_consumer(client, stream)
        except Exception as error:
            self._resting[stream] = time.monotonic() + REST_S
            return error
        self._resting.pop(stream, None)
        self._births.note(stream, born)
        self._sources[stream] = Source(self._names.site_of(stream), born)
        self._flights.orphan(self._sources)
        return None

    def _source_of(self, stream: str) -> Source:
        return self._sources.get(stream) or Source(self._names.site_of(stream), "")

    async def _fetch(self, wanted: int, closed: Collection[str]) -> None:
        """Get so many hits here that have not failed, less the retries that come instead of them: of each site its share first,
        then, where some had none, more of the others.
        """
        client = self._link.client()
        if client is None:
            return
        if time.monotonic() - self._looked >= LOOK_S or self._link.generation != self._seen_in:
            for error in await self._look_for_sites(client):
                self._in_trouble(error)
        here = self._flights.take_off(self._puller.take(), self._source_of, closed)
        now, rest_s = time.monotonic(), POLL_S * len(self._sources) if len(self._sources) > POLLED_AT_ONCE else 0.0
        wet = [
            s
            for s, source in self._sources.items()
            if source.site not in closed and now - self._dry.get(s, float("-inf")) >= rest_s
        ]
        retries = 0
        while wet and (missing := wanted - here - retries) > 0:
            share = -(-missing // len(wet))
            asked = {stream: min(share, missing - share * turn) for turn, stream in enumerate(wet) if missing > share * turn}
            there = await asyncio.gather(*(self._puller.fetch(client, stream, n) for stream, n in asked.items()))
            pulled = self._puller.take()
            came = dict.fromkeys(asked, 0)
            for one in pulled:
                came[one.stream] = came.get(one.stream, 0) + 1
            retries += sum(one.delivered > 1 for one in pulled)
            here = self._flights.take_off(pulled, self._source_of, closed)
            for stream, is_there in zip(asked, there, strict=True):
                if not is_there:
                    self._sources.pop(stream, None)
                    self._resting[stream] = now
            dry = {stream for stream, n in asked.items() if came[stream] < n}
            self._dry.update(dict.fromkeys(dry, time.monotonic()))
            wet = [stream for stream in wet if stream not in dry]

    async def _keep_saying(self) -> None:
        """What is here stays ours: the server gives a hit of which it hears nothing to another."""
        while True:
            await asyncio.sleep(SAY_S)
            if (client := self._link.client()) is not None:
                with contextlib.suppress(Exception):
                    for flight in self._flights.unheard(time.monotonic() - UNHEARD_S):
                        if flight.reply:  # its stream may be gone meanwhile
                            await client.publish(flight.reply, b"+WPI")
                        flight.heard = time.monotonic()
