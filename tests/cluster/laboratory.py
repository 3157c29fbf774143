"""What is done to the cluster while beacons come in, and the account that is asked for at the end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from proxy.cli.cluster.brokers import Broker, Brokers
from proxy.cli.cluster.cluster import Cluster
from proxy.spool.port import SpoolError
from tests.chaos.driver import Driver, quantile
from tests.chaos.laboratory import Upstream
from tests.cluster import disk
from tests.cluster.relay import Relays

Found = dict[str, Any]
Progress = Callable[[float, str], None]
"""Told the share that is done, and what is going on."""
PROMISES = ("missing_upstream", "differing_copies", "ledger_off_by", "answered_503")
"""None of these may happen, whatever happens to the brokers: collectors have a second place to store."""
SETTINGS = {"enrichers": "page,campaign", "backoff_base": "0.1", "backoff_cap": "0.5", "shutdown_grace": "4"}
LOOK_S = 0.05


def broken(found: Found) -> list[str]:
    """The promises that are broken."""
    return [name for name in PROMISES if found.get(name, 0)]


class Laboratory:
    """A cluster at work, the load on it, and hands to do it harm."""

    def __init__(self, cluster: Cluster, relays: Relays, upstream: Upstream, small_disk: bool, rate: float) -> None:
        self.cluster, self.upstream = cluster, upstream
        self.brokers = cluster.brokers
        self.drivers = [Driver(host.port, rate / len(cluster.collectors), 8) for host in cluster.collectors]
        self.has_small_disk = small_disk
        self.longest_gap_s = 0.0
        """Longest time in which no beacon at all was answered 200, whichever collector was asked."""
        self._relays = relays
        self._watching: asyncio.Task[None] | None = None

    @property
    def answered(self) -> int:
        return sum(len(driver.answered) for driver in self.drivers)

    def start_load(self) -> None:
        for driver in self.drivers:
            driver.start()
        self._watching = asyncio.create_task(self._watch())

    async def stop_load(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
            await asyncio.gather(*(driver.stop() for driver in self.drivers))

    async def _watch(self) -> None:
        before, since = self.answered, time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if self.answered > before:
                before, since = self.answered, now
            self.longest_gap_s = max(self.longest_gap_s, now - since)

    async def load_for(self, seconds: float) -> None:
        """Until so many seconds have passed, and a beacon was answered since."""
        before, deadline = self.answered, time.monotonic() + seconds
        while time.monotonic() < deadline or self.answered == before:
            if time.monotonic() > deadline + 60:
                raise TimeoutError(f"no beacon was answered 200 for {seconds + 60:g} s")
            await asyncio.sleep(LOOK_S)

    async def healthy(self, patience_s: float = 60.0) -> None:
        """All brokers are there and up to date."""
        deadline = time.monotonic() + patience_s
        while not await asyncio.to_thread(self.brokers.healthy):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the brokers are not up to date with each other within {patience_s:g} s")
            await asyncio.sleep(0.1)

    async def leader(self, patience_s: float = 60.0) -> Broker:
        """Of the stream of hits, once there is one."""
        deadline = time.monotonic() + patience_s
        while (found := await self.brokers.leader()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no leader within {patience_s:g} s")
            await asyncio.sleep(0.1)
        return found

    def broker_of(self, client: str) -> int:
        """The first to which a client of that name is connected."""
        for number, broker in enumerate(self.brokers.all):
            told = httpx.get(f"http://127.0.0.1:{broker.monitor}/connz", timeout=5).json()
            if client in [connection.get("name") for connection in told["connections"]]:
                return number
        raise LookupError(client)

    def cut_off(self, broker: int) -> None:
        """From the other brokers; its clients still reach it."""
        self._relays.cut_off(broker)

    def let_in(self, broker: int) -> None:
        """Again."""
        self._relays.cut_off(broker, False)

    # What can happen. Each is over when it returns.

    async def leader_killed(self, away_s: float) -> None:
        leader = await self.leader()
        leader.kill()
        await asyncio.sleep(away_s)
        leader.start()
        await self.healthy()

    async def leader_frozen(self, away_s: float) -> None:
        """Its connections stay, and nobody answers on them."""
        leader = await self.leader()
        leader.freeze()
        await asyncio.sleep(away_s)
        leader.thaw()
        await self.healthy()

    async def leader_cut_off(self, away_s: float) -> None:
        """Its clients reach it, its peers do not: what it takes in it cannot store."""
        number = self.brokers.all.index(await self.leader())
        self.cut_off(number)
        await asyncio.sleep(away_s)
        self.let_in(number)
        await self.healthy()

    async def collectors_broker_cut_off(self, away_s: float) -> None:
        """One that leads nothing, maybe; the other two work."""
        number = await asyncio.to_thread(self.broker_of, "beacon-proxy collector")
        self.cut_off(number)
        await asyncio.sleep(away_s)
        self.let_in(number)
        await self.healthy()

    async def disk_filled(self, away_s: float) -> None:
        """Of one broker, to the last byte; then there is room again and it is started anew."""
        victim = self.brokers.all[0]
        disk.fill(victim.store)
        await self.load_for(away_s)
        disk.empty(victim.store)
        victim.kill()
        victim.start()
        await self.healthy()

    async def brokers_restarted_in_turn(self, away_s: float = 0.0) -> None:
        """As an upgrade does it: the next one when the last is up to date."""
        for broker in self.brokers.all:
            broker.ask_to_end()
            await asyncio.to_thread(broker.ended)
            broker.start()
            await self.healthy()

    async def brokers_killed(self, away_s: float) -> None:
        """All of them, at once."""
        for broker in self.brokers.all:
            broker.kill()
        await asyncio.sleep(away_s)
        for broker in self.brokers.all:
            broker.start()
        await self.healthy()

    async def all_killed(self, away_s: float) -> None:
        """Brokers, collectors, forwarders: the whole site's power is cut."""
        for part in self.cluster.parts:
            part.kill()
        await asyncio.sleep(away_s)
        for part in self.cluster.parts:
            part.start()
        await self.healthy()

    # The account.

    async def account(self, patience_s: float = 120.0) -> Found:
        """After the load: once all that was answered 200 has arrived and nothing is pending, or patience is out."""
        await self.stop_load()
        answered = {name for driver in self.drivers for name in driver.answered}
        began = time.monotonic()
        status: Found = {}
        while True:
            missing = answered - set(self.upstream.ask("names"))
            with contextlib.suppress(SpoolError):
                status = await asyncio.to_thread(self.cluster.status)
            if (status and not missing and not status["pending"]) or time.monotonic() > began + patience_s:
                break
            await asyncio.sleep(0.25)
        report = self.upstream.ask("report")
        took = [ms for driver in self.drivers for times in driver.took_ms.values() for ms in times]
        return {
            "answered_200": len(answered),
            "answered_503": sum(driver.refused for driver in self.drivers),
            "broken_connections": sum(driver.broken for driver in self.drivers),
            "longest_time_without_a_200_s": round(self.longest_gap_s, 2),
            "gif_ms": {"p50": quantile(took, 0.5), "p99": quantile(took, 0.99)},
            "missing_upstream": len(missing),
            "extra_copies": report["copies"],
            "differing_copies": report["differing"],
            "ledger_off_by": _off_by(status),
            **{name: status.get(name) for name in ("received", "delivered", "dead", "pending", "refused")},
            "drained_within_s": round(time.monotonic() - began, 1),
        }


def _off_by(status: Found) -> int:
    if not status:
        return -1
    return int(status["received"] - status["delivered"] - sum(status["dropped"].values()) - status["dead"] - status["pending"])


@contextlib.asynccontextmanager
async def laboratory(
    place: Path, rate: float, collectors: int = 2, forwarders: int = 2, relays: bool = True, **settings: object
) -> AsyncIterator[Laboratory]:
    """A cluster with load on it. Without `relays` no broker can be cut off, and none of their time is spent."""
    between = Relays()
    with contextlib.ExitStack() as stack:
        stack.callback(between.close)
        small = stack.enter_context(disk.small_disk(place / "broker-1" / "store"))
        upstream = Upstream()
        stack.callback(upstream.stop)
        brokers = Brokers(place, between.reach if relays else None)
        await between.start()
        cluster = Cluster(place, upstream.url, brokers, collectors, forwarders, **{**SETTINGS, **settings})
        async with cluster:
            lab = Laboratory(cluster, between, upstream, small, rate)
            try:
                lab.start_load()
                await lab.load_for(1.0)
                yield lab
            finally:
                await lab.stop_load()
