"""What a forwarder leaves in the spool once a second: where it stands, for whoever looks, and its figures, for who comes later.

Alone on its spool it has the whole ceiling of each upstream, and one record holds all. Among others it has its share
(sharing.py): each tells where it stands, and all add what they counted to one record that they keep together.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from proxy.forward import clock as clocks
from proxy.forward.config import ForwarderConfig
from proxy.forward.route import Route, RouteStats, monotonic_ms
from proxy.forward.sharing import Sharing
from proxy.log import Trouble, log
from proxy.spool.peers import Peers
from proxy.spool.port import Outlet, Tapped

PUBLISH_MS = 1_000
"""Between two reports of the state."""
NEWS_MS = 100
"""Others who wait for our claim to change wait so much longer at the most."""
LAST_TRIES, LAST_MS = 20, 2_000
"""To add the last figures, where many end at once; a server that hangs is not waited for again."""

OffLoop = Callable[..., Awaitable[Any]]
"""Calls what may wait for the disk or the network."""


class _OfUpstream(msgspec.Struct):
    sites: list[str] = []
    stats: RouteStats = msgspec.field(default_factory=RouteStats)


class Record(msgspec.Struct):
    """What forwarders leave behind: the clocks when one last looked, and figures to count on from."""

    clock: clocks.Seen | None = None
    upstreams: dict[str, _OfUpstream] = {}

    @classmethod
    def read(cls, content: bytes) -> "Record":
        """Empty if that cannot be known."""
        try:
            return msgspec.json.decode(content, type=cls)
        except msgspec.DecodeError:
            return cls()


class Telling(Protocol):
    """One of the two."""

    before: Record
    """What was there at the start."""

    def route(self, upstream: str) -> Route:
        """To that upstream, with what may be sent there."""

    def due(self) -> bool:
        """Whether it is time to tell again."""

    async def tell(self, routes: Sequence[Route], clock: clocks.Seen, last: Sequence[Tapped]) -> None:
        """Where it stands."""

    async def end(self, routes: Sequence[Route], clock: clocks.Seen, cut_off: bool) -> None:
        """It is at work no more. `cut_off`: requests were given up whose answers did not come in time."""


class Alone:
    """The only forwarder of its spool."""

    def __init__(self, config: ForwarderConfig, outlet: Outlet, off_loop: OffLoop) -> None:
        self._ceiling, self._outlet, self._off_loop = config.concurrency, outlet, off_loop
        self.before = Record.read(outlet.recall())
        self._told_ms: int | None = None

    def route(self, upstream: str) -> Route:
        told = self.before.upstreams.get(upstream, _OfUpstream())
        return Route(upstream, lambda now_ms: self._ceiling, told.stats)

    def due(self) -> bool:
        return self._told_ms is None or monotonic_ms() - self._told_ms >= PUBLISH_MS

    async def tell(self, routes: Sequence[Route], clock: clocks.Seen, last: Sequence[Tapped], stopped: bool = False) -> None:
        self._told_ms = monotonic_ms()
        upstreams = {route.upstream: {**route.state(), "stats": route.stats} for route in routes}
        state = {"stopped": stopped, "clock": clock, "upstreams": upstreams, "last": last}
        await self._off_loop(self._outlet.publish, msgspec.json.encode(state))

    async def end(self, routes: Sequence[Route], clock: clocks.Seen, cut_off: bool) -> None:
        await self.tell(routes, clock, [], stopped=True)


class Among:
    """One of any number."""

    def __init__(self, config: ForwarderConfig, outlet: Outlet, peers: Peers, off_loop: OffLoop) -> None:
        self._outlet, self._peers, self._off_loop = outlet, peers, off_loop
        self.before = Record.read(outlet.recall())
        ceilings = {site.upstream: config.concurrency for site in config.sites.values()}
        self._sharing = Sharing(peers.me, ceilings, int(config.attempt_timeout_s * 1000))
        self._took_turn_ms: int | None = None
        self._told_ms: int | None = None
        self._news = False
        self._waiting = Trouble()

    def route(self, upstream: str) -> Route:
        return Route(upstream, partial(self._sharing.share, upstream), RouteStats())

    def due(self) -> bool:
        """News of claims are told sooner; the others wait for them."""
        if self._took_turn_ms is None or self._told_ms is None:
            return True
        now_ms = monotonic_ms()
        return now_ms - self._told_ms >= PUBLISH_MS or (self._news and now_ms - self._took_turn_ms >= NEWS_MS)

    async def tell(self, routes: Sequence[Route], clock: clocks.Seen, last: Sequence[Tapped]) -> None:
        took_turn = await self._take_turn(routes)
        if self._told_ms is None:
            took_turn = await self._take_turn(routes)  # the first one only told who else there is
        elif monotonic_ms() - self._told_ms < PUBLISH_MS:
            return
        self._told_ms = monotonic_ms()
        state = {"upstreams": {route.upstream: route.state() for route in routes}, "last": last}
        await self._off_loop(self._outlet.publish, msgspec.json.encode(state))
        if took_turn:  # else it would only make the next turn wait
            await self._add_figures(routes, clock)

    async def end(self, routes: Sequence[Route], clock: clocks.Seen, cut_off: bool) -> None:
        """What was cut off may still be under way at the upstream: then we are not gone, but are counted out in time."""
        deadline_ms = monotonic_ms() + LAST_MS
        for _ in range(LAST_TRIES):
            if await self._add_figures(routes, clock):
                break
            if monotonic_ms() > deadline_ms:
                return
        if not cut_off:
            await self._off_loop(self._peers.leave)

    async def _take_turn(self, routes: Sequence[Route]) -> bool:
        """Whether it was completed."""
        in_flight = {route.upstream: route.pace.in_flight for route in routes}
        asked_ms = self._took_turn_ms = monotonic_ms()
        words = self._sharing.words(in_flight, asked_ms)
        left = await self._off_loop(self._peers.exchange, words)
        if crowded_out := left is None and self._peers.crowded_out:
            left = await self._off_loop(self._peers.look)
        if left is not None:
            for gone in self._sharing.hear(left, asked_ms, monotonic_ms(), crowded_out):
                await self._off_loop(self._peers.forget, gone)
            self._tell_of_waiting()
        self._news = self._sharing.has_news({route.upstream: route.pace.in_flight for route in routes})
        for route in routes:
            if left is not None and not self._sharing.fair(route.upstream):
                queued = list(route.queue)
                route.queue.clear()
                await self._off_loop(self._peers.give_back, queued, route.sites)
        return left is not None and not crowded_out

    def _tell_of_waiting(self) -> None:
        if waits_for := self._sharing.waits_for:
            if self._waiting.begins():
                seconds = -(-max(waits_for.values()) // 1000)
                log.warning(
                    "nothing is sent yet: forwarders that ended without saying so, or hang, have the share",
                    forwarders=sorted(waits_for),
                    at_most_s=seconds,
                )
        elif self._waiting.ends():
            log.info("the share is free")

    async def _add_figures(self, routes: Iterable[Route], clock: clocks.Seen) -> bool:
        """Whether they were added; if not, they wait for the next time."""
        counted = {route.upstream: _OfUpstream(sorted(route.sites), route.take_stats()) for route in routes}
        if await self._off_loop(self._peers.amend, partial(_with_more, counted=counted, clock=clock)):
            return True
        for route in routes:
            route.stats.add(counted[route.upstream].stats)
        return False


def _with_more(content: bytes, counted: Mapping[str, _OfUpstream], clock: clocks.Seen) -> bytes:
    record = Record.read(content)
    record.clock = clock
    for upstream, more in counted.items():
        known = record.upstreams.setdefault(upstream, _OfUpstream())
        known.sites = more.sites
        known.stats.add(more.stats)
    return msgspec.json.encode(record)


def open_telling(config: ForwarderConfig, outlet: Outlet, off_loop: OffLoop) -> Telling:
    """As the spool allows."""
    peers = outlet.peers
    return Alone(config, outlet, off_loop) if peers is None else Among(config, outlet, peers, off_loop)
