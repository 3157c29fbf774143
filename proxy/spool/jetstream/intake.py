"""The collector's half over JetStream: what gathers while a batch is being sent is the next one; many are under way at once.

An append returns when the servers have acknowledged its hit: with `replicas=3` a majority of three has it then. How soon each
server syncs it to its disk is the server's setting (`sync_interval`), not ours.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from proxy.hit import Hit
from proxy.log import Trouble, log
from proxy.outcome import Outcome
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.address import parse
from proxy.spool.jetstream.ids import Ids
from proxy.spool.jetstream.link import Link, in_words
from proxy.spool.jetstream.names import BY_COLLECTOR, Names
from proxy.spool.jetstream.publisher import Publisher
from proxy.spool.jetstream.refusal import for_want_of_room
from proxy.spool.jetstream.shelf import Shelf
from proxy.spool.jetstream.tally import Tally
from proxy.spool.jetstream.tap import Tap
from proxy.spool.port import REFUSED, IntakeStats, SpoolConfig, SpoolError, SpoolRefused, Tapped
from proxy.spool.waiting import Entered, Waiter, wake

if TYPE_CHECKING:
    from nats.aio.client import Client

MAX_WAITING = 32_768
"""Hits that may wait for the servers at once. A site's may take as many places as are left for all others: one that is silent
never has more than half of them.
"""
GATHER_FROM, GATHER_S = 4, 0.0005
"""After a batch of at least so many, others are on their way: see group.py."""
MAX_BATCH = 1024
LONGEST_PATIENCE_S = streams.HITS_WINDOW_S / 2
"""A hit that is repeated later might be stored twice."""
LAST_COUNTS_S = 1.0
"""For what was counted and not yet added, at the end."""
FORGET_S = 60.0
"""A site of which no beacon came for so long says nothing of whether they are stored."""
LOOK_S = 5.0
"""Between two looks at how much the streams hold, and two reports of how it goes."""

Rescue = Callable[[list[tuple[Hit, Waiter]], str], None]
"""Takes over hits that are not known to be stored, with those who wait, and the reason. Each hit bears the id under which it was
published. Called on the link's loop."""


class JetStreamIntake(Entered):
    """Raises SpoolError for what waiting cannot mend; with a rescue only where the package or a file of the settings is missing.
    While no server is there it refuses, and says why once.
    """

    def __init__(self, config: SpoolConfig, rescue: Rescue | None = None) -> None:
        address = parse(config.url)
        self._rescue = rescue
        self.stats = IntakeStats()
        self._names = Names(address.stream)
        self._patience_s = min(config.commit_timeout_s, LONGEST_PATIENCE_S)
        self._max_bytes = config.max_bytes
        self._ids = Ids()
        self._me = f"{socket.gethostname()}-{self._ids.prefix}"
        self._lock = threading.Lock()
        self._hits: list[tuple[Hit, Waiter]] = []
        self._waiting = 0
        """Hits that were taken, and whose waiters were not told yet."""
        self._waiting_of: Counter[str] = Counter()
        """The same by site."""
        self._idle = self._closing = False
        self._full = ""
        """That max_bytes is reached."""
        self._no_room: dict[str, str] = {}
        """Site → with which words its stream's servers refused it; until the next look."""
        self.hangs: dict[str, str] = {}
        """Site → why its last batch was not answered in time; empty once a server has stored or refused anything: servers do not
        hang because one site's stream does. Meanwhile one hit at a time tries whether it is so."""
        self._trouble = Trouble()
        self._failing: dict[str, float] = {}
        """Site → when (monotonic) one of its hits was last not stored; until one is."""
        self._publisher = Publisher()
        self._shelf = Shelf(self._names, address.replicas, self._publisher)
        self._tally = Tally(self._names, self._publisher, self._ids)
        self._tap, self._sizes = Tap(self._names), streams.Sizes(self._names)
        self._under_way: set[asyncio.Task[None]] = set()
        self._link = Link(address, "beacon-proxy collector", self._subscribe, patient=rescue is not None)
        patience = (self._patience_s,) if rescue is not None else ()  # else there is nothing to begin with
        if self._link.wait_open(*patience):
            try:
                self._link.run(self._shelf.prepare(self._link), *patience or (4 * api.PATIENCE_S,))
            except Exception as error:
                if isinstance(error, SpoolError) and rescue is None:
                    self._link.close()
                    raise
                log.warning("the spool is not ready yet", reason=in_words(error))
        self._bell = asyncio.Event()
        self._runner = asyncio.run_coroutine_threadsafe(self._run(), self._link.loop)
        for call in (self._look(), self._tally.run(self._link, self._patience_s)):
            asyncio.run_coroutine_threadsafe(call, self._link.loop)

    def drop(self, site: str, outcome: Outcome) -> None:
        self._tally.add(self._link, site, BY_COLLECTOR + outcome.value)
        self._show(site, outcome.value)

    def refuse(self, site: str) -> None:
        self._tally.add(self._link, site, REFUSED)
        self._show(site, REFUSED)

    def close(self) -> None:
        """What was taken has its patience to be stored."""
        with self._lock:
            self._closing = True
            self._ring()
        with contextlib.suppress(TimeoutError):
            self._runner.result(self._patience_s + 2 * LAST_COUNTS_S)
        self._link.close()

    def _show(self, site: str, name: str) -> None:
        if self._tap.watched():
            self._tap.show_from(self._link, Tapped(time.time_ns() // 1_000_000, site, name))

    @property
    def away(self) -> bool:
        """Whether there is no connection just now."""
        return bool(self._link.trouble)

    def enter(self, hit: Hit, waiter: Waiter) -> None:
        """Take the hit, and tell the waiter what became of it. Raises SpoolRefused if it was not even taken."""
        with self._lock:
            if self._closing:
                raise SpoolRefused("the spool is closed")
            if not (reason := self._why_not(hit.site)):
                self._waiting += 1
                self._waiting_of[hit.site] += 1
                self._hits.append((hit, waiter))
                self._ring()
                return
        self.note(hit.site, reason)
        raise SpoolRefused(reason)

    def _why_not(self, site: str) -> str:
        """Why a hit of that site is not even taken; "" if it is. With the lock."""
        down_since = self._link.down_since
        if down_since is not None and time.monotonic() - down_since > self._patience_s:
            return f"no connection to the spool: {self._link.trouble}"
        if full := self._full or self._no_room.get(site):
            return full
        if self._waiting and (reason := self.hangs.get(site)):
            return reason
        if self._waiting_of[site] >= MAX_WAITING - self._waiting:
            return "the spool's servers are too slow: too many beacons wait for them"
        return ""

    def _ring(self) -> None:
        """With the lock."""
        if self._idle:
            self._idle = False
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._link.loop.call_soon_threadsafe(self._bell.set)

    async def _run(self) -> None:
        while True:
            with self._lock:
                batch, self._hits = self._hits[:MAX_BATCH], self._hits[MAX_BATCH:]
                ended = self._closing and not batch
                self._idle = not batch and not ended
            if ended:
                break
            if not batch:
                await self._bell.wait()
                self._bell.clear()
                continue
            for part in self._shelf.parts([hit for hit, _ in batch]):
                task = asyncio.create_task(self._store([batch[n] for n in part]))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            await asyncio.sleep(GATHER_S if len(batch) >= GATHER_FROM else 0)
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._tally.flush(self._link, LAST_COUNTS_S)

    async def _store(self, batch: list[tuple[Hit, Waiter]]) -> None:
        """Publish, and wake who waits: when all of it is answered, or soon if one site's stream is not as quick as the others."""
        began = time.monotonic()
        errors = ["the spool failed"] * len(batch)
        ids = [self._ids.next() for _ in batch]
        left = dict(enumerate(waiter for _, waiter in batch))

        def told(numbers: Iterable[int]) -> None:
            """With the lock."""
            for number in numbers:
                self._waiting -= 1
                self._waiting_of[batch[number][0].site] -= 1

        def stored(numbers: list[int]) -> None:
            numbers = [n for n in numbers if n in left]
            with self._lock:
                told(numbers)
            wake([left.pop(n) for n in numbers], None)

        try:
            errors = await self._shelf.put_part(self._link, [hit for hit, _ in batch], ids, self._patience_s, stored)
        except Exception as error:  # whatever it is: every waiter is told
            errors = [str(error) or type(error).__name__] * len(batch)
        finally:
            with self._lock:
                told(left)
                if self._publisher.heard >= began:
                    self.hangs = {}
                elif time.monotonic() - began >= 0.9 * self._patience_s:
                    self.hangs |= {hit.site: error for (hit, _), error in zip(batch, errors, strict=True)}
                if any(errors):  # until the next look: the room that deliveries make is for what they have to store, first
                    self._no_room |= {hit.site: why for (hit, _), why in zip(batch, errors, strict=True) if for_want_of_room(why)}
            self._tell(batch, ids, errors, left)
            if self._failing:
                self._note_stored({hit.site for (hit, _), why in zip(batch, errors, strict=True) if not why})
            for site, why in {hit.site: why for (hit, _), why in zip(batch, errors, strict=True) if why}.items():
                self.note(site, why)
        if not any(errors):
            self.stats.commit_seconds.observe(time.monotonic() - began)
            self.stats.batch_hits.observe(len(batch))

    def _tell(self, batch: list[tuple[Hit, Waiter]], ids: list[str], errors: list[str], left: Iterable[int]) -> None:
        """Each waiter that is left what became of its hit; or whoever rescues those that failed."""
        told: dict[str, list[int]] = {}
        for number in left:
            told.setdefault(errors[number], []).append(number)
        for reason, numbers in told.items():
            if reason and self._rescue is not None:
                self._rescue([(replace(batch[n][0], id=ids[n]), batch[n][1]) for n in numbers], reason)
            else:
                wake((batch[n][1] for n in numbers), SpoolRefused(reason) if reason else None)

    async def _subscribe(self, client: "Client") -> None:
        await self._publisher.subscribe(client)
        await self._tap.subscribe(client)

    async def _look(self) -> None:
        """How much is stored, for max_bytes; and say how it goes."""
        while True:
            with contextlib.suppress(Exception):  # no answer: what was known last is still the best guess
                if (client := self._link.client()) is not None:
                    used = await self._sizes.read(client)
                    self._no_room = {}
                    self._full = f"the spool holds max_bytes ({self._max_bytes})" if used >= self._max_bytes else ""
                    await client.publish(self._names.state_of("collector", self._me), msgspec.json.encode(self.stats))
            await asyncio.sleep(LOOK_S)

    def note(self, site: str, reason: str) -> None:
        """Log once that hits are not stored, and why. From any thread."""
        with self._lock:
            self._failing[site] = time.monotonic()
        if not self._trouble.begins():
            return
        if self._rescue is None:
            log.error("refusing beacons", reason=reason)
        else:
            log.warning("beacons go to the fallback", reason=reason)

    def _note_stored(self, sites: Iterable[str]) -> None:
        """Log once that hits of all sites are stored again: the success of one site says nothing of another."""
        with self._lock:
            for site in sites:
                self._failing.pop(site, None)
            lately = time.monotonic() - FORGET_S
            over = all(at < lately for at in self._failing.values())
            if over:
                self._failing.clear()
        if over and self._trouble.ends():
            log.warning("storing again" if self._rescue is None else "beacons go to the spool again")
