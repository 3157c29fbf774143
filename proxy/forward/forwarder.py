"""The forwarder's loop: claim → parse → enrich → sign → send → decide → settle, many in flight, settled in batches.

It decides nothing itself: parsing, enrichment, signing and verdicts are pure functions it calls. A hit leaves the spool only
with its settlement; whatever stops the process in between leads to a byte-identical resend.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from proxy.beacon import parse
from proxy.delivery import Answer, Final, Verdict, decide
from proxy.enrich import enrich
from proxy.forward.config import ForwarderConfig
from proxy.forward.sign import UpstreamRequest, sign
from proxy.forward.upstream import open_upstream
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.port import Claim, Outlet, Settlement

T = TypeVar("T")

IDLE_S = 0.02
"""Between two looks at an empty spool."""
SETTLE_S = 0.02
"""Settlements gather this long before they are written together."""


def now_ms() -> int:
    """The wall clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Prepared(msgspec.Struct, frozen=True):
    """A hit ready to be sent."""

    request: UpstreamRequest
    trimmed: bool


class Attempted(msgspec.Struct, frozen=True):
    """Told to the observer after each attempt; the request is masked."""

    hit: Hit
    request: UpstreamRequest
    answer: Answer
    verdict: Verdict
    took_ms: float


Observer = Callable[[Attempted], None]


def prepare(hit: Hit, config: ForwarderConfig) -> Prepared | Outcome:
    """Everything between the spool and the socket: a pure function of the hit and the configuration."""
    site = config.sites.get(hit.site)
    if site is None:
        return Outcome.UNKNOWN_SITE
    beacon = parse(hit)
    if isinstance(beacon, Outcome):
        return beacon
    properties = enrich(beacon, hit)
    if config.address_property and beacon.kind != "a":
        folded = config.address_property.casefold()
        properties = {name: value for name, value in properties.items() if name.casefold() != folded}
        if hit.address:
            properties[config.address_property] = hit.address
    return Prepared(sign(beacon, properties, site), beacon.trimmed)


class Forwarder:
    """Runs until `stop`; then what is in flight has the shutdown grace to finish, and the rest stays in the spool."""

    def __init__(self, config: ForwarderConfig, outlet: Outlet, observe: Observer | None = None) -> None:
        self._config = config
        self._outlet = outlet
        self._observe = observe
        self._stopping = asyncio.Event()
        self._queue: asyncio.Queue[Claim] = asyncio.Queue()
        self._settled: list[Settlement] = []
        self._wake = asyncio.Event()
        self._in_flight = 0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")

    def stop(self) -> None:
        """Claim no more."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Until stopped. The outlet is closed at the end."""
        config = self._config
        self._upstream = open_upstream(config.engine, config.attempt_timeout_s, config.concurrency)
        workers = [asyncio.create_task(self._work()) for _ in range(config.concurrency)]
        try:
            while not self._stopping.is_set():
                await self._turn()
            await self._drain()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._on_disk(self._outlet.settle, self._take_settled())
            await self._on_disk(self._outlet.close)
            self._disk.shutdown()
            await self._upstream.close()

    async def _turn(self) -> None:
        """Write the verdicts that have gathered, claim what there is room for, and rest."""
        if settled := self._take_settled():
            await self._on_disk(self._outlet.settle, settled)
        room = 2 * self._config.concurrency - self._in_flight
        claims = await self._on_disk(self._outlet.claim, room, now_ms()) if room > 0 else []
        self._in_flight += len(claims)
        for claim in claims:
            self._queue.put_nowait(claim)
        self._wake.clear()
        if not self._settled and not self._stopping.is_set():
            busy = self._in_flight > 0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), SETTLE_S if busy else IDLE_S)

    async def _drain(self) -> None:
        """Give back what no attempt was begun for; let the attempts under way end, within the grace."""
        unsent = []
        while not self._queue.empty():
            unsent.append(self._queue.get_nowait())
        self._in_flight -= len(unsent)
        deadline = time.monotonic() + max(0.1, self._config.shutdown_grace_s - 1)
        while self._in_flight and (left := deadline - time.monotonic()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    async def _work(self) -> None:
        while True:
            claim = await self._queue.get()
            verdict = await self._deliver(claim)
            self._settled.append(Settlement(claim, verdict))
            self._in_flight -= 1
            if self._in_flight == 0 or len(self._settled) >= self._config.concurrency:
                self._wake.set()

    async def _deliver(self, claim: Claim) -> Verdict:
        hit, config = claim.hit, self._config
        prepared = prepare(hit, config)
        if isinstance(prepared, Outcome):
            return Final(prepared)
        began = time.perf_counter()
        answer = await self._upstream.send(prepared.request)
        took_ms = (time.perf_counter() - began) * 1000
        verdict = decide(answer, claim.attempt, hit.received_ms, config.policy, now_ms(), random.random())  # noqa: S311
        if prepared.trimmed and isinstance(verdict, Final) and verdict.outcome is Outcome.DELIVERED:
            verdict = Final(verdict.outcome, verdict.answer, trimmed=True)
        if self._observe is not None:
            masked = prepared.request.masked(config.sites[hit.site].api_key)
            self._observe(Attempted(hit, masked, answer, verdict, took_ms))
        return verdict

    def _take_settled(self) -> list[Settlement]:
        settled, self._settled = self._settled, []
        return settled

    async def _on_disk(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call, *args)
