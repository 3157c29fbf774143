"""Real forwarders on one real nats-server, started, stopped, killed and restarted under load; the upstream counts what it has."""

import asyncio
import contextlib
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from conftest import ProxyProcess, free_port, wait_for
from msgspec.structs import replace
from nats_server import NatsServer
from test_spool import hit

from proxy import spool
from proxy.admin.report import Report, read_report
from proxy.admin.summary import read, render
from proxy.spool.fallback.intake import FallbackIntake
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.port import SpoolConfig

CEILING = 6


class CountingUpstream:
    """Holds each request for a while, whatever becomes of who sent it, and remembers the most it had at once."""

    def __init__(self) -> None:
        self.hold_s = 0.1
        self.now = self.most = 0
        self.names: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop).result(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.now += 1
                self.most = max(self.most, self.now)
                await asyncio.sleep(self.hold_s)
                self.now -= 1
                self.names[parse_qs(urlsplit(head.split()[1].decode()).query)["_n"][0]] += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@pytest.fixture
def upstream() -> Iterator[CountingUpstream]:
    started = CountingUpstream()
    yield started
    started.stop()


@pytest.fixture
def config(nats_server: NatsServer) -> SpoolConfig:
    return nats_server.spool(secrets.token_hex(4))


class Load:
    """Hits, numbered."""

    def __init__(self, config: SpoolConfig) -> None:
        self.sent = 0
        self.config, self._intake = config, JetStreamIntake(config)

    def add(self, n: int) -> None:
        self._intake.append_blocking(*(hit(f"n{self.sent + k}") for k in range(n)))
        self.sent += n

    def names(self) -> set[str]:
        return {f"n{k}" for k in range(self.sent)}

    def keep(self, least: int = 40) -> None:
        """So many wait, at the least."""
        if spool.ledger_of(self.config).pending < least:
            self.add(2 * least)


@pytest.fixture
def load(config: SpoolConfig) -> Iterator[Load]:
    started = Load(config)
    yield started
    started._intake.close()


@pytest.fixture
def forward(config: SpoolConfig, upstream: CountingUpstream, tmp_path: Path) -> Iterator[Callable[..., ProxyProcess]]:
    started: list[ProxyProcess] = []

    def start(ceiling: int = CEILING) -> ProxyProcess:
        settings: dict[str, Any] = {"SPOOL": config.url, "concurrency": str(ceiling), "attempt_timeout": "1"}
        started.append(ProxyProcess(tmp_path / "spool", upstream.url, "forward", **settings))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


class Watch:
    """Looks at the spool now and then, and keeps some hits waiting there."""

    def __init__(self, config: SpoolConfig, load: Load, upstream: CountingUpstream) -> None:
        self._config, self._load, self._upstream = config, load, upstream
        self._looked = float("-inf")

    def until(self, is_so: Callable[[Report], object], what: str) -> Report:
        found = wait_for(lambda: (report := self._look()) is not None and is_so(report) and report, what, 60)
        assert isinstance(found, Report)
        return found

    def until_shared_by(self, n: int) -> Report:
        """The whole ceiling is given out, and each has work."""
        return self.until(
            lambda report: report.forwarders == n and self._limit(report) == CEILING and self._at_work() == n,
            f"{n} forwarders to share",
        )

    def _look(self) -> Report | None:
        if time.monotonic() - self._looked < 0.1:
            return None
        self._looked = time.monotonic()
        self._load.keep()
        return read_report(self._config)

    def _limit(self, report: Report) -> int:
        of = report.upstreams.get(self._upstream.url)
        return of.limit if of is not None else 0

    def _at_work(self) -> int:
        states = [msgspec.json.decode(one.state) for one in spool.forwarder_states(self._config)]
        return sum(state["upstreams"][self._upstream.url]["in_flight"] > 0 for state in states)


@pytest.fixture
def watch(config: SpoolConfig, load: Load, upstream: CountingUpstream) -> Watch:
    return Watch(config, load, upstream)


def test_a_rolling_restart_loses_nothing_and_repeats_nothing(
    config: SpoolConfig, upstream: CountingUpstream, load: Load, watch: Watch, forward: Callable[[], ProxyProcess]
) -> None:
    """Forwarders come and go; the total in flight never passes the ceiling, each has work, and figures only grow."""
    attempts = [0]

    def shared_by(n: int) -> None:
        report = watch.until_shared_by(n)
        attempts.append(sum(sum(of.stats.answers.values()) for of in report.upstreams.values()))

    at_work = [forward(), forward()]
    shared_by(2)
    for _ in range(2):
        at_work.append(forward())
        shared_by(3)
        assert at_work.pop(0).stop() == 0
        shared_by(2)
    told = read(config)
    assert told["forwarders"] == 2
    assert "forwarders            2   at work" in render(told)
    wait_for(lambda: not spool.ledger_of(config).pending, "the rest")
    for process in at_work:
        assert process.stop() == 0
        assert "error" not in process.log.read_text()
    assert upstream.most == CEILING
    assert upstream.names == dict.fromkeys(load.names(), 1)
    report = read_report(config)
    assert report.upstreams[upstream.url].stats.answers == {"200": load.sent}
    assert attempts == sorted(attempts)
    told = read(config)
    assert (told["forwarders"], told["upstreams"][upstream.url]["state"]) == (0, "no forwarder")
    assert "forwarders         none" in render(told)


def test_a_share_of_a_forwarder_that_died_or_hangs_is_free_when_nothing_of_it_can_be_under_way(
    upstream: CountingUpstream, load: Load, watch: Watch, forward: Callable[[], ProxyProcess]
) -> None:
    """The upstream may not notice that it is gone. One that goes on after all joins anew."""
    upstream.hold_s = 0.9
    stays, dies, hangs = forward(), forward(), forward()
    watch.until_shared_by(3)
    dies.kill()
    hangs.process.send_signal(signal.SIGSTOP)
    watch.until_shared_by(1)
    wait_for(lambda: upstream.now == CEILING, "the whole ceiling to be used by one")
    upstream.hold_s = 0.1
    hangs.process.send_signal(signal.SIGCONT)
    watch.until_shared_by(2)
    assert upstream.most == CEILING
    assert stays.stop() == hangs.stop() == 0
    delivered = spool.ledger_of(load.config).total("delivered")
    assert delivered <= len(upstream.names) <= load.sent
    assert spool.ledger_of(load.config).pending == load.sent - delivered


def test_a_store_that_is_full_is_emptied(upstream: CountingUpstream, tmp_path: Path) -> None:
    """No forwarder can leave a word there. It delivers all the same, and what waits in the fallback follows."""
    server = NatsServer(tmp_path / "nats", most="128KB")
    config = replace(server.spool("full"), fallback=f"sqlite:{tmp_path / 'fallback'}")
    forwarder = None
    try:
        intake, sent = FallbackIntake(config), 0
        while spool.fallback_pending(config) < 3:
            intake.append_blocking(replace(hit(f"n{sent}"), user_agent="x" * 2000))
            sent += 1
        intake.close()
        forwarder = ProxyProcess(tmp_path / "spool", upstream.url, "forward", SPOOL=config.url, FALLBACK=config.fallback)
        wait_for(lambda: spool.ledger_of(config).total("delivered") == sent, "all to be delivered")
        assert upstream.names == {f"n{n}": 1 for n in range(sent)}
        assert forwarder.stop() == 0
        assert "raise their max_file_store" in forwarder.log.read_text()
    finally:
        if forwarder is not None and forwarder.process.poll() is None:
            forwarder.kill()
        server.stop()


def test_a_forwarder_without_a_share_holds_nothing_back_and_takes_over(
    config: SpoolConfig, upstream: CountingUpstream, load: Load, forward: Callable[..., ProxyProcess]
) -> None:
    """One request at a time is the operator's word: then one of them works, and the other is there when it ends."""
    both = [forward(1), forward(1)]
    wait_for(lambda: read_report(config).forwarders == 2, "both")
    while both:
        load.add(12)
        wait_for(lambda: not spool.ledger_of(config).pending, "all to be delivered")
        assert both.pop().stop() == 0
    assert upstream.most == 1
    assert upstream.names == dict.fromkeys(load.names(), 1)
