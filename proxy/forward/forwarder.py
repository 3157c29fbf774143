"""The forwarder's loop: claim → parse → enrich → sign → send → decide → settle, many in flight, settled in batches.

It decides nothing itself: parsing, enrichment, signing, verdicts and the pace are pure parts it calls. A hit leaves the spool
only with its settlement; whatever stops the process in between leads to a byte-identical resend.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from proxy.beacon import parse, plain_name
from proxy.delivery import Answer, Final, Verdict, decide, delivered, refused
from proxy.enrich import Enrichment, load
from proxy.enrich.bot import is_bot
from proxy.forward.clock import Clock
from proxy.forward.config import ForwarderConfig
from proxy.forward.pacing import State
from proxy.forward.route import Route, monotonic_ms
from proxy.forward.sign import UpstreamRequest, sign
from proxy.forward.telling import open_telling
from proxy.forward.traces import Traces
from proxy.forward.upstream import open_upstream
from proxy.forward.watch import Seen, Watch
from proxy.hit import Hit
from proxy.log import log
from proxy.outcome import Outcome
from proxy.spool.port import Claim, Outlet, Settlement, Wanted

T = TypeVar("T")

IDLE_S = 0.02
"""Between two looks at an empty spool."""
SETTLE_S = 0.02
"""Settlements gather this long before they are written together."""


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


def prepare(hit: Hit, config: ForwarderConfig, enrichment: Enrichment) -> Prepared | Outcome:
    """Everything between the spool and the socket: a pure function of the hit and the configuration."""
    site = config.sites.get(hit.site)
    if site is None:
        return Outcome.UNKNOWN_SITE
    if config.enrich.bots == "drop" and is_bot(hit.user_agent):
        return Outcome.BOT
    beacon = parse(hit)
    if isinstance(beacon, Outcome):
        return beacon
    properties = enrichment.fill(beacon, hit)
    if config.address_property and beacon.kind != "a":
        ours = plain_name(config.address_property)
        properties = {name: value for name, value in properties.items() if plain_name(name) != ours}
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
        self._settled: list[Settlement] = []
        self._wake = asyncio.Event()
        self._runners: set[asyncio.Task[None]] = set()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")
        self._disk.submit(int).result()  # its thread has the priority of who starts it: now
        self._telling = open_telling(config, outlet, self._on_disk)
        routes: dict[str, Route] = {}
        self._by_site: dict[str, Route] = {}
        for name, site in config.sites.items():
            if site.upstream not in routes:
                routes[site.upstream] = self._telling.route(site.upstream)
            route = routes[site.upstream]
            route.sites.add(name)
            self._by_site[name] = route
        self._routes = list(routes.values())
        self._enrichment = load(config.enrich)
        self._clock = Clock(self._telling.before.clock)
        self._watch = Watch(outlet)
        self._traces = Traces(config.trace_ratio) if config.trace_ratio else None

    def stop(self) -> None:
        """Claim no more."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Until stopped. The outlet is closed at the end."""
        self._upstream = open_upstream(self._config.engine, self._config.attempt_timeout_s, self._config.concurrency)
        try:
            while not self._stopping.is_set():
                await self._turn()
            await self._drain()
        finally:
            cut_off = set(self._runners)
            for runner in cut_off:
                runner.cancel()
            await asyncio.gather(*cut_off, return_exceptions=True)
            await self._on_disk(self._outlet.settle, self._take_settled())
            await self._telling.end(self._routes, self._clock.seen, cut_off=bool(cut_off))
            await self._on_disk(self._outlet.close)
            self._disk.shutdown()
            await self._upstream.close()
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)

    async def _turn(self) -> None:
        """Write the verdicts that have gathered, claim what there is room for, set it going, and rest."""
        if settled := self._take_settled():
            await self._on_disk(self._outlet.settle, settled)
        wanted = {route.upstream: max(0, route.wanted()) for route in self._routes}
        if room := sum(wanted.values()):
            closed = {site: Wanted(0, 0) for route in self._routes if not wanted[route.upstream] for site in route.sites}
            for claim in await self._on_disk(self._outlet.claim, room, self._clock.now_ms(), closed):
                route = self._by_site.get(claim.hit.site)
                if route is None:
                    self._settled.append(Settlement(claim, Final(Outcome.UNKNOWN_SITE)))
                else:
                    route.queue.append(claim)
        for route in self._routes:
            self._set_going(route)
        if self._telling.due():
            await self._publish()
        self._wake.clear()
        if not self._settled and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), SETTLE_S if self._runners else IDLE_S)

    async def _publish(self) -> None:
        if self._clock.look():
            log.warning("the wall clock jumped: no beacon is called too old before max_age has passed from now on")
        for route in self._routes:
            self._tell(route)
        await self._telling.tell(self._routes, self._clock.seen, self._watch.last(self._clock.now_ms()))

    async def _drain(self) -> None:
        """Give back what no attempt was begun for; let the attempts under way end, within the grace."""
        for route in self._routes:
            route.queue.clear()
        if self._runners:
            await asyncio.wait(self._runners, timeout=max(0.1, self._config.shutdown_grace_s - 1.5))

    def _set_going(self, route: Route) -> None:
        """As many attempts at once as the pace allows: each runner takes hit after hit."""
        while route.may_send():
            route.pace.began()
            runner = asyncio.create_task(self._run_route(route, route.queue.popleft()))
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)

    async def _run_route(self, route: Route, claim: Claim) -> None:
        while True:
            try:
                verdict = await self._deliver(route, claim)
            except Exception:
                log.exception("a hit cannot be handled; it is kept as a dead letter", site=claim.hit.site)
                verdict = Final(Outcome.UNREADABLE, "internal error")
            self._settled.append(Settlement(claim, verdict))
            if not route.may_send() or self._stopping.is_set():
                break
            route.pace.began()
            claim = route.queue.popleft()
        if not route.queue:
            self._wake.set()

    async def _deliver(self, route: Route, claim: Claim) -> Verdict:
        hit, config, pace = claim.hit, self._config, route.pace
        attempt = await self._attempt(route, hit)
        if isinstance(attempt, Outcome):
            dropped = Final(attempt)
            now_ms = self._clock.now_ms()
            seen = Seen(now_ms, hit, None, dropped, claim.attempt, now_ms - hit.received_ms)
            self._watch.see(seen)
            if self._traces is not None:
                self._traces.tell(seen, 0, route.upstream)
            return dropped
        prepared, answer, took_ms = attempt
        blamed = pace.blames_hit()
        if delivered(answer) or refused(answer):
            pace.succeeded(took_ms, monotonic_ms())
        else:
            pace.failed(str(answer), monotonic_ms())
        self._tell(route)
        age_ms, now_ms = self._clock.age_ms(hit.received_ms), self._clock.now_ms()
        route.attempted(hit.site, answer, took_ms)
        verdict = decide(
            answer,
            claim.attempt,
            age_ms,
            config.policy,
            now_ms,
            random.random(),  # noqa: S311
            blamed=blamed,
        )
        if isinstance(verdict, Final) and verdict.outcome is Outcome.DELIVERED:
            route.delivered += 1
            route.stats.delivery_seconds.observe(max(0, age_ms) / 1000)
            if prepared.trimmed:
                verdict = Final(verdict.outcome, verdict.answer, trimmed=True)
        seen = Seen(now_ms, hit, prepared.request, verdict, claim.attempt, age_ms)
        self._watch.see(seen)
        if self._traces is not None:
            self._traces.tell(seen, took_ms, route.upstream)
        if self._observe is not None:
            masked = prepared.request.masked(config.sites[hit.site].api_key)
            self._observe(Attempted(hit, masked, answer, verdict, took_ms))
        return verdict

    async def _attempt(self, route: Route, hit: Hit) -> tuple[Prepared, Answer, float] | Outcome:
        """What was sent, its answer, and the milliseconds it took; or why nothing was sent. Here alone a request is taken back:
        what goes wrong after its answer must not do so a second time.
        """
        try:
            prepared = prepare(hit, self._config, self._enrichment)
            if not isinstance(prepared, Outcome):
                began = time.perf_counter()
                answer = await self._upstream.send(prepared.request)
                return prepared, answer, (time.perf_counter() - began) * 1000
        except BaseException:
            route.pace.abandoned()
            raise
        route.pace.abandoned()
        return prepared

    def _tell(self, route: Route) -> None:
        """Once for each change, and not for each flicker."""
        route.note_state(self._clock.now_ms())
        if route.refusal:
            if route.refusing.begins():
                log.warning("upstream refuses every beacon: dead letters", upstream=route.upstream, answer=route.refusal)
        elif route.refusing.ends():
            log.info("upstream refuses no more", upstream=route.upstream)
        if route.pace.state is State.CLOSED:
            if route.trouble.ends():
                log.info("upstream takes beacons again", upstream=route.upstream)
        elif route.trouble.begins():
            log.warning("upstream takes nothing: waiting and probing", upstream=route.upstream, failure=route.pace.last_failure)

    def _take_settled(self) -> list[Settlement]:
        settled, self._settled = self._settled, []
        return settled

    async def _on_disk(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call, *args)
