"""What only the spool over JetStream promises: over restarts and kills of a real server, and with many forwarders at once."""

import asyncio
import contextlib
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import nkeys
import pytest
from conftest import ProxyProcess, SandboxProcess, need, wait_for
from nats.aio.client import Client
from nats_server import NatsServer
from test_spool import DELIVERED, hit, names

from proxy import spool
from proxy.admin.metrics import _ledger
from proxy.admin.report import Report
from proxy.admin.summary import render, summary
from proxy.cli.child import _outlet_when_free
from proxy.delivery import Final, Retry
from proxy.forward.config import ForwarderConfig
from proxy.outcome import Ending, Outcome
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.address import Address
from proxy.spool.jetstream.book import Book, _balance
from proxy.spool.jetstream.flight import Flights, Source
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.link import Link, ServersAway, in_words
from proxy.spool.jetstream.names import Names, token, untoken
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.jetstream.publisher import UNANSWERED, Message, Publisher
from proxy.spool.jetstream.pull import Pulled
from proxy.spool.jetstream.refusal import FULL
from proxy.spool.jetstream.settler import CREDIT
from proxy.spool.port import (
    RECEIVED,
    REFUSED,
    Claim,
    DeadFilter,
    Ledger,
    Settlement,
    SpoolConfig,
    SpoolError,
    SpoolRefused,
    Tapped,
    Wanted,
)

if TYPE_CHECKING:
    from in_thread import InThread
    from nats.aio.client import Client

DIED = Final(Outcome.REJECTED, "404")


@pytest.fixture(autouse=True)
def new_sites_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not within the second."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.LOOK_S", 0.0)


@pytest.fixture
def config(nats_server: NatsServer) -> SpoolConfig:
    """Streams of this test's own."""
    return nats_server.spool(secrets.token_hex(4))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server to be killed."""
    started = NatsServer(tmp_path / "nats")
    yield started
    started.stop()


@contextlib.contextmanager
def opened(config: SpoolConfig) -> Iterator[tuple[JetStreamIntake, JetStreamOutlet]]:
    intake, outlet = JetStreamIntake(config), JetStreamOutlet(config)
    try:
        yield intake, outlet
    finally:
        intake.close()
        outlet.close()


def abandoned(outlet: JetStreamOutlet) -> None:
    """Its process was killed: nothing is handed back, and nothing more is said."""
    outlet._saying.cancel()
    outlet._link.close()


def balanced(ledger: Ledger) -> bool:
    ended = sum(sum(ledger.ending(ending).values()) for ending in Ending)
    return ledger.total(RECEIVED) == ended + ledger.pending and ledger.pending >= 0


def settled(outlet: JetStreamOutlet, claims: list[Claim], verdict: Final | Retry) -> None:
    outlet.settle([Settlement(claim, verdict) for claim in claims])


def test_a_restart_of_the_server_loses_nothing(server: NatsServer) -> None:
    """Hits, attempts, dead letters and the ledger are the server's; both halves come back by themselves."""
    config = server.spool("restart")
    with opened(config) as (intake, outlet):
        for n in range(6):
            intake.append_blocking(hit(str(n)))
        claims = outlet.claim(4, 0)
        settled(outlet, claims[:1], DELIVERED)
        settled(outlet, claims[1:2], DIED)
        server.stop()
        assert outlet.claim(10, 0) == []
        server.start()
        claims += wait_for(lambda: outlet.claim(10, 0), "hits after the restart")
        assert names(claims[2:]) == ["2", "3", "4", "5"]
        settled(outlet, claims[2:], DELIVERED)
        wait_for(lambda: not outlet.ledger().pending, "what was claimed before to be settled after")
        assert spool.open_dead_letters(config).count(DeadFilter()) == 1
        assert (outlet.ledger().total(RECEIVED), outlet.ledger().total(Outcome.DELIVERED)) == (6, 5)
        wait_for(lambda: not intake._link.trouble, "the collector to be connected again")
        intake.append_blocking(hit("after"))
        assert outlet.ledger().total(RECEIVED) == 7


def test_every_append_that_returned_survives_kill_9_of_the_server_under_load(server: NatsServer) -> None:
    """A 200 is a promise. What the kill interrupts is repeated under its id, so it is not there twice either."""
    config = server.spool("killed")
    returned: list[str] = []
    refused: list[str] = []

    async def visitor(intake: JetStreamIntake, n: int) -> None:
        for turn in range(60):
            name = f"{n}-{turn}"
            try:
                await intake.append(hit(name))
                returned.append(name)
            except SpoolRefused:
                refused.append(name)

    def kill_soon() -> None:
        wait_for(lambda: len(returned) > 200, "some load")
        server.kill()
        server.start()

    async def load(intake: JetStreamIntake) -> None:
        killer = asyncio.create_task(asyncio.to_thread(kill_soon))
        await asyncio.gather(*(visitor(intake, n) for n in range(30)), killer)

    with opened(config) as (intake, outlet):
        asyncio.run(load(intake))
        found: list[str] = []
        while claims := outlet.claim(1000, 0):
            found += names(claims)
            settled(outlet, claims, DELIVERED)
        assert len(returned) + len(refused) == 1800
        assert set(returned) <= set(found)
        assert len(set(found)) == len(found)
        ledger = outlet.ledger()
        assert ledger.total(RECEIVED) == ledger.total(Outcome.DELIVERED) == len(found)


def test_a_message_that_is_published_twice_is_stored_once(config: SpoolConfig) -> None:
    """A lost acknowledgement leads to a repeat, and not to a second event."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("first"))
        publisher, place = Publisher(), Names(config.url.partition("stream=")[2])
        link = Link(intake._link.address, "test", publisher.subscribe)
        assert link.wait_open()
        message = Message(place.hits("default"), b"x", {"Nats-Msg-Id": "once"})
        count = Message(place.count("default", REFUSED), b"", {"Nats-Msg-Id": "once", "Nats-Incr": "+1"})
        for _ in range(2):
            assert link.run(publisher.publish(link, [message, count], 5.0), 6.0) == ["", ""]
        link.close()
        assert (outlet.ledger().total(RECEIVED), outlet.ledger().total(REFUSED)) == (2, 1)


def test_two_forwarders_share_the_work_and_no_hit_goes_to_both(config: SpoolConfig) -> None:
    """That is what many machines are for."""
    with opened(config) as (intake, one):
        for n in range(40):
            intake.append_blocking(hit(str(n)))
        two = JetStreamOutlet(config)
        first, second = one.claim(10, 0), two.claim(100, 0)
        assert len(first) == 10
        assert sorted(names(first) + names(second), key=int) == [str(n) for n in range(40)]
        settled(one, first, DELIVERED)
        settled(two, second[:20], DELIVERED)
        two.close()
        again = wait_for(lambda: one.claim(100, 0), "what the other handed back")
        assert names(again) == names(second[20:])
        assert balanced(one.ledger())
        assert one.ledger().total(Outcome.DELIVERED) == 30


def test_the_hits_of_a_forwarder_that_was_killed_go_to_another(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdicts that were not recorded are lost with it: a byte-identical resend. The ledger balances meanwhile."""
    monkeypatch.setattr(streams, "ACK_WAIT_S", 1)
    with opened(config) as (intake, one):
        for n in range(3):
            intake.append_blocking(hit(str(n)))
        two = JetStreamOutlet(config)
        claims = two.claim(10, 0)
        settled(two, claims[:1], DELIVERED)
        abandoned(two)
        assert balanced(one.ledger())
        assert one.ledger().pending == 2
        again = wait_for(lambda: one.claim(10, 0), "the hits of the killed one")
        assert [claim.attempt for claim in again] == [2, 2]
        settled(one, again, DELIVERED)
        assert (one.ledger().pending, one.ledger().total(Outcome.DELIVERED)) == (0, 3)


def test_an_ending_that_was_recorded_and_not_acknowledged_counts_once(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forwarder killed between the two: whoever has the hit next records it again, under the same id."""
    monkeypatch.setattr(streams, "ACK_WAIT_S", 1)
    with opened(config) as (intake, one):
        for name in ("dies", "dropped"):
            intake.append_blocking(hit(name))
        two = JetStreamOutlet(config)
        claims = two.claim(10, 0)
        with monkeypatch.context() as patch:
            patch.setattr("proxy.spool.jetstream.settler.Settler._acknowledge", lambda *_: asyncio.sleep(0))
            two.settle([Settlement(claims[0], DIED), Settlement(claims[1], Final(Outcome.BOT))])
            abandoned(two)
        assert balanced(one.ledger())
        again = wait_for(lambda: one.claim(10, 0), "redelivery")
        again += [] if len(again) == 2 else wait_for(lambda: one.claim(10, 0), "redelivery")
        one.settle([Settlement(again[0], DIED), Settlement(again[1], Final(Outcome.BOT))])
        ledger = one.ledger()
        assert (ledger.total(Outcome.REJECTED), ledger.total(Outcome.BOT), ledger.total(Outcome.DELIVERED)) == (1, 1, 0)
        assert balanced(ledger)
        assert ledger.pending == 0


def test_the_ledger_balances_in_the_middle_of_load(config: SpoolConfig) -> None:
    """Every reading does, and what only grows never falls."""
    stop = threading.Event()
    with opened(config) as (intake, outlet):

        def fill() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                intake.append_blocking(hit(str(n), site=f"s{n % 3}"))
                if n % 7 == 0:
                    intake.drop("s1", Outcome.GPC)

        def drain() -> None:
            verdicts = [DELIVERED, DELIVERED, DIED, Final(Outcome.BOT)]
            while not stop.is_set():
                claims = outlet.claim(50, 0)
                outlet.settle([Settlement(claim, verdicts[n % 4]) for n, claim in enumerate(claims)])

        threads = [threading.Thread(target=work) for work in (fill, drain)]
        for thread in threads:
            thread.start()
        readings = []
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            readings.append(spool.ledger_of(config))
        stop.set()
        for thread in threads:
            thread.join()
        assert all(balanced(ledger) for ledger in readings)
        for name in (RECEIVED, Outcome.DELIVERED):
            totals = [ledger.total(name) for ledger in readings]
            assert totals == sorted(totals)
            assert totals[-1] > 0
        settled(outlet, outlet.claim(10_000, 0), DELIVERED)
        last = outlet.ledger()
        assert balanced(last)
        assert (last.pending, last.ending(Ending.DEAD)[Outcome.REJECTED] > 0) == (0, True)


def test_a_hit_that_is_put_off_for_long_waits_with_the_server(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then any forwarder may have it, and none before its time. The attempt is counted, or not, as it was said."""
    monkeypatch.setattr("proxy.spool.jetstream.flight.LONGEST_WAIT_MS", 0)
    with opened(config) as (intake, outlet):
        for counted, attempt in ((True, 2), (False, 1)):
            intake.append_blocking(hit("waits"))
            claims = outlet.claim(10, 0)
            due_ms = time.time_ns() // 1_000_000 + 400
            settled(outlet, claims, Retry(due_ms, "503", counted))
            [again] = wait_for(lambda: outlet.claim(10, 0), "its time")
            assert time.time_ns() // 1_000_000 >= due_ms - 5
            assert again.attempt == attempt
            settled(outlet, [again], DELIVERED)


def test_many_that_were_put_off_are_not_all_pulled_at_once(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor may put off ten thousand to the same second. What a forwarder did not ask for stays with the server."""
    monkeypatch.setattr("proxy.spool.jetstream.flight.LONGEST_WAIT_MS", 0)
    with opened(config) as (intake, outlet):
        intake.append_blocking(*(hit(str(n)) for n in range(60)))
        claims = wait_for(lambda: found if len(found := outlet.claim(60, 0)) == 60 else None, "all of them")
        settled(outlet, claims, Retry(time.time_ns() // 1_000_000 + 200, "503"))
        again = wait_for(lambda: outlet.claim(5, 0), "their time")
        assert all(claim.failed for claim in again)
        assert len(outlet._flights._all) < 20


def test_hits_of_closed_sites_stay_where_they_are(config: SpoolConfig) -> None:
    """A site whose upstream is away holds up no other, and its hits are not moved about."""
    with opened(config) as (intake, outlet):
        for site in ("away", "there"):
            for n in range(3):
                intake.append_blocking(hit(f"{site}{n}", site=site))
        away = {"away": Wanted(0, 0)}
        assert names(outlet.claim(2, 0, away)) == ["there0", "there1"]
        assert names(outlet.claim(10, 0, away)) == ["there2"]
        again = outlet.claim(10, 0)
        assert names(again) == ["away0", "away1", "away2"]
        assert {claim.attempt for claim in again} == {1}


def test_a_consumer_that_somebody_deleted_is_made_again(config: SpoolConfig) -> None:
    """What is in flight here is not given out a second time by the new one."""
    with opened(config) as (intake, outlet):
        for n in range(4):
            intake.append_blocking(hit(str(n)))
        claims = outlet.claim(2, 0)
        client = intake._link.client()
        assert client is not None
        stream = Names(config.url.partition("stream=")[2]).hits_stream("default")
        intake._link.run(api.ask(client, f"CONSUMER.DELETE.{stream}.forwarder"), 5.0)
        while len(claims) < 4:
            claims += wait_for(lambda: outlet.claim(10, 0), "the others")
        assert names(claims) == ["0", "1", "2", "3"]
        settled(outlet, claims, DELIVERED)
        assert wait_for(lambda: outlet.ledger().total(Outcome.DELIVERED) == 4, "all to be settled")
        assert outlet.claim(10, 0) == []


def test_dead_letters_are_listed_replayed_and_discarded(config: SpoolConfig) -> None:
    """A replayed hit is received once and pending again; `delivered` is not touched by it."""
    with opened(config) as (intake, outlet):
        for n in range(5):
            intake.append_blocking(hit(str(n), site="shop"))
        claims = outlet.claim(10, 0)
        settled(outlet, claims[:3], DIED)
        settled(outlet, claims[3:4], Final(Outcome.EXPIRED, "timeout"))
        letters = spool.open_dead_letters(config)
        assert (letters.count(DeadFilter()), letters.count(DeadFilter(outcome="expired"))) == (4, 1)
        listed = letters.list(DeadFilter(), 3)
        assert [names([Claim(None, letter.hit, 1)])[0] for letter in listed if letter.hit] == ["3", "2", "1"]
        assert (listed[0].site, listed[0].outcome, listed[0].answer, listed[0].attempts) == ("shop", "expired", "timeout", 1)
        assert letters.discard(DeadFilter(outcome="expired"), lambda n: None) == 1
        assert letters.replay(DeadFilter(ids=(listed[2].id,)), 0, lambda n: None) == 1
        assert letters.replay(DeadFilter(), 0, lambda n: None) == 2
        assert letters.replay(DeadFilter(), 0, lambda n: None) == 0
        ledger = outlet.ledger()
        assert balanced(ledger)
        assert (ledger.total(RECEIVED), ledger.pending, ledger.total(Outcome.DISCARDED)) == (5, 4, 1)
        assert (ledger.total(Outcome.REJECTED), ledger.total(Outcome.DELIVERED)) == (0, 0)
        again = outlet.claim(10, 0)
        assert {claim.attempt for claim in again} == {1}
        settled(outlet, claims[4:] + again, DELIVERED)
        ledger = outlet.ledger()
        assert (ledger.total(RECEIVED), ledger.total(Outcome.DELIVERED), ledger.pending) == (5, 4, 0)


def test_the_latest_dead_letters_are_found_among_many(config: SpoolConfig) -> None:
    """Many more than are read at once, with gaps where some were discarded."""
    with opened(config) as (intake, outlet):

        async def fill() -> None:
            await asyncio.gather(*(intake.append(hit(str(n))) for n in range(1200)))

        asyncio.run(fill())
        settled(outlet, outlet.claim(2000, 0), DIED)
        letters = spool.open_dead_letters(config)
        assert letters.count(DeadFilter()) == letters.count(DeadFilter(died_after_ms=0)) == 1200
        assert [letter.id for letter in letters.list(DeadFilter(), 3)] == ["1200", "1199", "1198"]
        assert len(letters.list(DeadFilter(), 5000)) == 1200
        assert [letter.id for letter in letters.list(DeadFilter(ids=("7",)), 3)] == ["7"]
        assert letters.discard(DeadFilter(ids=tuple(map(str, range(1000, 1201)))), lambda n: None) == 201
        assert [letter.id for letter in letters.list(DeadFilter(), 2)] == ["999", "998"]
        assert letters.replay(DeadFilter(), 0, lambda n: None) == 999
        assert (letters.count(DeadFilter()), outlet.ledger().pending) == (0, 999)
        assert balanced(outlet.ledger())


def test_an_unreadable_record_becomes_a_dead_letter(config: SpoolConfig) -> None:
    """It holds up nothing."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("good"))
        client = intake._link.client()
        assert client is not None
        place = Names(config.url.partition("stream=")[2])
        intake._link.run(client.publish(place.hits("default"), b"\xff\xffrotten"), 2.0)
        wait_for(lambda: outlet.ledger().total(RECEIVED) == 2, "both")
        assert names(outlet.claim(10, 0)) == ["good"]
        assert outlet.ledger().ending(Ending.DEAD) == {Outcome.UNREADABLE: 1}
        [letter] = spool.open_dead_letters(config).list(DeadFilter(), 10)
        assert letter.hit is None


def test_a_stream_of_another_configuration_is_reported_and_left_alone(config: SpoolConfig) -> None:
    """Somebody may mean it: the field, what was found, what was expected, and what to do."""
    with opened(config) as (intake, _):
        intake.append_blocking(hit("a"))
        place = Names(config.url.partition("stream=")[2])
        client = intake._link.client()
        assert client is not None
        wanted = {**streams.hits_stream(place, "default", 1), "duplicate_window": 5 * streams.SECOND}
        intake._link.run(api.ask(client, f"STREAM.UPDATE.{place.hits_stream('default')}", wanted), 5.0)
        dead = {**streams.common_streams(place, 1)[0], "max_age": 60 * streams.SECOND, "duplicate_window": 60 * streams.SECOND}
        intake._link.run(api.ask(client, f"STREAM.UPDATE.{place.dead}", dead), 5.0)
        found = intake._link.run(api.ask(client, f"STREAM.INFO.{place.dead}"), 5.0)["config"]
        for attempt in (lambda: JetStreamIntake(config), lambda: JetStreamOutlet(config), lambda: spool.prepare(config)):
            with pytest.raises(SpoolError, match=r"_dead: max_age is 60 s, expected 0 s; change it"):
                attempt()
        assert intake._link.run(api.ask(client, f"STREAM.INFO.{place.dead}"), 5.0)["config"] == found
        intake._shelf._made.clear()
        with pytest.raises(SpoolRefused, match="duplicate_window is 5 s, expected 60 s"):
            intake.append_blocking(hit("b"))


def test_a_stream_whose_hits_never_go_is_not_delivered_from(config: SpoolConfig) -> None:
    """Each would be there for ever. Whatever else is wrong with a stream: what is stored there is delivered."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a", site="short"), hit("b"))
        place = Names(config.url.partition("stream=")[2])
        client = intake._link.client()
        assert client is not None
        wanted = {**streams.hits_stream(place, "short", 1), "duplicate_window": 5 * streams.SECOND}
        intake._link.run(api.ask(client, f"STREAM.UPDATE.{place.hits_stream('short')}", wanted), 5.0)
        assert sorted(names(wait_for(lambda: outlet.claim(10, 0), "both"))) == ["a", "b"]
        wanted = {**streams.hits_stream(place, "kept", 1), "retention": "limits"}
        intake._link.run(api.ask(client, f"STREAM.CREATE.{place.hits_stream('kept')}", wanted), 5.0)
        with pytest.raises(SpoolError, match=r"_hits_kept: retention is limits, expected workqueue; change it"):
            JetStreamOutlet(config)


def test_trouble_lasts_until_what_failed_succeeds(nats_server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One server cannot be three. That the rest of it answers is no end of that."""
    config = nats_server.spool(secrets.token_hex(4), replicas=3)
    outlet = JetStreamOutlet(config)
    try:
        for _ in range(3):
            assert outlet.claim(10, 0) == []
            outlet._next_prepare = min(outlet._next_prepare, 0.0)
        assert outlet.peers.exchange(b"x") is None
        outlet._replicas = 1
        assert outlet.claim(10, 0) == []
        told = capsys.readouterr().err
        assert told.count("spool in trouble") == 1
        assert "set replicas=1 in the spool's URL" in told
        assert "works again" not in told, "its words are not left yet"
        assert outlet.peers.exchange(b"x") == []
        assert "works again" in capsys.readouterr().err
    finally:
        outlet.close()


def test_a_stream_that_was_deleted_is_told_of_by_whoever_sees_it_made_anew(
    config: SpoolConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever made it, or had it among its sources. What waited there is missing from the content, and told as that."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"), hit("b"))
        assert len(wait_for(lambda: outlet.claim(1, 0), "one of them")) == 1
        assert spool.ledger_of(config).pending == 2
        client, stream = intake._link.client(), intake._names.hits_stream("default")
        assert client is not None
        intake._link.run(api.ask(client, f"STREAM.DELETE.{stream}"), 5.0)
        assert spool.ledger_of(config).pending == 0
        intake._shelf._made.clear()  # as after the first that is not acknowledged
        intake.append_blocking(hit("c"))
        wait_for(lambda: outlet.claim(1, 0), "the new one")
        assert spool.ledger_of(config).pending == 1
        told = [line for line in capsys.readouterr().err.splitlines() if "a stream was gone and is made anew" in line]
        assert len(told) == 2
        assert all(stream in line for line in told)
        assert spool.ledger_off(config, 1) == 2


def test_a_site_whose_stream_does_not_answer_is_not_told_as_zero(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this reader read last is repeated; what it never read is left out. It is no corrupt lane."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"), hit("b"), hit("c", site="shop"))
        settled(outlet, wait_for(lambda: outlet.claim(1, 0), "a hit"), DIED)
        before = spool.ledger_of(config)
        ask = api.ask

        async def without_default(client: Client, what: str, *rest: Any, **more: Any) -> Any:
            if what.startswith("STREAM.INFO.") and what.endswith("_default"):
                raise TimeoutError
            return await ask(client, what, *rest, **more)

        monkeypatch.setattr(api, "ask", without_default)
        for _ in range(2):
            ledger = spool.ledger_of(config)
            assert (ledger.counts, ledger.pending, ledger.silent, ledger.unread) == (before.counts, 2, ("default",), ())
        never = intake._link.run(Book(intake._names).read(intake._link.client()), 5.0)
        assert (never.counts, never.pending, never.silent) == ({"shop": {RECEIVED: 1}}, 1, ("default",))
        assert balanced(never)
        told = summary(never, Report())
        assert "site default: its stream does not answer" in render(told)
        assert "corrupt" not in render(told)
        samples = [s for family in _ledger(never, ("default", "shop")) for s in family.samples]
        assert {sample.labels["site"] for sample in samples} == {"shop"}


def test_dead_letters_of_a_stream_that_was_made_again_make_nothing_negative() -> None:
    """They were received, whatever the new stream says."""
    found, pending = _balance({"last_seq": 0, "messages": 0}, {"rejected": 5}, {}, {})
    assert (found[RECEIVED], found[Outcome.DELIVERED], pending) == (5, 0, 0)


def test_more_replicas_than_asked_for_are_taken() -> None:
    """The streams are changed first, then the hosts, one after the other."""
    wanted = streams.hits_stream(Names("x"), "default", 1)
    streams._compare("stream x", "", wanted, {**wanted, "num_replicas": 3})
    with pytest.raises(SpoolError, match="num_replicas is 1, expected 3"):
        streams._compare("stream x", "", {**wanted, "num_replicas": 3}, wanted)


def test_more_replicas_than_servers_are_reported(nats_server: NatsServer) -> None:
    """One server cannot be three."""
    with pytest.raises(SpoolError, match="replicas"):
        spool.prepare(nats_server.spool(secrets.token_hex(4), replicas=3))


def test_a_login_that_is_refused_is_told_plainly(tmp_path: Path) -> None:
    """Which file to look into, no traceback, and nothing of the secret."""
    server = NatsServer(tmp_path / "nats", 'authorization { token: "s3cret" }')
    try:
        wrong, right = tmp_path / "wrong", tmp_path / "right"
        wrong.write_text("other-s3cret\n")
        right.write_text("s3cret\n")
        for config in (server.spool("x", token_file=wrong), server.spool("x")):
            for attempt in (JetStreamIntake, JetStreamOutlet, spool.ledger_of):
                with pytest.raises(SpoolError, match=r"login is refused.*token_file=") as refused:
                    attempt(config)
                assert "s3cret" not in str(refused.value)
            assert "login is refused" in spool.unready(config)
        with pytest.raises(SpoolError, match=r"token_file=.*none: No such file"):
            JetStreamIntake(server.spool("x", token_file=tmp_path / "none"))
        with opened(server.spool("x", token_file=right)) as (intake, outlet):
            intake.append_blocking(hit("a"))
            assert names(outlet.claim(10, 0)) == ["a"]
    finally:
        server.stop()


def test_a_key_and_a_certificate_of_ones_own_are_taken_from_files(tmp_path: Path) -> None:
    """Nothing of either is in the URL. A certificate that nobody vouches for is refused in plain words."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    user = nkeys.from_seed(bytearray(seed)).public_key.decode()
    key, cert, nkey = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "user.nk"
    nkey.write_bytes(seed)
    asked = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]
    names_it = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([need("openssl", "openssl"), "req", *asked, *names_it], check=True, capture_output=True)
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}'
    server = NatsServer(tmp_path / "nats", f"{tls}\nauthorization {{ users: [ {{ nkey: {user} }} ] }}")
    try:
        with opened(server.spool("x", nkey=nkey, ca=cert)) as (intake, outlet):
            intake.append_blocking(hit("a"))
            assert names(outlet.claim(10, 0)) == ["a"]
        with pytest.raises(SpoolError, match=r"certificate is not trusted.*ca=FILE"):
            JetStreamIntake(server.spool("x", nkey=nkey, tls=1))
    finally:
        server.stop()


def test_without_a_server_beacons_are_refused_until_it_is_there(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told at once, and nobody has to start anything anew."""
    monkeypatch.setattr("proxy.spool.jetstream.link.OPEN_S", 0.2)
    monkeypatch.setattr(Link.wait_open, "__defaults__", (0.2,))
    config = server.spool("away", commit_timeout_s=5.0)
    server.stop()
    with opened(config) as (intake, outlet):
        began = time.monotonic()
        with pytest.raises(SpoolRefused, match="no connection"):
            intake.append_blocking(hit("a"))
        assert time.monotonic() - began < 2.5
        intake.refuse("default")
        assert outlet.claim(10, 0) == []
        for attempt in (outlet.ledger, lambda: spool.ledger_of(config)):
            with pytest.raises(SpoolError, match=r"127\.0\.0\.1"):
                attempt()
        assert re.search(r"127\.0\.0\.1:\d+: Connection refused; start the servers", spool.unready(config))
        server.start()

        def stored() -> bool:
            with contextlib.suppress(SpoolRefused):
                intake.append_blocking(hit("b"))
                return True
            return False

        wait_for(stored, "the server")
        assert names(wait_for(lambda: outlet.claim(10, 0), "the hit")) == ["b"]
        wait_for(lambda: spool.unready(config) == "", "whoever looks from outside to be connected again")
        assert wait_for(lambda: outlet.ledger().total(REFUSED), "the refusal's count") == 1


def test_why_there_is_no_connection_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name mistyped, a port of something else; and where the servers are there and do not answer."""
    monkeypatch.setattr("proxy.spool.jetstream.link.CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        config = SpoolConfig(f"nats://127.0.0.1:{mute.getsockname()[1]}?stream=x")
        wait_for(lambda: "is it NATS that listens there?" in spool.unready(config), "the reason")
    assert in_words(socket.gaierror(-2, "Name or service not known")) == "no such host is known"
    assert "a stream has no leader just now" in in_words(TimeoutError())


def test_of_several_servers_the_one_that_is_gone_is_named(server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are there: that is no error."""
    address = Address((server.url, "nats://127.0.0.1:1"))
    link = Link(address, "test", lambda client: asyncio.sleep(0))
    assert link.wait_open()
    server.kill()
    wait_for(lambda: link.trouble, "the loss")
    [told] = [line for line in capsys.readouterr().err.splitlines() if "the connection is lost" in line]
    link.close()
    assert '"warning"' in told
    assert f"127.0.0.1:{server.port}: the connection" in told
    assert "127.0.0.1:1:" not in told


def test_a_server_that_hangs_makes_one_visitor_wait_and_not_all(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is there, and nothing is answered: one beacon at a time tries whether that is over."""
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.0)
    config = server.spool("hangs", commit_timeout_s=1.0)
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("before"))
        server.hang()
        with pytest.raises(SpoolRefused, match="in time"):
            intake.append_blocking(hit("first"))
        probe = threading.Thread(target=_tried, args=(intake,))
        probe.start()
        wait_for(lambda: intake._waiting, "the one that tries")
        with pytest.raises(SpoolRefused, match="in time"):
            intake.append_blocking(hit("others"))
        assert probe.is_alive(), "the others do not wait for it"
        probe.join()
        server.wake()
        wait_for(lambda: _tried(intake), "the server to answer again")
        assert "before" in names(outlet.claim(10, 0))


def test_whose_server_does_not_answer_goes_to_another(server: NatsServer, nats_server: NatsServer) -> None:
    """One that is cut off from its peers takes nothing, while the others do; but not to and fro during an election."""
    link = Link(Address((server.url, nats_server.url)), "test", lambda client: asyncio.sleep(0))

    def where() -> str:
        client = link.client()
        return client.connected_url.netloc if client is not None and client.connected_url is not None else ""

    try:
        assert link.wait_open()
        first = where()
        link.run(link.move_on(), 5.0)
        second = wait_for(where, "another server")
        assert second != first
        link.run(link.move_on(), 5.0)
        assert where() == second
    finally:
        link.close()


def _tried(intake: JetStreamIntake) -> bool:
    try:
        intake.append_blocking(hit("tried"))
    except SpoolRefused:
        return False
    return True


def test_a_full_spool_refuses_the_new_and_keeps_the_old(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """max_bytes is looked at now and then."""
    monkeypatch.setattr("proxy.spool.jetstream.intake.LOOK_S", 0.05)
    config = nats_server.spool(secrets.token_hex(4), max_bytes=20_000)
    with opened(config) as (intake, outlet):

        def refused() -> str:
            try:
                intake.append_blocking(hit("x" * 1000))
            except SpoolRefused as refused:
                return str(refused)
            return ""

        assert "max_bytes" in wait_for(refused, "it to be full")
        assert "full" in spool.unready(config)
        assert spool.spool_bytes(config) >= 20_000
        settled(outlet, outlet.claim(1000, 0), DELIVERED)
        wait_for(lambda: not refused(), "it to have room again")


def test_who_watches_is_shown_what_becomes_of_beacons(config: SpoolConfig) -> None:
    """From any machine."""
    with opened(config) as (intake, outlet), spool.watching(config) as listener:
        listener.settimeout(10)
        wait_for(lambda: outlet.watched() and intake._tap.watched(), "the watcher to be heard")
        outlet.show(Tapped(1, "shop", "delivered", name="Bought"))
        assert msgspec.json.decode(listener.recv(65536), type=Tapped).name == "Bought"
        intake.drop("shop", Outcome.GPC)
        assert msgspec.json.decode(listener.recv(65536), type=Tapped).outcome == "gpc"


def test_what_a_forwarder_published_is_found_again(config: SpoolConfig) -> None:
    """By `status`, while it is at work; and what all keep together by the next one, on any machine."""
    assert not spool.begun(config)
    assert spool.ledger_of(config).pending == 0
    with opened(config) as (intake, outlet):
        assert outlet.recall() == b""
        outlet.publish(b"at work")
        [told] = wait_for(lambda: spool.forwarder_states(config), "the state")
        assert told.state == b"at work"
        assert 0 <= told.age_ms < 5000
        assert outlet.peers.amend(lambda before: before + b"a")
        other = JetStreamOutlet(config)
        assert other.peers.amend(lambda before: before + b"b")
        assert outlet.recall() == spool.forwarder_figures(config) == b"ab"
        outlet.peers.leave()
        assert spool.forwarder_states(config) == []
        other.close()
        intake.append_blocking(hit("a"))
    assert spool.begun(config)
    assert spool.ledger_of(config).pending == 1


def test_a_missing_package_is_named(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: not everybody has many machines."""
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(SpoolError, match=r"pip install 'nats-py\[nkeys\]'"):
        JetStreamIntake(config)


@pytest.mark.parametrize("site", ["default", "shop.example", "a b/c*>_", "bücher", "_", ""])
def test_a_sites_name_comes_back_from_its_token(site: str) -> None:
    """NATS allows few characters."""
    assert untoken(token(site)) == site
    assert token(site)
    assert not set(token(site)) & set(". *>/\\")


def test_two_machines_serve_one_spool(serve: Callable[..., ProxyProcess], sandbox: SandboxProcess, config: SpoolConfig) -> None:
    """Each takes beacons and delivers them, its own or the other's; one ledger for both, whichever is asked, or neither runs."""
    one, two = serve(SPOOL=config.url), serve(SPOOL=config.url)
    sent = 0
    for turn in range(20):
        for machine in (one, two):
            assert httpx.get(f"{machine.url}/e?_n=n{turn}&_p={machine.port}").status_code == 200
            sent += 1
    wait_for(lambda: one.status()["delivered"] == sent, "all to be delivered")
    two.kill()
    assert httpx.get(f"{one.url}/e?_n=last&_p=me").status_code == 200
    wait_for(lambda: one.status()["delivered"] == sent + 1, "the last one, by the other machine")
    one.stop()
    told = one.status()
    assert (told["received"], told["pending"], told["dead"]) == (sent + 1, 0, 0)
    log = one.log.read_text()
    assert "Traceback" not in log
    assert "error" not in log


def test_what_a_forwarder_leaves_is_stored_before_it_reads_what_others_left(config: SpoolConfig) -> None:
    """That order is what keeps the total within the ceiling (forward/sharing.py)."""
    with opened(config) as (_, one):
        two = JetStreamOutlet(config)
        assert one.peers.exchange(b"one") == []
        [left] = two.peers.exchange(b"two") or []
        assert (left.who, left.words) == (one.peers.me, b"one")
        [left] = one.peers.exchange(b"one") or []
        assert (left.who, left.words) == (two.peers.me, b"two")
        [again] = one.peers.exchange(b"one") or []
        assert again == left
        two.peers.exchange(b"two")
        [newer] = one.peers.exchange(b"one") or []
        assert newer.mark != left.mark
        one.peers.forget(left)
        assert one.peers.exchange(b"one") == [newer], "what came after it stays"
        one.peers.forget(newer)
        assert one.peers.exchange(b"one") == []
        two.peers.exchange(b"two")
        two.peers.leave()
        assert one.peers.exchange(b"one") == []
        two.close()


def test_words_that_arrive_late_do_not_take_the_place_of_later_ones(config: SpoolConfig) -> None:
    """A turn that was given up, and whose words some server held back: they may claim less than is used by now."""
    with opened(config) as (_, one):
        two = JetStreamOutlet(config)
        two.peers.exchange(b"early")
        late = two.peers._mark
        two.peers.exchange(b"later")
        two.peers._mark, now = late, two.peers._mark
        assert two.peers.exchange(b"late") is None
        assert two.peers._mark == now, "it knows again what is there"
        assert [left.words for left in one.peers.exchange(b"one") or []] == [b"later"]
        one.peers.forget((one.peers.exchange(b"one") or [])[0])
        assert two.peers.exchange(b"swept away") is None
        assert two.peers.exchange(b"there again") is not None
        two.close()


def test_a_reading_in_the_middle_of_many_changes_lacks_nobody(config: SpoolConfig) -> None:
    """Each replaces its words all the time; the server breaks off a reading of which a part is gone (404)."""
    with opened(config) as (_, one):
        others = [JetStreamOutlet(config) for _ in range(3)]
        for other in others:
            other.peers.exchange(b"x")
        stop = threading.Event()

        def write(outlet: JetStreamOutlet) -> None:
            while not stop.is_set():
                outlet.peers.exchange(b"x")

        threads = [threading.Thread(target=write, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        found = [one.peers.exchange(b"one") for _ in range(200)]
        stop.set()
        for thread in threads:
            thread.join()
        wanted = {other.peers.me for other in others}
        assert [left for left in found if left is not None and {one.who for one in left} != wanted] == []
        assert sum(left is not None for left in found) > 150
        for other in others:
            other.close()


def test_what_all_keep_together_is_amended_by_one_at_a_time(config: SpoolConfig) -> None:
    """Of two who do it at once one is told to do it again, and no count is lost."""
    outlets = [JetStreamOutlet(config) for _ in range(3)]

    def count(outlet: JetStreamOutlet) -> None:
        added = 0
        while added < 30:
            added += outlet.peers.amend(lambda before: str(int(before or b"0") + 1).encode())

    threads = [threading.Thread(target=count, args=(outlet,)) for outlet in outlets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outlets[0].recall() == b"90"
    for outlet in outlets:
        outlet.close()


def test_hits_that_a_forwarder_has_no_share_for_go_to_another(config: SpoolConfig) -> None:
    """What was claimed and not begun, what was fetched, and what waits for another try, when it is due; no other."""
    with opened(config) as (intake, one):
        for n in range(5):
            intake.append_blocking(hit(str(n)))
        intake.append_blocking(hit("begun"), hit("other", site="other"))
        claims = {names([claim])[0]: claim for claim in one.claim(10, 0)}
        due_ms = time.time_ns() // 1_000_000 + 300
        settled(one, [claims["4"]], Retry(due_ms, "503"))
        one.peers.give_back([claims["0"], claims["1"], claims["2"], claims["3"]], {"default"})
        two = JetStreamOutlet(config)
        again = wait_for(lambda: len(found := two.claim(10, 0)) >= 4 and found, "those that are due")
        assert sorted(names(again)) == ["0", "1", "2", "3"]
        [last] = wait_for(lambda: two.claim(10, 0), "the one that waits")
        assert time.time_ns() // 1_000_000 >= due_ms - 5
        assert (names([last]), last.attempt) == (["4"], 2)
        settled(two, [*again, last], DELIVERED)
        settled(one, [claims["begun"], claims["other"]], DELIVERED)
        wait_for(lambda: (ledger := one.ledger()).total(Outcome.DELIVERED) == 7 and balanced(ledger), "all")
        two.close()


def test_what_peers_do_waits_for_a_server_that_is_away(server: NatsServer) -> None:
    """Nothing is raised, and nothing is believed."""
    config = server.spool("peers")
    with opened(config) as (_, outlet):
        outlet.peers.exchange(b"x")
        server.stop()
        assert outlet.peers.exchange(b"x") is None
        assert outlet.peers.amend(lambda before: before) is False
        outlet.peers.leave()
        server.start()
        assert wait_for(lambda: outlet.peers.exchange(b"x") == [], "the server")


def test_servers_that_come_back_empty_do_not_confuse_the_new_with_what_is_still_here(server: NatsServer) -> None:
    """Sequences begin anew: a new hit has that of an old one. Both are delivered, and the old one's end is not the new one's."""
    config = server.spool("empty")
    with opened(config) as (intake, outlet):
        for n in range(3):
            intake.append_blocking(hit(f"old{n}"))
        old = outlet.claim(10, 0)
        settled(outlet, old[:1], Retry(0, "503"))
        server.stop()
        shutil.rmtree(server.directory / "store")
        server.start()
        for n in range(3):
            wait_for(lambda n=n: _stored(intake, f"new{n}"), "the server to take hits again")  # type: ignore[misc]
        other = JetStreamOutlet(config)
        settled(outlet, old[1:2], DELIVERED)
        settled(outlet, old[2:], DIED)
        found: list[Claim] = []
        while len(found) < 3:
            found += wait_for(lambda: other.claim(2, 0) + outlet.claim(2, 1), "the new ones")
            found = [claim for claim in found if names([claim]) != ["old0"] or settled(outlet, [claim], DELIVERED)]
        assert sorted(names(found)) == ["new0", "new1", "new2"]
        assert outlet.ledger().pending == 3
        for one in (outlet, other):
            settled(one, found, DELIVERED)
        wait_for(lambda: not (outlet.settle([]), outlet.ledger().pending)[1], "all to be settled")
        ledger = outlet.ledger()
        assert balanced(ledger)
        assert (ledger.total(RECEIVED), ledger.total(Outcome.DELIVERED), ledger.total(Outcome.REJECTED)) == (6, 5, 1)
        other.close()


def _stored(intake: JetStreamIntake, name: str) -> bool:
    try:
        intake.append_blocking(hit(name))
    except SpoolRefused:
        return False
    return True


def test_a_new_hit_with_the_sequence_of_one_that_is_here_is_another() -> None:
    """Whatever else is known of its stream."""
    flights = Flights()
    for stored, reply in (("1", "old"), ("2", "new")):
        flights.take_off([Pulled("s", 7, stored, 1, reply, stored.encode())], lambda stream: Source("site", ""), ())
    old, new = flights.fresh(10, ())
    assert (old.content, old.reply, new.content, new.reply) == (b"1", "", b"2", "new")
    assert old.place != new.place
    flights.forget(old)
    assert flights.is_out(new)


def test_a_site_whose_stream_does_not_answer_stops_no_other(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left alone for a while; and the server is not left for that."""
    ensure, moved = streams.ensure_consumer, []

    async def leaderless(client: "Client", stream: str) -> str:
        if stream.endswith("_away"):
            await asyncio.sleep(5)
            raise TimeoutError
        return await ensure(client, stream)

    async def unanswered() -> None:
        raise TimeoutError

    monkeypatch.setattr(streams, "ensure_consumer", leaderless)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.SITE_PATIENCE_S", 0.3)
    monkeypatch.setattr(Link, "move_on", lambda self: moved.append(1) or asyncio.sleep(0))
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a", site="away"))
        intake.append_blocking(hit("b", site="there"))
        began = time.monotonic()
        assert names(outlet.claim(10, 0)) == ["b"]
        assert time.monotonic() - began < 2
        monkeypatch.setattr("proxy.spool.jetstream.outlet.SITE_PATIENCE_S", 3.0)
        began = time.monotonic()
        intake.append_blocking(hit("c", site="there"))
        assert names(outlet.claim(10, 0)) == ["c"]
        assert time.monotonic() - began < 2.0
        outlet._run(unanswered(), None)
        assert not moved
        monkeypatch.setattr(streams, "ensure_consumer", ensure)
        outlet._resting = dict.fromkeys(outlet._resting, 0.0)
        assert names(outlet.claim(10, 0)) == ["a"]
        outlet._sources.clear()
        outlet._run(unanswered(), None)
        wait_for(lambda: moved, "a move, where no site answers")


def test_what_comes_from_a_stream_that_is_gone_just_then_has_its_site(config: SpoolConfig) -> None:
    """Some of a batch, then an error."""
    with opened(config) as (intake, outlet):
        for n in range(3):
            intake.append_blocking(hit(str(n), site="shop"))
        fetch = outlet._puller.fetch

        async def broken_off(client: "Client", stream: str, wanted: int) -> bool:
            await fetch(client, stream, wanted)
            return False

        outlet._puller.fetch = broken_off  # type: ignore[method-assign]
        claims = outlet.claim(10, 0)
        assert [claim.ticket.site for claim in claims] == ["shop"] * 3
        outlet._sources.clear()
        assert outlet._source_of(outlet._names.hits_stream("shop")).site == "shop"
        settled(outlet, claims, DIED)
        assert outlet.ledger().counts["shop"][Outcome.REJECTED] == 3


def test_what_was_not_recorded_is_not_acknowledged(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter that cannot be stored stays a pending hit."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("dies"))
        claims = outlet.claim(10, 0)

        async def refuse(self: Publisher, link: Link, messages: list[Message], patience_s: float) -> list[str]:
            return ["no room"] * len(messages)

        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish", refuse)
            settled(outlet, claims, DIED)
            assert (outlet.ledger().pending, outlet.ledger().total(Outcome.REJECTED)) == (1, 0)
        outlet.settle([])
        assert (outlet.ledger().pending, outlet.ledger().total(Outcome.REJECTED)) == (0, 1)


def test_endings_that_find_no_room_to_be_recorded_make_it(tmp_path: Path) -> None:
    """A server that is full takes no record, and only acknowledgements make room: some come first, none of a dead letter's. In
    the end each is recorded."""
    server = NatsServer(tmp_path / "nats", most="256KB")
    try:
        with opened(server.spool("full")) as (intake, outlet):
            while _stored(intake, "x" * 2000):
                pass
            with pytest.raises(SpoolRefused, match=r"no room: insufficient resources: raise their max_file_store.*max_bytes"):
                intake.append_blocking(hit("more"))
            claims = outlet.claim(1000, 0)
            settled(outlet, claims[:1], DIED)
            assert outlet.ledger().pending == len(claims)
            settled(outlet, claims[1:30], Final(Outcome.BOT))
            assert outlet.ledger().pending == len(claims) - CREDIT
            settled(outlet, claims[30:], DELIVERED)
            wait_for(lambda: not (outlet.settle([]), outlet._settler.kept)[1], "the rest to be recorded")
            ledger = outlet.ledger()
            assert (ledger.total(Outcome.BOT), ledger.total(Outcome.REJECTED), ledger.pending) == (29, 1, 0)
            assert ledger.total(Outcome.DELIVERED) == len(claims) - 30
            intake._no_room.clear()  # the next look does that
            intake.append_blocking(hit("after"))
    finally:
        server.stop()


def test_what_was_acknowledged_on_credit_is_recorded_however_often_that_is_refused(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as long as it is not, there is no more credit."""
    with opened(config) as (intake, outlet):
        for n in range(CREDIT + 4):
            intake.append_blocking(hit(str(n)))
        claims: list[Claim] = []
        while len(claims) < CREDIT + 4:
            claims += outlet.claim(100, 0)

        async def refuse(self: Publisher, link: Link, messages: list[Message], patience_s: float) -> list[str]:
            return [f"{FULL}insufficient resources"] * len(messages)

        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish", refuse)
            settled(outlet, claims, Final(Outcome.BOT))
            for _ in range(3):
                outlet.settle([])
            assert outlet.ledger().pending == 4
        outlet.settle([])
        assert (outlet.ledger().pending, outlet.ledger().total(Outcome.BOT)) == (0, CREDIT + 4)
        assert outlet._settler.kept == {}


def test_a_hit_that_is_held_for_long_is_not_given_to_another(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server hears of it now and then."""
    monkeypatch.setattr(streams, "ACK_WAIT_S", 1)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.SAY_S", 0.1)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.UNHEARD_S", 0.3)
    with opened(config) as (intake, one):
        intake.append_blocking(hit("slow"))
        claims = one.claim(10, 0)
        two = JetStreamOutlet(config)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert two.claim(10, 0) == []
            time.sleep(0.1)
        settled(one, claims, DELIVERED)
        assert one.ledger().pending == 0
        two.close()


def made_anew(server: NatsServer, stream: str, log: str) -> bool:
    """Whether it is there again, and that was told."""
    told = any("made anew" in line and stream in line for line in log.splitlines())
    return told and stream in server.api("STREAM.NAMES")["streams"]


def test_without_their_state_stream_forwarders_make_it_anew_and_go_on(
    nats_server: NatsServer,
    config: SpoolConfig,
    inside: Callable[..., "InThread"],
    sandbox: SandboxProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who has no share claims nothing, and would wait for ever."""
    monkeypatch.setattr("proxy.forward.telling.PUBLISH_MS", 200)
    monkeypatch.setattr("proxy.forward.sharing.STALE_MS", 400)  # no share is left when it is made anew
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.8)
    proxy, state, told = inside(SPOOL=config.url, FALLBACK=""), Names(config.url.partition("stream=")[2]).state, ""

    def visit(name: str) -> None:
        assert httpx.get(f"{proxy.url}/e?_n={name}&_p={state}").status_code == 200

    def delivered() -> list[str]:
        return [beacon["params"]["_n"] for beacon in sandbox.beacons() if beacon["params"]["_p"] == state]

    def is_made_anew() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return made_anew(nats_server, state, told)

    visit("before")
    wait_for(lambda: delivered() == ["before"], "the one before")
    nats_server.api(f"STREAM.DELETE.{state}")
    wait_for(is_made_anew, "the stream")
    visit("after")
    wait_for(lambda: delivered() == ["before", "after"], "the one after")


@pytest.mark.parametrize(("which", "ending"), [("dead", DIED), ("ledger", Final(Outcome.BOT))])
def test_a_stream_of_records_that_is_silent_and_then_gone_holds_up_no_delivery(
    nats_server: NatsServer,
    config: SpoolConfig,
    which: str,
    ending: Final,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While one record waits to be put down, others are claimed and acknowledged. Then it is, in a stream made anew."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.1)
    monkeypatch.setattr("proxy.spool.jetstream.settler.WAIT_S", 0.1)
    name = getattr(place := Names(config.url.partition("stream=")[2]), which)
    [subjects] = [stream["subjects"] for stream in streams.common_streams(place, 1) if stream["name"] == name]
    with opened(config) as (intake, outlet):

        def turn() -> None:
            intake.append_blocking(hit("alive"))
            settled(outlet, wait_for(lambda: outlet.claim(10, 0), "a hit"), DELIVERED)
            outlet.publish(b"at work")

        intake.append_blocking(hit("ends"))
        claims = wait_for(lambda: outlet.claim(10, 0), "the one that ends")
        nats_server.api(f"STREAM.DELETE.{name}")
        nats_server.api(f"STREAM.CREATE.{name}-mute", {"name": f"{name}-mute", "subjects": subjects, "no_ack": True})
        settled(outlet, claims, ending)
        [kept] = outlet._settler.kept.values()
        for _ in range(10):
            turn()
            assert kept.recording
        assert list(outlet._settler.kept.values()) == [kept]
        nats_server.api(f"STREAM.DELETE.{name}-mute")
        wait_for(lambda: (turn(), not outlet._settler.kept)[1], "the record to be put down")
        assert made_anew(nats_server, name, log := capsys.readouterr().err)
        assert log.count("spool in trouble") == 1
        assert outlet.ledger().total(ending.outcome) == 1


def test_a_call_that_failed_and_is_never_made_again_is_no_trouble_for_ever(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is read once, at the start, say. The next trouble would not be told."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.FORGET_S", 0.1)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.0)

    async def once() -> None:
        raise RuntimeError("at the start")

    with opened(config) as (_, outlet):
        outlet._run(once(), None)
        assert "at the start" in capsys.readouterr().err
        wait_for(lambda: (outlet.claim(10, 0), "works again" in capsys.readouterr().err)[1], "the end to be told")


def test_where_nobody_says_which_streams_there_are_the_known_ones_are_delivered_from(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an election: it is asked again a while after it was given up, and is one trouble until it is answered."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.0)
    ask, given_up = api.ask, [0.0]

    async def unanswered(client: Client, what: str, *rest: Any, **more: Any) -> Any:
        if what != "STREAM.NAMES":
            return await ask(client, what, *rest, **more)
        try:
            await asyncio.sleep(60)
        finally:
            given_up.append(time.monotonic())

    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"))
        assert names(wait_for(lambda: outlet.claim(1, 0), "a hit")) == ["a"]
        with monkeypatch.context() as patch:
            patch.setattr("proxy.spool.jetstream.outlet.SITE_PATIENCE_S", 0.05)
            patch.setattr(api, "ask", unanswered)
            for name in ("b", "c", "d"):
                intake.append_blocking(hit(name))
                assert names(wait_for(lambda: outlet.claim(1, 0), "a hit")) == [name]
                assert outlet._looked >= given_up[-1] > given_up[-2]
                del given_up[:-1]
        told = capsys.readouterr().err
        assert told.count("spool in trouble") == 1
        assert "works again" not in told
        wait_for(lambda: (outlet.claim(1, 0), "works again" in capsys.readouterr().err)[1], "its end")


def test_acknowledgements_that_were_cut_off_before_they_began_are_sent_with_the_next(config: SpoolConfig) -> None:
    """Whoever waited for them gave up."""
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"))
        [claim] = wait_for(lambda: outlet.claim(10, 0), "a hit")
        outlet._settler.end(claim.ticket, DELIVERED)

        async def cut_off() -> None:
            recording = asyncio.create_task(outlet._settler.record(outlet._link))
            await asyncio.sleep(0)
            recording.cancel()
            await asyncio.wait([recording])

        outlet._link.run(cut_off(), 5.0)
        assert outlet.ledger().pending == 1
        outlet.settle([])
        assert outlet.ledger().pending == 0


def test_a_full_spool_gets_no_room_because_a_stream_says_nothing(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is still there. In an election more than max_bytes would be stored, with /readyz green."""
    monkeypatch.setattr("proxy.spool.jetstream.intake.LOOK_S", 0.05)
    config = nats_server.spool(secrets.token_hex(4), max_bytes=20_000)
    ask, silent = api.ask, 0

    async def without_default(client: Client, what: str, *rest: Any, **more: Any) -> Any:
        nonlocal silent
        if what.startswith("STREAM.INFO.") and what.endswith("_hits_default"):
            silent += 1
            raise TimeoutError
        return await ask(client, what, *rest, **more)

    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("elsewhere", site="shop"))
        wait_for(lambda: not _stored(intake, "x" * 1000), "it to be full")
        assert "full" in spool.unready(config)
        with monkeypatch.context() as patch:
            patch.setattr(api, "ask", without_default)
            wait_for(lambda: silent > 3, "some looks")
            assert not _stored(intake, "x" * 1000)
            assert "full" in spool.unready(config)
            assert spool.spool_bytes(config) >= 20_000
        settled(outlet, outlet.claim(1000, 0), DELIVERED)
        wait_for(lambda: _stored(intake, "y"), "it to have room again")


def test_that_a_full_spool_refuses_beacons_is_logged(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, with the reason, and once when it is over; also where a beacon is refused without asking a server."""
    monkeypatch.setattr("proxy.spool.jetstream.intake.LOOK_S", 0.05)
    with opened(nats_server.spool(secrets.token_hex(4), max_bytes=20_000)) as (intake, outlet):
        wait_for(lambda: not _stored(intake, "x" * 1000), "it to be full")
        assert not _stored(intake, "more")
        [line] = [line for line in capsys.readouterr().err.splitlines() if "refusing beacons" in line]
        assert "max_bytes (20000)" in line
        settled(outlet, outlet.claim(1000, 0), DELIVERED)
        wait_for(lambda: _stored(intake, "y"), "it to have room again")
        wait_for(lambda: "storing again" in capsys.readouterr().err, "the end to be logged")


def test_a_connection_that_is_lost_again_soon_and_stays_away_is_logged(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second loss within the quiet after the first may last for hours: then it must be in the log."""
    monkeypatch.setattr("proxy.log.QUIET_S", 1.0)
    link = Link(Address((server.url,)), "test", lambda client: asyncio.sleep(0))
    try:
        assert link.wait_open()
        logged = ""
        for _ in range(2):
            server.kill()
            wait_for(lambda: link.trouble, "the loss to be seen")
            logged += capsys.readouterr().err
            if not logged.count("connected again"):
                server.start()
                wait_for(lambda: not link.trouble, "the connection")
                logged += capsys.readouterr().err
        assert logged.count("no connection to the spool") == 1, "the second came too soon"
        wait_for(lambda: "no connection to the spool" in capsys.readouterr().err, "the second loss to be logged")
    finally:
        link.close()


def test_a_server_that_is_left_is_no_connection_however_its_end_goes(
    server: NatsServer, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs keeps what was written from going out, and so the old connection from closing. Until there is another one
    there is none."""
    monkeypatch.setattr("proxy.spool.jetstream.link.CONNECT_S", 0.1)
    monkeypatch.setattr("proxy.spool.jetstream.link.RECONNECT_S", 60.0)

    async def hang() -> None:
        await asyncio.sleep(60)

    link = Link(Address((server.url, nats_server.url)), "test", lambda client: asyncio.sleep(0))
    try:
        assert link.wait_open()
        client = link.client()
        assert client is not None
        monkeypatch.setattr(client, "close", hang)
        link.run(link.move_on(), 5.0)
        assert link.client() is None
        assert link.down_since is not None
    finally:
        link.close()


def test_what_a_user_may_not_do_is_no_reason_for_what_fails_later(tmp_path: Path) -> None:
    """A permission that was missing once would be named for ever, also where it is the servers that do not answer."""
    server = NatsServer(
        tmp_path / "nats",
        'authorization { users: [{user: a, password: b, permissions: {publish: {deny: ["forbidden"]}}}] }\nno_auth_user: a\n',
    )
    link = Link(Address((server.url,)), "test", lambda client: asyncio.sleep(0))

    async def unanswered(subject: str) -> None:
        client = link.client()
        assert client is not None
        await client.publish(subject, b"")
        await asyncio.sleep(60)

    try:
        assert link.wait_open()
        with pytest.raises(SpoolError, match=r"(?i)permissions violation for publish to .?forbidden"):
            link.ask(unanswered("forbidden"), 1.0)
        with pytest.raises(ServersAway, match="do not answer in time"):
            link.ask(unanswered("allowed"), 0.2)
        publisher, message = Publisher(), Message("allowed", b"", {})
        link.run(publisher.subscribe(link.client()), 1.0)  # type: ignore[arg-type]
        assert link.run(publisher.publish(link, [message], 0.1), 5.0) == [UNANSWERED]
    finally:
        link.close()
        server.stop()


def test_what_could_not_be_said_of_a_hit_is_said_with_the_next_round(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit of which the server hears nothing is given to another forwarder; so what was only tried must not count as said."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.SAY_S", 0.05)
    monkeypatch.setattr("proxy.spool.jetstream.outlet.UNHEARD_S", 0.3)
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"))
        [claim] = wait_for(lambda: outlet.claim(1, 0), "a hit")
        client, before, tried = outlet._link.client(), claim.ticket.heard, 0
        assert client is not None
        publish = client.publish

        async def fail(subject: str, payload: bytes = b"", *rest: Any) -> None:
            nonlocal tried
            if payload == b"+WPI":
                tried += 1
                raise ConnectionError
            await publish(subject, payload, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(client, "publish", fail)
            wait_for(lambda: tried >= 2, "some rounds")
            assert claim.ticket.heard == before
        wait_for(lambda: claim.ticket.heard > before, "it to be said")
        settled(outlet, [claim], DELIVERED)


def test_who_was_crowded_out_is_not_for_ever(server: NatsServer) -> None:
    """A turn that could not be begun, for want of a connection, says nothing of the room."""
    with opened(server.spool("crowded")) as (_, outlet):
        outlet.peers.crowded_out = True
        server.kill()
        wait_for(lambda: outlet._link.trouble, "the loss to be seen")
        assert outlet.peers.exchange(b"words") is None
        assert not outlet.peers.crowded_out


def test_a_forwarder_that_waits_logs_each_reason(nats_server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator who fixed the first must see the second, and not wait for it in vain."""
    config = nats_server.spool(secrets.token_hex(4))
    wrong = streams.common_streams(Names(config.url.partition("stream=")[2]), 1)[:2]
    for stream in wrong:
        nats_server.api(f"STREAM.CREATE.{stream['name']}", {**stream, "duplicate_window": 120 * streams.SECOND})
    logged = ""

    def is_logged(of: str) -> bool:
        nonlocal logged
        logged += capsys.readouterr().err
        return any("forwarder waits" in line and of in line for line in logged.splitlines())

    async def waiting() -> None:
        stopping = asyncio.Event()
        outlet = asyncio.create_task(_outlet_when_free(ForwarderConfig(config, {}), stopping, patient=True))
        for stream in wrong:
            await asyncio.to_thread(wait_for, lambda name=stream["name"]: is_logged(f"stream {name}:"), "the reason")
            await asyncio.to_thread(nats_server.api, f"STREAM.DELETE.{stream['name']}")
        found = await outlet
        assert found is not None
        await asyncio.to_thread(found.close)

    asyncio.run(waiting())
    assert logged.count("forwarder waits") == 2


def test_records_are_waited_for_again_once_none_is_late(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endings that came meanwhile, and were not begun yet, are no sign that the servers are still slow. Else records that take a
    moment would pass for ones that do not arrive."""
    monkeypatch.setattr("proxy.spool.jetstream.settler.WAIT_S", 0.5)
    publish, quick = Publisher.publish, threading.Event()

    async def slowly(self: Publisher, *arguments: Any) -> list[str]:
        while not quick.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # longer than an acknowledgement, and in time
        return await publish(self, *arguments)

    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"), hit("b"))
        claims: list[Claim] = []
        wait_for(lambda: claims.extend(outlet.claim(10, 0)) or len(claims) == 2, "both hits")
        settler, link = outlet._settler, outlet._link
        monkeypatch.setattr(Publisher, "publish", slowly)
        settled(outlet, claims[:1], Final(Outcome.BOT))
        [late] = settler.kept.values()
        assert late.recording
        settler.end(claims[1].ticket, Final(Outcome.BOT))
        quick.set()
        wait_for(lambda: late.recorded, "the first to be recorded")
        link.run(settler.record(link), 5.0)  # raises where records are missing
        assert outlet.ledger().total(Outcome.BOT) == 2


def test_servers_that_refuse_do_not_hang(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is an answer. Else others' beacons would go on being refused without a try, for a reason that is over."""
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.0)
    with opened(server.spool("refuses", commit_timeout_s=1.0)) as (intake, _):
        intake.append_blocking(hit("before"))
        stream = streams.hits_stream(intake._names, "default", 1)
        server.api(f"STREAM.UPDATE.{stream['name']}", {**stream, "max_msgs": 1})
        server.hang()
        with pytest.raises(SpoolRefused, match="in time"):
            intake.append_blocking(hit("while it hangs"))
        assert set(intake.hangs) == {"default"}
        server.wake()

        def refused() -> str:
            with pytest.raises(SpoolRefused) as caught:
                intake.append_blocking(hit("afterwards"))
            return str(caught.value)

        wait_for(lambda: "maximum messages exceeded" in refused(), "the server's answer")
        assert intake.hangs == {}


def test_what_cannot_be_tried_without_a_connection_is_not_forgotten(server: NatsServer) -> None:
    """A call that failed says nothing any more once it was not made for a while. Where it could not be made it still does."""

    async def fails() -> None:
        raise RuntimeError("no")

    with opened(server.spool("forgets")) as (_, outlet):
        outlet._run(fails(), None)
        [(name, failed)] = outlet._wrong.items()
        server.kill()
        wait_for(lambda: outlet._link.trouble, "the loss to be seen")
        lost = time.monotonic()
        assert outlet.claim(10, 0) == []
        assert outlet._wrong[name] >= lost > failed


def test_acknowledgements_that_are_not_answered_are_trouble_until_they_are(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not waited for any more; that the rest succeeds meanwhile is no end of that."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.REST_S", 0.0)
    monkeypatch.setattr("proxy.spool.jetstream.settler.REST_S", 0.0)
    with opened(config) as (intake, outlet):
        intake.append_blocking(hit("a"))
        claims = wait_for(lambda: outlet.claim(1, 0), "a hit")
        client = outlet._link.client()
        assert client is not None
        request = client.request

        async def silent(subject: str, *rest: Any, **more: Any) -> Any:
            if subject.startswith("$JS.ACK."):
                raise TimeoutError
            return await request(subject, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(client, "request", silent)
            settled(outlet, claims, DELIVERED)
            for _ in range(3):
                outlet.claim(1, 0, {"default": Wanted(0, 0)})
            logged = capsys.readouterr().err
            assert logged.count("spool in trouble") == 1
            assert "works again" not in logged
        wait_for(lambda: (outlet.claim(1, 0), "works again" in capsys.readouterr().err)[1], "its end")
        assert outlet.ledger().pending == 0
