"""Real forwarders on one real nats-server, started, stopped, killed and restarted under load; the upstream counts what it has."""

import asyncio
import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ProxyProcess, free_port, wait_for
from nats_server import NatsServer
from test_spool import hit

from proxy import spool
from proxy.admin.config import AdminConfig
from proxy.admin.metrics import look
from proxy.admin.report import Report, read_report
from proxy.admin.summary import read, render
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.port import SpoolConfig

CEILING = 6


class CountingUpstream:
    """Holds each request for a while, whatever becomes of who sent it, and remembers the most it had at once."""

    def __init__(self) -> None:
        self.hold_s = 0.03
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
        self._config, self._intake = config, JetStreamIntake(config)

    def add(self, n: int) -> None:
        self._intake.append_blocking(*(hit(f"n{self.sent + k}") for k in range(n)))
        self.sent += n

    def names(self) -> set[str]:
        return {f"n{k}" for k in range(self.sent)}

    def keep(self, least: int = 60) -> None:
        """So many wait, at the least."""
        if spool.ledger_of(self._config).pending < least:
            self.add(2 * least)


@pytest.fixture
def load(config: SpoolConfig) -> Iterator[Load]:
    started = Load(config)
    yield started
    started._intake.close()


@pytest.fixture
def forward(config: SpoolConfig, upstream: CountingUpstream, tmp_path: Path) -> Iterator[Callable[..., ProxyProcess]]:
    started: list[ProxyProcess] = []

    def start() -> ProxyProcess:
        settings: dict[str, Any] = {"SPOOL": config.url, "concurrency": str(CEILING), "attempt_timeout": "1"}
        started.append(ProxyProcess(tmp_path / "spool", upstream.url, "forward", **settings))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


def shared_by(config: SpoolConfig, load: Load, n: int) -> Report | None:
    """The report, once so many share, with work for each of them."""
    load.keep()
    told = spool.forwarder_states(config)
    report = read_report(config)
    of = next(iter(report.upstreams.values()), None)
    busy = sum(b'"in_flight":0' not in one.state for one in told)
    return report if report.forwarders == n and of is not None and of.limit == CEILING and busy == n else None


def test_a_rolling_restart_loses_nothing_and_repeats_nothing(
    config: SpoolConfig, upstream: CountingUpstream, load: Load, forward: Callable[..., ProxyProcess]
) -> None:
    """Forwarders come and go; the total in flight never passes the ceiling, each has work, and figures only grow."""
    attempts = [0.0]

    def settled(n: int) -> Report:
        report: Report = wait_for(lambda: shared_by(config, load, n), f"{n} forwarders to share")
        attempts.append(sum(sum(of.stats.answers.values()) for of in report.upstreams.values()))
        return report

    load.keep()
    at_work = [forward() for _ in range(2)]
    settled(2)
    for _ in range(2):
        at_work.append(forward())
        settled(3)
        assert at_work.pop(0).stop() == 0
        settled(2)
    told = read(config)
    assert told["forwarders"] == 2
    assert "forwarders            2   at work" in render(told)
    wait_for(lambda: not spool.ledger_of(config).pending, "the rest")
    for process in at_work:
        assert process.stop() == 0
        assert "error" not in process.log.read_text()
    assert upstream.most == CEILING
    assert upstream.names == dict.fromkeys(load.names(), 1)
    seen = look(AdminConfig(config)).seen
    assert seen is not None
    of = seen.told.upstreams[upstream.url]
    assert of.stats.answers == {"200": load.sent}
    assert attempts == sorted(attempts)
    told = read(config)
    assert (told["forwarders"], told["upstreams"][upstream.url]["state"]) == (0, "no forwarder")
    assert "forwarders         none" in render(told)


def test_a_forwarder_that_is_killed_leaves_its_share_when_nothing_of_it_can_be_under_way(
    config: SpoolConfig, upstream: CountingUpstream, load: Load, forward: Callable[..., ProxyProcess]
) -> None:
    """The upstream may not notice that it is gone."""
    upstream.hold_s = 0.9
    load.keep(20)
    one, two = forward(), forward()
    wait_for(lambda: shared_by(config, load, 2), "two to share")
    two.kill()
    wait_for(
        lambda: (report := read_report(config)).forwarders == 1 and report.upstreams[upstream.url].limit == CEILING, "the rest"
    )
    wait_for(lambda: upstream.now == CEILING, "it to be used")
    assert upstream.most == CEILING
    upstream.hold_s = 0.01
    wait_for(lambda: spool.ledger_of(config).pending <= 4 * CEILING, "all but those of the killed one")
    assert one.stop() == 0
