"""While the spool's servers are away beacons wait on this host: real servers and processes, killed, hung and wiped."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, children, clean_environment, kill_tree, wait_for
from msgspec.structs import replace
from nats_server import NatsServer
from small_disk import fill, mounted
from test_embedding import UvicornProcess
from test_jetstream import balanced
from test_spool import DELIVERED, hit, names
from test_wsgi import GunicornProcess

from proxy import hit as hits
from proxy import spool
from proxy.admin.app import make_app
from proxy.admin.config import AdminConfig
from proxy.admin.page.look import Look
from proxy.admin.report import Report
from proxy.admin.summary import render, summary
from proxy.cli.check import describe
from proxy.log import log
from proxy.outcome import Outcome
from proxy.settings import Settings
from proxy.spool.fallback.intake import FallbackIntake
from proxy.spool.fallback.mover import Mover, moving
from proxy.spool.fallback.transfer import BATCH, LaneTransfer
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.port import RECEIVED, REFUSED, Intake, Ledger, Settlement, SpoolConfig, SpoolError, SpoolRefused
from proxy.spool.sqlite import file
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.survey import audit, read_ledger

STUCK, GOES_ON = "the fallback cannot be emptied yet", "the fallback is being emptied"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at now and then is looked at at once."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.LOOK_S", 0.0)
    monkeypatch.setattr("proxy.spool.fallback.mover.LOOK_S", 0.02)
    monkeypatch.setattr(Link.wait_open, "__defaults__", (0.3,))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server to be killed."""
    started = NatsServer(tmp_path / "nats")
    yield started
    started.kill()


@pytest.fixture
def config(server: NatsServer, tmp_path: Path) -> SpoolConfig:
    return replace(server.spool(secrets.token_hex(4)), fallback=f"sqlite:{tmp_path / 'fallback'}")


@contextlib.contextmanager
def opened(config: SpoolConfig) -> Iterator[FallbackIntake]:
    intake = FallbackIntake(config)
    try:
        yield intake
    finally:
        intake.close()


def lanes(config: SpoolConfig) -> Path:
    return Path(config.fallback.removeprefix("sqlite:"))


def delivered(outlet: JetStreamOutlet, n: int) -> list[str]:
    """The names of so many hits at least, each delivered."""
    found: list[str] = []

    def all_there() -> bool:
        claims = outlet.claim(1000, 0)
        outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
        found.extend(names(claims))
        return len(found) >= n

    wait_for(all_there, f"{n} hits")
    return found


def emptied(config: SpoolConfig) -> bool:
    return spool.fallback_pending(config) == 0


def test_hits_go_to_the_lane_while_the_server_is_away_and_into_the_spool_afterwards(
    server: NatsServer, config: SpoolConfig
) -> None:
    """Each is answered, none is lost, none is there twice; the ledger has each once."""
    outlet = JetStreamOutlet(config)
    with opened(config) as intake:
        intake.append_blocking(hit("before"))
        server.kill()
        wait_for(lambda: intake._engine.away, "the loss to be seen")
        began = time.monotonic()
        for n in range(300):
            intake.append_blocking(hit(str(n)))
        intake.drop("default", Outcome.GPC)
        assert time.monotonic() - began < 2.0
        wait_for(lambda: read_ledger(lanes(config)).total(Outcome.GPC) == 1, "the drop to be counted on disk")
        assert spool.fallback_pending(config) == 300
        assert audit(lanes(config), 1000) == 0
        assert spool.unready(config) == ""
        with pytest.raises(SpoolError, match=r"127\.0\.0\.1.*; 300 beacons wait in sqlite:[^;]*$"):
            spool.ledger_of(config)
        server.start()
        with moving(config):
            wait_for(lambda: emptied(config), "the lane to be emptied")
            wait_for(lambda: spool.ledger_of(config).total(Outcome.GPC) == 1, "the drop")
        wait_for(lambda: not intake._engine.away, "the collector to be connected")
        intake.append_blocking(hit("after"))
        ledger = spool.ledger_of(config)
        assert balanced(ledger)
        assert (ledger.total(RECEIVED), ledger.pending, ledger.fallback) == (303, 302, 0)
        assert audit(lanes(config), 1000) == 0
        assert sorted(delivered(outlet, 302)) == sorted(["before", "after", *map(str, range(300))])
        assert read_ledger(lanes(config)).counts["default"] == {RECEIVED: 0, "moving": 0, "gpc": 0}
    outlet.close()


def test_a_fallback_on_a_full_disk_is_emptied_once_the_servers_are_back(
    server: NatsServer, config: SpoolConfig, tmp_path: Path
) -> None:
    """To the last byte, by collectors and another program: the mover uses the room that is kept for settlements, as a forwarder
    does. 0 of 5,557 beacons were moved once, while the host called itself ready."""
    with mounted(tmp_path / "disk") as disk:
        config = replace(config, fallback=f"sqlite:{disk / 'fallback'}", durability="os")
        with opened(config) as intake:
            server.kill()
            wait_for(lambda: intake._engine.away, "the loss to be seen")
            stored = 0
            with contextlib.suppress(SpoolRefused):
                while stored < 5_000:
                    intake.append_blocking(hit("x" * 3_000 + str(stored)))
                    stored += 1
            assert 100 < stored < 5_000, "collectors leave room"
            fill(disk)
            assert "full" in spool.unready(config)
            server.start()
            with moving(config):
                wait_for(lambda: emptied(config), "the lanes to be emptied")
            (disk / "ballast").unlink()
            outlet = JetStreamOutlet(config)
            assert len(delivered(outlet, stored)) == stored
            outlet.close()


def test_a_hit_that_the_server_took_without_a_word_is_stored_once(server: NatsServer, config: SpoolConfig) -> None:
    """It hangs with the publication in its socket: the hit goes to the lane, and is moved under the same id. The visitor waits
    for a second, the next ones not at all; what may be at both places is not counted twice meanwhile."""
    outlet = JetStreamOutlet(config)
    with opened(config) as intake:
        intake.append_blocking(hit("before"))
        server.hang()
        waits = []
        for n in range(20):
            began = time.monotonic()
            intake.append_blocking(hit(str(n)))
            waits.append(time.monotonic() - began)
        assert max(waits) < 1.5
        assert sorted(waits)[15] < 0.3
        assert audit(lanes(config), 1000) == 0
        counts = read_ledger(lanes(config)).counts["default"]
        assert counts["doubtful"] >= 1
        assert counts["doubtful"] + counts[RECEIVED] == 20
        server.wake()
        wait_for(lambda: spool.ledger_of(config).total(RECEIVED) > 0, "the server to answer")
        seen = [spool.ledger_of(config).total(RECEIVED)]
        with moving(config):
            while not emptied(config):
                seen.append(spool.ledger_of(config).total(RECEIVED))
        seen.append(spool.ledger_of(config).total(RECEIVED))
        assert seen == sorted(seen)
        assert seen[-1] == 21
        assert sorted(delivered(outlet, 21)) == sorted(["before", *map(str, range(20))])
        assert outlet.claim(10, 0) == []
    outlet.close()


def test_a_mover_that_died_in_the_middle_is_followed_by_one_that_moves_the_same(server: NatsServer, config: SpoolConfig) -> None:
    """Published and not deleted, or not even published: the ids are the same, and so is the batch."""
    server.kill()
    with opened(config) as intake:
        asyncio.run(_append_all(intake, [str(n) for n in range(BATCH + 50)]))
        server.start()
        [path] = lanes(config).glob("lane-*.db")
        first = LaneTransfer(path)
        begun = first.begin()
        assert read_ledger(lanes(config)).counts["default"] == {RECEIVED: 50, "moving": BATCH}
        first.close()
        wait_for(lambda: not intake._engine.away, "the connection")
        link = intake._engine._link
        put = intake._engine._shelf.put(link, [row.hit for row in begun[:100]], [row.message for row in begun[:100]], 5.0)
        assert link.run(put, 6.0) == [""] * 100
        second = LaneTransfer(path)
        assert second.begin() == begun
        second.close()
        assert spool.ledger_of(config).total(RECEIVED) == 150
        with moving(config):
            wait_for(lambda: emptied(config), "the lane to be emptied")
        assert spool.ledger_of(config).total(RECEIVED) == BATCH + 50
        outlet = JetStreamOutlet(config)
        assert sorted(delivered(outlet, BATCH + 50), key=int) == [str(n) for n in range(BATCH + 50)]
        outlet.close()


async def _append_all(intake: Intake, wanted: list[str], site: str = "default") -> None:
    await asyncio.gather(*(intake.append(hit(name, site=site)) for name in wanted))


def test_counts_that_were_begun_to_be_moved_are_moved_once(server: NatsServer, config: SpoolConfig) -> None:
    """Their increments bear ids as well."""
    server.kill()
    with opened(config) as intake:
        intake.append_blocking(hit("a"))
        for _ in range(3):
            intake.drop("default", Outcome.GPC)
        intake.refuse("default")
        wait_for(lambda: read_ledger(lanes(config)).total(REFUSED) == 1, "the counts")
        server.start()
        [path] = lanes(config).glob("lane-*.db")
        lane = LaneTransfer(path)
        begun = lane.begin_counts()
        assert {(count.name, count.n) for count in begun} == {("gpc", 3), (REFUSED, 1)}
        assert lane.begin_counts() == begun
        lane.close()
        with moving(config):
            wait_for(lambda: emptied(config), "the lane to be emptied")
            wait_for(lambda: spool.ledger_of(config).total(REFUSED) == 1, "the counts")
        ledger = spool.ledger_of(config)
        assert (ledger.total(RECEIVED), ledger.total(Outcome.GPC), ledger.pending) == (4, 3, 1)


def test_what_the_spool_refuses_for_its_own_sake_holds_up_nothing(tmp_path: Path) -> None:
    """A hit that is larger than the servers take stays in the lane, behind all others."""
    server = NatsServer(tmp_path / "nats", "max_payload: 4KB\n")
    config = replace(server.spool("small"), fallback=f"sqlite:{tmp_path / 'fallback'}")
    try:
        with opened(config) as intake:
            intake.append_blocking(hit("x" * 8000))
            server.kill()
            wait_for(lambda: intake._engine.away, "the loss to be seen")
            for n in range(5):
                intake.append_blocking(hit(str(n)))
            server.start()
            with moving(config):
                wait_for(lambda: spool.fallback_pending(config) == 1, "the others to be moved")
            ledger = spool.ledger_of(config)
            assert (ledger.total(RECEIVED), ledger.fallback) == (5, 1)
    finally:
        server.kill()


def _drift(config: SpoolConfig, intake: FallbackIntake, site: str, **change: object) -> None:
    """Somebody edits the stream of a site."""
    place = Names(config.url.partition("stream=")[2])
    client = intake._engine._link.client()
    assert client is not None
    wanted = {**streams.hits_stream(place, site, 1), **change}
    intake._engine._link.run(api.ask(client, f"STREAM.UPDATE.{place.hits_stream(site)}", wanted), 5.0)


async def _append_to_sites(intake: FallbackIntake, *sites: str) -> None:
    await asyncio.gather(*(intake.append(hit(str(n), site=site)) for n, site in enumerate(sites)))


def test_one_sites_stream_that_is_not_to_be_had_holds_up_no_other_site(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hits wait on this host; those of others, in the same batches, go to the spool. It is looked at again later."""
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.5)
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "bad", "good"))
        _drift(config, intake, "bad", duplicate_window=120 * streams.SECOND)
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, *["bad", "good"] * 10))
        assert spool.fallback_pending(config) == 10
        assert spool.ledger_of(config).counts["good"][RECEIVED] == 11
        _drift(config, intake, "bad")
        with moving(config):
            wait_for(lambda: emptied(config), "the lane to be emptied")
        assert spool.ledger_of(config).counts["bad"][RECEIVED] == 11


def test_a_stream_that_does_not_answer_costs_other_sites_no_time(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own visitors wait once for a second, then it is left alone for a while, and one of them tries it again; and the servers
    do not pass for hung ones."""
    ensure, tries = streams.ensure_stream, 0

    async def silent(client: Any, wanted: streams.Config, births: streams.Births) -> None:
        nonlocal tries
        if wanted["name"].endswith("_hits_bad"):
            tries += 1
            await asyncio.sleep(60)
        await ensure(client, wanted, births)

    async def timed(intake: FallbackIntake, site: str) -> float:
        began = time.monotonic()
        await intake.append(hit("a", site=site))
        return time.monotonic() - began

    async def both(intake: FallbackIntake) -> list[float]:
        return await asyncio.gather(timed(intake, "bad"), timed(intake, "good"), timed(intake, "new"))

    monkeypatch.setattr(streams, "ensure_stream", silent)
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "good"))
        bad, good, new = asyncio.run(both(intake))
        assert bad > 0.9
        assert max(good, new) < 0.5
        assert max(asyncio.run(both(intake))) < 0.5
        assert tries == 1
        assert not intake._engine.hangs
        link, shelf = intake._engine._link, intake._engine._shelf

        async def many_batches() -> None:
            await asyncio.gather(*(shelf.put(link, [hit("a", site="bad")], [str(n)], 0.1) for n in range(20)))

        shelf._shunned["bad"] = shelf._shunned["bad"]._replace(until=0.0)
        link.run(many_batches(), 5.0)
        assert tries == 2
        assert spool.fallback_pending(config) == 2
        assert {site: counts[RECEIVED] for site, counts in spool.ledger_of(config).counts.items()}["good"] == 3


def test_the_mover_passes_over_a_site_whose_stream_is_not_to_be_had(server: NatsServer, config: SpoolConfig) -> None:
    """More than a batch of its rows lie before those of another."""
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "bad"))
        _drift(config, intake, "bad", duplicate_window=120 * streams.SECOND)
        server.kill()
        wait_for(lambda: intake._engine.away, "the loss to be seen")
        asyncio.run(_append_to_sites(intake, *["bad"] * (BATCH + 50)))
        asyncio.run(_append_to_sites(intake, *["good"] * 30))
        server.start()
        wait_for(lambda: not intake._engine.away, "the connection")
        with moving(config):
            wait_for(lambda: spool.fallback_pending(config) == BATCH + 50, "the others to be moved", 5)
            assert spool.ledger_of(config).counts["good"][RECEIVED] == 30
            _drift(config, intake, "bad")
            wait_for(lambda: emptied(config), "the lane to be emptied")
        assert spool.ledger_of(config).counts["bad"][RECEIVED] == BATCH + 51


def test_one_site_for_which_there_is_no_room_holds_up_no_other(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brokers that have its stream are full, others are not; here a limit of the stream passes for theirs. More than a batch
    of its hits lie before those of another, and are moved once there is room."""
    monkeypatch.setattr("proxy.spool.jetstream.refusal.NO_ROOM", (10077,))
    monkeypatch.setattr("proxy.spool.fallback.mover.ROOM_S", 0.1)
    monkeypatch.setattr("proxy.spool.jetstream.intake.LOOK_S", 60.0)
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "bad"))
        _drift(config, intake, "bad", max_msgs=1)
        for _ in range(2):
            asyncio.run(_append_to_sites(intake, *["bad", "good"] * 10))
        assert spool.fallback_pending(config) == 20
        asyncio.run(_append_all(intake._lane, [str(n) for n in range(BATCH + 30)], "bad"))
        asyncio.run(_append_all(intake._lane, [str(n) for n in range(30)], "good"))
        with moving(config):
            wait_for(lambda: spool.fallback_pending(config) == BATCH + 50, "the others to be moved", 5)
            assert spool.ledger_of(config).counts["good"][RECEIVED] == 50
            _drift(config, intake, "bad")
            wait_for(lambda: emptied(config), "the lane to be emptied")
        assert spool.ledger_of(config).counts["bad"][RECEIVED] == BATCH + 51


@pytest.mark.parametrize("limit", ["max_payload", "max_msg_size", "headers"])
def test_a_batch_of_hits_that_are_too_large_holds_up_nothing(limit: str, tmp_path: Path) -> None:
    """For the server, for their stream, and for the server together with their headers alone."""
    server = NatsServer(tmp_path / "nats", "" if limit == "max_msg_size" else "max_payload: 4KB\n")
    config = replace(server.spool("small"), fallback=f"sqlite:{tmp_path / 'fallback'}")
    large = hit("x" * 8000)
    if limit == "headers":
        large = hit("x" * (4096 - 10 - len(hits.encode(hit("")))))
        assert 4070 < len(hits.encode(large)) < 4096
    try:
        with opened(config) as intake:
            intake.append_blocking(hit("first"))
            if limit == "max_msg_size":
                _drift(config, intake, "default", max_msg_size=4096)
            server.kill()
            wait_for(lambda: intake._engine.away, "the loss to be seen")

            async def many() -> None:
                await asyncio.gather(*(intake.append(large) for _ in range(BATCH + 10)))

            asyncio.run(many())
            asyncio.run(_append_all(intake, [str(n) for n in range(30)]))
            server.start()
            with moving(config):
                wait_for(lambda: spool.fallback_pending(config) == BATCH + 10, "the others to be moved", 8)
            assert spool.ledger_of(config).total(RECEIVED) == 31
    finally:
        server.kill()


def test_the_lane_is_closed_whatever_the_engine_does(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is on disk, and the next process gets it."""
    intake = FallbackIntake(config)
    close = intake._engine.close

    def failing() -> None:
        close()
        raise RuntimeError("the engine failed")

    monkeypatch.setattr(intake._engine, "close", failing)
    with pytest.raises(RuntimeError, match="the engine failed"):
        intake.close()
    with pytest.raises(SpoolRefused):
        intake._lane.enter(hit("late"), lambda error: None)


def test_only_when_both_refuse_a_beacon_is_refused(server: NatsServer, config: SpoolConfig) -> None:
    """max_bytes counts for the lane as well."""
    server.kill()
    with opened(replace(config, max_bytes=100_000)) as intake:

        def refused() -> str:
            try:
                intake.append_blocking(hit("x" * 1000))
            except SpoolRefused as refused:
                return str(refused)
            return ""

        assert "max_bytes" in wait_for(refused, "the lane to be full")
        why = spool.unready(replace(config, max_bytes=100_000))
        assert "127.0.0.1" in why
        assert "full" in why
        assert spool.unready(config) == ""


def test_status_tells_what_waits_on_this_host() -> None:
    """Where it is still on its way."""
    assert "on this host" not in render(summary(Ledger({}, 0, None), Report()))
    told = summary(Ledger({"default": {RECEIVED: 7}}, 7, None, fallback=5), Report())
    assert told["fallback"] == 5
    assert re.search(r"fallback +5 +on this host, to be moved", render(told))


def test_hits_that_servers_refuse_are_told_though_no_count_has_them(config: SpoolConfig) -> None:
    """They were published, so the server might have them: `pending 0` beside 20 that wait would be a riddle."""
    with opened(config) as intake:
        intake.append_blocking(hit("first"))
        _drift(config, intake, "default", max_msgs=1)
        asyncio.run(_append_all(intake, [str(n) for n in range(20)]))
        ledger = spool.ledger_of(config)
        assert (ledger.pending, ledger.fallback, ledger.doubtful) == (1, 20, 20)
        assert re.search(r"fallback +20 .*\ndoubtful +20 +of these: the servers may have them", render(summary(ledger, Report())))
        _drift(config, intake, "default")
        with moving(config):
            wait_for(lambda: emptied(config), "the lane to be emptied")
        ledger = spool.ledger_of(config)
        assert (ledger.pending, ledger.doubtful) == (21, 0)


def test_only_servers_have_a_fallback() -> None:
    """With a local spool it would be a second one beside the first."""
    key: dict[str, Any] = {"api_key": "k"}
    with pytest.raises(ValueError, match=r"fallback: found sqlite:b beside a sqlite: spool"):
        Settings(**key, spool="sqlite:a", fallback="sqlite:b")
    with pytest.raises(ValueError, match="expected sqlite:DIR"):
        Settings(**key, spool="nats://h", fallback="memory:")
    assert Settings(**key, spool="sqlite:a", fallback="").spool_config().fallback == ""
    assert Settings(**key, spool="nats://h", fallback="").spool_config().fallback == ""
    assert Settings(**key, spool="nats://h").spool_config().fallback == "sqlite:fallback"
    assert "waits on this host under fallback" in describe(Settings(**key, spool="nats://h"))
    assert "no fallback: one that they do not take is answered 503" in describe(Settings(**key, spool="nats://h", fallback=""))


class Visitors:
    """Send beacons one after the other, each its own, and keep what they were answered and how long it took."""

    def __init__(self, proxy: ProxyProcess, n: int = 4, rest_s: float = 0.02) -> None:
        self.answers: dict[str, int] = {}
        self.waits: list[float] = []
        self._proxy, self._rest_s = proxy, rest_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(n)]
        for thread in self._threads:
            thread.start()

    def _send(self, who: int) -> None:
        turn = 0
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy.port, timeout=20)
        while not self._stop.wait(self._rest_s):
            name, began, turn = f"v{who}-{turn}", time.monotonic(), turn + 1
            try:
                connection.request("GET", f"/e?_n={name}&_p=me")
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):  # the collector was killed: nothing was promised
                connection.close()
                continue
            self.answers[name] = answer.status
            self.waits.append(time.monotonic() - began)
        connection.close()

    def more(self, n: int) -> None:
        """Wait for so many more answers."""
        goal = len(self.answers) + n
        wait_for(lambda: len(self.answers) >= goal, f"{n} more answers")

    def end(self) -> set[str]:
        """The names of those that were answered 200."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return {name for name, status in self.answers.items() if status == 200}


def process(proxy: ProxyProcess, role: str, but: int = 0) -> int:
    """The child of that role, once it is there; not the one that was killed."""

    def found() -> int:
        for pid in children(proxy.process.pid):
            with contextlib.suppress(OSError):
                if pid != but and role in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    return pid
        return 0

    return int(wait_for(found, role))


def settled(proxy: ProxyProcess, sandbox: SandboxProcess, sent: set[str]) -> tuple[dict[str, Any], int]:
    """What `status` says once everything is delivered, and how many copies came to the vendor beside the first ones. Each beacon
    that was answered 200 is there, all its copies identical."""

    def done() -> dict[str, Any] | None:
        with contextlib.suppress(SpoolError):
            told = proxy.status()
            return told if not told["pending"] and not told["fallback"] else None
        return None

    told: dict[str, Any] = wait_for(done, "everything to be delivered", 40)
    copies: dict[str, list[tuple[str, str, str]]] = {}
    for beacon in sandbox.beacons():
        copies.setdefault(beacon["params"]["_n"], []).append((beacon["method"], beacon["query"], beacon["body"]))
    assert sent - copies.keys() == set()
    assert [name for name, found in copies.items() if len(set(found)) > 1] == []
    assert told["received"] == told["delivered"]
    return told, sum(map(len, copies.values())) - len(copies)


def test_visitors_notice_nothing_of_a_server_that_starts_late_dies_and_hangs(
    serve: Callable[..., ProxyProcess], sandbox: SandboxProcess, server: NatsServer, config: SpoolConfig
) -> None:
    """Only 200, none of them after a wait, nothing missing, every copy identical, and the ledger exact."""
    server.kill()
    proxy = serve(SPOOL=config.url)
    here = replace(config, fallback=proxy.environment["BEACON_PROXY_FALLBACK"])
    visitors = Visitors(proxy)
    visitors.more(50)
    server.start()
    sandbox.wait(20)
    visitors.more(50)
    server.kill()
    visitors.more(100)
    server.start()
    wait_for(lambda: emptied(here), "the fallback to be emptied")
    visitors.more(100)
    server.hang()
    visitors.more(200)
    server.wake()
    visitors.more(100)
    sent = visitors.end()
    assert Counter(visitors.answers.values()) == {200: len(sent)}
    assert max(visitors.waits) < 2.5
    told, more = settled(proxy, sandbox, sent)
    assert len(sent) <= told["received"] <= len(sent) + more
    assert told["refused"] == 0
    log = proxy.log.read_text()
    assert "Traceback" not in log
    assert "beacons go to the fallback" in log
    assert "moved from the fallback into the spool" in log


def test_collector_and_mover_may_be_killed_at_any_moment_and_the_server_may_come_back_empty(
    serve: Callable[..., ProxyProcess], sandbox: SandboxProcess, server: NatsServer, config: SpoolConfig
) -> None:
    """What was answered 200 while it was away is on this host's disk, and gets to the vendor."""
    proxy = serve(SPOOL=config.url)
    server.kill()
    visitors = Visitors(proxy, rest_s=0.005)
    visitors.more(300)
    os.kill(process(proxy, "collector"), signal.SIGKILL)
    visitors.more(600)
    shutil.rmtree(server.directory / "store")
    sent = visitors.end()
    here = replace(config, fallback=proxy.environment["BEACON_PROXY_FALLBACK"])
    waits = spool.fallback_pending(here)
    assert waits >= len(sent)
    server.start()
    mover = 0
    for left in (waits - 1, waits - 300):
        mover = process(proxy, "mover", but=mover)
        wait_for(lambda left=left: spool.fallback_pending(here) <= left, "the mover to be at work")
        os.kill(mover, signal.SIGKILL)
    told, more = settled(proxy, sandbox, sent)
    assert waits <= told["received"] <= waits + more
    assert set(visitors.answers.values()) == {200}
    assert "Traceback" not in proxy.log.read_text()


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "beside"])
def test_without_serve_the_application_moves_whoever_forwards(
    embedded: bool, sandbox: SandboxProcess, server: NatsServer, config: SpoolConfig, tmp_path: Path
) -> None:
    """There is no supervisor to start a mover: it is a thread of the application, and one of `forward` beside it stands by."""
    settings = {"SPOOL": config.url, "FALLBACK": config.fallback, "UPSTREAM": sandbox.url, "API_KEY": API_KEY}
    environment = {
        f"BEACON_PROXY_{name}": value for name, value in {**settings, "EMBEDDED_FORWARDER": str(embedded).lower()}.items()
    }
    server.kill()
    app = UvicornProcess("proxy.asgi:app", tmp_path, clean_environment(**environment)).wait()
    beside = None
    try:
        for n in range(5):
            assert httpx.get(f"{app.url}/e?_n={n}&_p=me").status_code == 200
        assert spool.fallback_pending(config) == 5
        server.start()
        if not embedded:
            beside = ProxyProcess(tmp_path / "spool", sandbox.url, "forward", SPOOL=config.url, FALLBACK=config.fallback)
        sandbox.wait(5)
        wait_for(lambda: emptied(config), "the fallback to be emptied")
    finally:
        app.stop()
        if beside is not None:
            beside.stop()
    assert "Traceback" not in app.log.read_text()


def mover_of(config: SpoolConfig) -> int:
    """The process that holds the directory's lock, as the kernel has it; 0 if none."""
    lock = lanes(config) / "forwarder.lock"
    inode = str(lock.stat().st_ino) if lock.exists() else ""
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return next((int(words[4]) for words in held if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode), 0)


@pytest.mark.parametrize("host", ["uvicorn", "gunicorn"])
def test_of_an_applications_processes_one_moves_and_another_takes_over(
    host: str, server: NatsServer, config: SpoolConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither `serve` nor `forward` is on this host. Whoever moves is killed at it, and each beacon is moved once."""
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--preload")
    sent = [str(n) for n in range(4000)]
    server.kill()
    with opened(config) as intake:
        asyncio.run(_append_all(intake, sent))
    app: UvicornProcess | GunicornProcess
    if host == "uvicorn":
        environment = clean_environment(BEACON_PROXY_SPOOL=config.url, BEACON_PROXY_FALLBACK=config.fallback)
        app = UvicornProcess("proxy.asgi:app", tmp_path, environment).wait()
    else:
        app = GunicornProcess(tmp_path / "spool", SPOOL=config.url, FALLBACK=config.fallback)
    try:

        def both_collect() -> bool:
            sent.append(f"late-{len(sent)}")
            assert httpx.get(f"{app.url}/e?_n={sent[-1]}&_p=me").status_code == 200
            return len(list(lanes(config).glob("lane-*.db"))) == 2

        wait_for(both_collect, "both processes to collect")
        assert spool.fallback_pending(config) == len(sent)
        mover = wait_for(lambda: mover_of(config), "a mover")
        server.start()
        wait_for(lambda: spool.fallback_pending(config) < len(sent), "it to be at work")
        os.kill(mover, signal.SIGKILL)
        wait_for(lambda: mover_of(config) not in (mover, 0), "another mover")
        wait_for(lambda: emptied(config), "the fallback to be emptied")
        outlet = JetStreamOutlet(config)
        assert sorted(delivered(outlet, len(sent))) == sorted(sent)
        assert outlet.ledger().total(RECEIVED) == len(sent)
        outlet.close()
        app.stop()
        assert mover_of(config) == 0
        assert "Traceback" not in app.log.read_text()
    finally:
        kill_tree(app.process.pid)
        app.process.wait()


def test_without_a_fallback_beacons_are_refused(
    serve: Callable[..., ProxyProcess], server: NatsServer, config: SpoolConfig
) -> None:
    """As it was: 503, after the wait for the servers."""
    proxy = serve(SPOOL=config.url, FALLBACK="", COMMIT_TIMEOUT="0.5")
    server.kill()
    assert wait_for(lambda: httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 503, "a refusal")
    assert not [pid for pid in children(proxy.process.pid) if "mover" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]


def test_servers_that_are_set_wrongly_do_not_keep_a_collector_from_starting(
    server: NatsServer, config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lane it goes on, and is back by itself once the stream is what it must be."""
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.0)
    spool.prepare(config)
    state = config.url.partition("stream=")[2] + "_state"
    right = server.api(f"STREAM.INFO.{state}")["config"]
    server.api(f"STREAM.UPDATE.{state}", {**right, "max_age": 0})
    spool.prepare(config)
    with opened(config) as intake:
        intake.append_blocking(hit("a"))
        assert spool.fallback_pending(config) == 1
        server.api(f"STREAM.UPDATE.{state}", right)
        intake.append_blocking(hit("b"))
        assert spool.fallback_pending(config) == 1


def test_a_login_that_is_refused_does_not_keep_a_collector_from_starting(tmp_path: Path) -> None:
    """It is tried again: the servers may be those that are wrong."""
    server = NatsServer(tmp_path / "nats", 'authorization { token: "new" }')
    token = tmp_path / "token"
    token.write_text("old")
    config = replace(server.spool("login", token_file=token), fallback=f"sqlite:{tmp_path / 'fallback'}")
    try:
        spool.prepare(config)
        with opened(config) as intake:
            intake.append_blocking(hit("a"))
            assert spool.fallback_pending(config) == 1
            server.kill()
            conf = server.directory / "nats.conf"
            conf.write_text(conf.read_text().replace('"new"', '"old"'))
            server.start()
            with moving(config):
                wait_for(lambda: emptied(config), "the lane to be emptied")
        with pytest.raises(SpoolError, match="No such file"):
            spool.prepare(replace(config, url=config.url + "-gone"))
    finally:
        server.kill()


def test_lanes_that_cannot_be_read_do_not_make_a_host_unready(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much waits there is left out."""

    def unreadable(directory: str) -> Ledger:
        raise SpoolError("a file of a newer version")

    with opened(config):
        monkeypatch.setattr("proxy.spool.sqlite.survey.read_ledger", unreadable)
        app = make_app(AdminConfig(config), Look(config))

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
                return await client.get("/readyz")

        answer = asyncio.run(ask())
    assert (answer.status_code, answer.text) == (200, "ready\n")


def test_a_directory_is_one_spools(server: NatsServer, config: SpoolConfig) -> None:
    """Another's mover would bring its beacons to the wrong vendor. One of an earlier spool is taken over."""
    other = replace(config, url=config.url + "-other")
    server.kill()
    with opened(config) as intake:
        intake.append_blocking(hit("a"))
    stream = config.url.partition("stream=")[2]
    for attempt in (spool.prepare, spool.look_at, FallbackIntake, Mover):
        with pytest.raises(SpoolError, match=rf"stream={stream}, and this one has stream={stream}-other; give each service"):
            attempt(other)
    marked = lanes(config) / "stream"
    marked.unlink()
    mover = Mover(other)
    marked.write_text(f"{stream}\n")
    assert mover._hold() is None
    marked.unlink()
    spool.prepare(other)
    assert marked.read_text() == f"{stream}-other\n"


def test_a_directory_in_which_nothing_ever_waited_is_whose_who_needs_it(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that did not start leaves nothing, or a mark and no lane. Whoever marked it before another's lane notices."""
    other = replace(config, url=config.url + "-other")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nats.aio.client", None)
        with pytest.raises(SpoolError, match="nats-py"):
            spool.prepare(config)
    assert not lanes(config).exists()
    spool.prepare(config)
    first = Mover(config)
    held = first._hold()
    assert held is not None
    with opened(other) as intake:
        intake._lane.append_blocking(hit("a"))
        with pytest.raises(SpoolError, match="give each service"):
            first._lane(file.lane_files(lanes(config))[0])
        with pytest.raises(SpoolError, match="give each service"):
            FallbackIntake(config)
    first._link.close()
    os.close(held)


def test_a_mover_lets_the_directory_go_though_a_child_was_forked_meanwhile(config: SpoolConfig) -> None:
    """An application may fork: the child has a copy of the lock's descriptor, and knows nothing of it."""
    lanes(config).mkdir()
    with moving(config):
        wait_for(lambda: mover_of(config) == os.getpid(), "the lock")
        lock = (lanes(config) / "forwarder.lock").resolve()
        [held] = [int(path.name) for path in Path("/proc/self/fd").iterdir() if path.resolve() == lock]
        copy = os.dup(held)
    assert mover_of(config) == 0
    os.close(copy)


def test_a_mover_that_waits_for_long_says_so_once(config: SpoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may hold the directory for good."""
    told: list[str] = []
    monkeypatch.setattr("proxy.spool.fallback.mover.HELD_S", 0.1)
    monkeypatch.setattr(log, "warning", lambda event, **_: told.append(event))
    lanes(config).mkdir()
    held = file.lock(lanes(config) / "forwarder.lock")
    assert held is not None
    with moving(config):
        wait_for(lambda: told, "the warning")
        time.sleep(0.3)
    os.close(held)
    assert told == ["the fallback is held by another process, which is to move it"]


def _mover_says(log: str) -> list[str]:
    """What a mover logged of whether it can move, in order."""
    return [line["event"] for line in map(json.loads, log.splitlines()) if line["event"] in (STUCK, GOES_ON)]


def test_a_lane_that_is_moved_does_not_end_the_trouble_of_another(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log would say that the fallback is being emptied while a site's beacons stay here. Only their own success ends that."""
    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "bad", "good"))
        _drift(config, intake, "bad", duplicate_window=120 * streams.SECOND)
        other = Lane(lanes(config), config)
        asyncio.run(_append_all(intake._lane, [str(n) for n in range(5)], "bad"))
        asyncio.run(_append_all(other, [str(n) for n in range(BATCH + 20)], "good"))
        intake._lane.drop("bad", Outcome.GPC)
        with moving(config):
            wait_for(lambda: spool.fallback_pending(config) == 5, "the others to be moved")
            wait_for(lambda: spool.ledger_of(config).total(Outcome.GPC) == 1, "the count to be moved")
            for n in range(3):
                asyncio.run(_append_all(other, [f"later {n}"], "good"))
                wait_for(lambda: spool.fallback_pending(config) == 5, "the others to be moved")
            assert _mover_says(capsys.readouterr().err) == [STUCK]
            _drift(config, intake, "bad")
            wait_for(lambda: emptied(config), "the lane to be emptied")
            wait_for(lambda: _mover_says(capsys.readouterr().err) == [GOES_ON], "its end to be logged")
        other.close()


def test_a_mover_that_waits_for_room_says_so(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the operator does not learn why the fallback grows."""
    monkeypatch.setattr("proxy.spool.fallback.mover.ROOM_S", 0.1)
    with opened(config) as intake:
        intake.append_blocking(hit("x" * 2000))
        asyncio.run(_append_all(intake._lane, ["a", "b"]))
        with moving(replace(config, max_bytes=1000)):
            wait_for(lambda: _mover_says(capsys.readouterr().err) == [STUCK], "the reason to be logged")
        assert spool.fallback_pending(config) == 2


def test_a_spool_that_was_full_gets_no_room_because_no_server_answers(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mover goes by what was known last. In an election more than max_bytes would be moved."""
    monkeypatch.setattr("proxy.spool.fallback.mover.ROOM_S", 0.1)
    ask, unanswered = api.ask, 0

    async def unanswering(client: Any, what: str, *rest: Any, **more: Any) -> Any:
        nonlocal unanswered
        if what == "STREAM.NAMES":
            unanswered += 1
            raise TimeoutError
        return await ask(client, what, *rest, **more)

    with opened(config) as intake:
        intake.append_blocking(hit("x" * 2000))
        asyncio.run(_append_all(intake._lane, ["a", "b"]))
        mover = Mover(replace(config, max_bytes=1000))
        thread = threading.Thread(target=mover.run)
        thread.start()
        try:
            wait_for(lambda: not mover._has_room, "it to see that the spool is full")
            monkeypatch.setattr(api, "ask", unanswering)
            wait_for(lambda: unanswered > 3, "some looks")
            assert spool.fallback_pending(config) == 2
        finally:
            mover.stop()
            thread.join(10)


def test_a_site_that_is_stored_does_not_end_the_trouble_of_another(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log would say that beacons go to the spool again while those of a site do not."""
    monkeypatch.setattr("proxy.spool.jetstream.shelf.SHUNNED_S", 0.0)

    def said() -> list[str]:
        return re.findall(r"beacons go to the (?:fallback|spool again)", capsys.readouterr().err)

    with opened(config) as intake:
        asyncio.run(_append_to_sites(intake, "bad", "good"))
        _drift(config, intake, "bad", duplicate_window=120 * streams.SECOND)
        intake._engine._shelf._made.clear()
        for n in range(5):
            intake.append_blocking(hit(f"bad {n}", site="bad"))
            intake.append_blocking(hit(f"good {n}", site="good"))
        assert spool.fallback_pending(config) == 5
        assert said() == ["beacons go to the fallback"]
        _drift(config, intake, "bad")
        intake.append_blocking(hit("bad again", site="bad"))
        wait_for(lambda: said() == ["beacons go to the spool again"], "the end to be logged")
