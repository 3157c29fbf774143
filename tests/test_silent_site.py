"""One site's stream lies with a broker that dies or hangs, and has no other replica: over three real brokers, nobody else may
notice."""

import asyncio
import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from conftest import wait_for
from msgspec.structs import replace
from nats.aio.client import Client
from nats_server import NatsServer
from test_jetstream import balanced
from test_spool import DELIVERED, hit, names

from proxy import spool
from proxy.cli.cluster.brokers import STREAM, Broker, Brokers
from proxy.cli.cluster.part import end_all, start_all
from proxy.hit import Hit
from proxy.spool.fallback.intake import FallbackIntake
from proxy.spool.fallback.mover import moving
from proxy.spool.fallback.transfer import BATCH
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.port import RECEIVED, Claim, Intake, Ledger, Settlement, SpoolConfig, SpoolError, SpoolRefused

SILENT, OTHERS = "z", ("a", "b", "c")
PATIENCE_S = 2.0


class Split(NamedTuple):
    """The spool, and the broker on which one site's stream lies; all other streams lie on another."""

    config: SpoolConfig
    broker: Broker

    @property
    def with_fallback(self) -> SpoolConfig:
        return replace(self.config, fallback=f"sqlite:{self.broker.store.parent.parent / 'fallback'}")


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Split]:
    """What rests is tried again soon, and a stream may take its time to answer: the worst for all others."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.LOOK_S", 0.0)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.5)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.SITE_PATIENCE_S", 3.0)
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.0)
    monkeypatch.setattr("proxy.spool.fallback.mover.PATIENCE_S", 1.0)
    brokers = Brokers(tmp_path)
    for broker in brokers.all:
        with (broker.store.parent / "nats.conf").open("a") as config:
            config.write(f'server_tags: ["{broker.name}"]\n')
    start_all(brokers.all)
    try:
        wait_for(brokers.healthy, "the brokers")
        first, other = _leader_and_other(brokers)
        asyncio.run(_place(first, other))
        hosts = ",".join(f"127.0.0.1:{broker.port}" for broker in brokers.all if broker is not other)
        yield Split(SpoolConfig(f"nats://{hosts}?stream={STREAM}", commit_timeout_s=PATIENCE_S), other)
    finally:
        end_all(brokers.all)


def _leader_and_other(brokers: Brokers) -> tuple[Broker, Broker]:
    """Who leads all of them is not to fall: an election is another story."""
    told = httpx.get(f"http://127.0.0.1:{brokers.all[0].monitor}/jsz", timeout=5).json()
    leader = next(broker for broker in brokers.all if broker.name == told["meta_cluster"]["leader"])
    return leader, next(broker for broker in brokers.all if broker is not leader)


async def _place(first: Broker, other: Broker) -> None:
    """The streams as the proxy makes them, each on its broker: by a tag, which is taken away again."""
    place = Names(STREAM)
    client = Client()
    await client.connect(f"nats://127.0.0.1:{first.port}")
    wanted = [*streams.common_streams(place, 1), *(streams.hits_stream(place, site, 1) for site in (*OTHERS, SILENT))]
    for config in wanted:
        broker = other if config["name"] == place.hits_stream(SILENT) else first
        await api.ask(client, f"STREAM.CREATE.{config['name']}", {**config, "placement": {"tags": [broker.name]}})
        placed = await api.ask(client, f"STREAM.UPDATE.{config['name']}", config)
        assert placed["cluster"]["leader"] == broker.name
    await client.close()


class Delivering:
    """A forwarder's loop, in a thread: whatever can be had is delivered. Of the silent site not before its upstream answers."""

    def __init__(self, config: SpoolConfig) -> None:
        self.upstream_answers = threading.Event()
        self.under_way: list[Claim] = []
        self.copies: dict[str, set[Hit]] = {}
        """By name, without their ids; more than one if they differ."""
        self._outlet = JetStreamOutlet(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            claims = self.under_way + self._outlet.claim(100, 0)
            answers = self.upstream_answers.is_set()
            self.under_way = [claim for claim in claims if claim.hit.site == SILENT and not answers]
            claims = [claim for claim in claims if claim.hit.site != SILENT or answers]
            self._outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
            for name, claim in zip(names(claims), claims, strict=True):
                self.copies.setdefault(name, set()).add(replace(claim.hit, id=""))

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._outlet.close()


class Visitor:
    """Of one site, asking one intake."""

    def __init__(self, who: str, site: str, intake: Intake) -> None:
        self.who, self.site, self._intake = who, site, intake
        self.asked = 0
        self.stored: set[str] = set()
        """What was answered 200."""

    async def ask(self) -> int:
        """One more; 200 or 503."""
        name, self.asked = f"{self.who}-{self.site}-{self.asked}", self.asked + 1
        try:
            await self._intake.append(hit(name, site=self.site))
        except SpoolRefused:
            return 503
        self.stored.add(name)
        return 200


async def all_ask(visitors: list[Visitor]) -> set[int]:
    return set(await asyncio.gather(*(visitor.ask() for visitor in visitors)))


async def until(condition: Callable[[], Any], what: str) -> Any:
    return await asyncio.to_thread(wait_for, condition, what)


def read(config: SpoolConfig) -> Ledger | None:
    """The ledger; None if it cannot be read."""
    with contextlib.suppress(SpoolError):
        return spool.ledger_of(config)
    return None


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_site_whose_broker_is_away_holds_up_no_other_site(split: Split, how: str) -> None:
    """Others are answered and delivered many times while one of its visitors waits; what waits of them in the fallback is moved,
    and the ledger is read. When the broker is back, all that was answered is delivered, and every copy is the same."""
    intake, fallback = JetStreamIntake(split.config), FallbackIntake(split.with_fallback)
    forwarder = Delivering(split.config)
    try:
        with moving(split.with_fallback):
            asyncio.run(_account(split, how, intake, fallback, forwarder))
    finally:
        forwarder.end()
        intake.close()
        fallback.close()


async def _account(split: Split, how: str, intake: JetStreamIntake, fallback: FallbackIntake, forwarder: Delivering) -> None:
    others = [Visitor(who, site, i) for who, i in (("refused", intake), ("sheltered", fallback)) for site in OTHERS]
    refused, sheltered = Visitor("refused", SILENT, intake), Visitor("sheltered", SILENT, fallback)

    async def delivered(visitors: list[Visitor]) -> None:
        wanted = set.union(*(visitor.stored for visitor in visitors))
        await until(lambda: wanted <= forwarder.copies.keys(), "all that was answered to be delivered")

    async def rounds_while_one_waits(then: Callable[[list[Visitor]], Awaitable[object]]) -> int:
        """Of all others, while one visitor of the silent site waits to be refused."""
        waits, is_stored = asyncio.create_task(refused.ask()), asyncio.create_task(sheltered.ask())
        rounds = 0
        while not waits.done():
            assert await all_ask(others) == {200}
            await then(others)
            rounds += 1
        assert (await waits, await is_stored) == (503, 200)
        return rounds

    for visitor in (refused, sheltered, *others):
        assert await visitor.ask() == 200
    await delivered(others)
    await until(lambda: len(forwarder.under_way) == 2, "the silent site's to be under way")
    getattr(split.broker, how)()
    forwarder.upstream_answers.set()
    assert await rounds_while_one_waits(lambda _: asyncio.sleep(0)) > 10
    await delivered(others)  # from now on the forwarder knows
    ledgers = [asyncio.create_task(until(lambda c=c: read(c), "the ledger")) for c in (split.config, split.with_fallback)]
    assert await rounds_while_one_waits(delivered) > 5
    no_lane = replace(split.config, fallback=split.with_fallback.fallback + "-of-nobody")
    for config in (split.config, split.with_fallback, no_lane):
        assert await asyncio.to_thread(spool.unready, config) == ""
    for ledger in await asyncio.gather(*ledgers):
        assert ledger.silent == (SILENT,)
        assert balanced(ledger)

    held, there = [SILENT] * (BATCH + 50), spool.fallback_pending(split.with_fallback)
    await _fall_back(fallback, *held, *OTHERS * 20)
    await until(lambda: spool.fallback_pending(split.with_fallback) == there + len(held), "the others' to be moved")

    split.broker.start() if how == "kill" else split.broker.thaw()
    await until(lambda: spool.fallback_pending(split.with_fallback) == 0, "the silent site's to be moved")
    await delivered([refused, sheltered, *others])
    everything = await until(lambda: _all_ended(read(split.with_fallback)), "nothing to be pending")
    assert balanced(everything)
    fell_back = {name for name in forwarder.copies if name.startswith("lane-")}
    assert len(fell_back) == len(held) + 60
    assert {name: copies for name, copies in forwarder.copies.items() if len(copies) > 1} == {}
    assert len(forwarder.copies) <= everything.total(RECEIVED)


def _all_ended(ledger: Ledger | None) -> Ledger | None:
    return ledger if ledger and not ledger.silent and not ledger.pending else None


async def _fall_back(fallback: FallbackIntake, *sites: str) -> None:
    """Hits that the brokers did not take."""
    await asyncio.gather(*(fallback._lane.append(hit(f"lane-{n}", site=site)) for n, site in enumerate(sites)))


def test_where_only_the_silent_site_is_visited_the_servers_do_not_pass_for_hung_ones(split: Split) -> None:
    """Nobody else is refused for it, and the connection stays: other servers know no better. Where there is no other site,
    the host is not ready."""
    intake = JetStreamIntake(split.config)
    silent, other = Visitor("quiet", SILENT, intake), Visitor("quiet", OTHERS[0], intake)

    async def visits() -> None:
        assert (await silent.ask(), await other.ask()) == (200, 200)
        split.broker.kill()
        assert await silent.ask() == 503
        waits = asyncio.create_task(silent.ask())
        await until(lambda: intake._waiting, "one that waits")
        assert await other.ask() == 200
        assert not waits.done()
        assert await waits == 503

    try:
        asyncio.run(visits())
        assert intake._link.generation == 1
        client, place = intake._link.client(), Names(STREAM)
        assert client is not None
        for site in OTHERS:
            intake._link.run(api.ask(client, f"STREAM.DELETE.{place.hits_stream(site)}"), 5.0)
        assert "in time" in spool.unready(split.config)  # whoever comes here is refused
    finally:
        intake.close()


def test_where_there_is_no_fallback_a_silent_site_leaves_room_for_others(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd may come before anything is known of it. Its hits wait in half of the places."""
    ensure, answers = streams.ensure_stream, threading.Event()

    async def silent(client: Client, wanted: streams.Config, births: streams.Births) -> None:
        if wanted["name"].endswith(f"_hits_{SILENT}"):
            await asyncio.to_thread(answers.wait, 10)
        await ensure(client, wanted, births)

    monkeypatch.setattr("proxy.spool.jetstream.intake.MAX_WAITING", 20)
    monkeypatch.setattr(streams, "ensure_stream", silent)
    intake = JetStreamIntake(nats_server.spool(secrets.token_hex(4)))
    one_of_many, other = Visitor("many", SILENT, intake), Visitor("few", OTHERS[0], intake)

    async def visits() -> None:
        many = asyncio.gather(*(one_of_many.ask() for _ in range(30)))
        await until(lambda: intake._waiting, "some to wait")
        assert await all_ask([other] * 5) == {200}
        answers.set()
        assert Counter(await many) == {200: 10, 503: 20}

    try:
        asyncio.run(visits())
    finally:
        intake.close()
