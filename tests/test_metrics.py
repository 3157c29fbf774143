"""`/metrics` as Prometheus sees it: real processes, scraped over HTTP, read by Prometheus' own parser."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, children, free_port, wait_for
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from test_spool import hit

from proxy.admin.app import make_app
from proxy.admin.config import AdminConfig
from proxy.admin.metrics import exposition, look, no_answer
from proxy.admin.page.look import Look
from proxy.histogram import SECONDS, SIZES, Histogram
from proxy.outcome import Ending, Outcome
from proxy.spool.jetstream.link import Link
from proxy.spool.port import SpoolConfig
from proxy.spool.sqlite.file import open_file
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.survey import audit, read_intake_stats

Serve = Callable[..., ProxyProcess]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
FAMILIES = {
    "ready": "gauge",
    "spool_readable": "gauge",
    "spool_max_bytes": "gauge",
    "fallback_pending": "gauge",
    "build_info": "gauge",  # the text format knows no "info"
    "received": "counter",
    "refused": "counter",
    "trimmed": "counter",
    "outcomes": "counter",
    "dead_letters": "gauge",
    "pending": "gauge",
    "oldest_pending_seconds": "gauge",
    "spool_bytes": "gauge",
    "lanes_set_aside": "gauge",
    "sites_silent": "gauge",
    "ledger_off": "gauge",
    "commit_seconds": "histogram",
    "commit_beacons": "histogram",
    "forwarder_running": "gauge",
    "forwarders": "gauge",
    "upstream_state": "gauge",
    "upstream_limit": "gauge",
    "upstream_in_flight": "gauge",
    "attempts": "counter",
    "attempt_seconds": "histogram",
    "delivery_seconds": "histogram",
}


class Scraper:
    """What Prometheus would do."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.text = ""
        self.families: dict[str, Metric] = {}
        """By name without the common beginning; {} while nobody answers."""

    def scrape(self) -> "Scraper":
        self.families = {}
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10)
            if answer.status_code == 200:
                self.text = answer.text
                found = text_string_to_metric_families(answer.text)
                self.families = {one.name.removeprefix("beacon_proxy_"): one for one in found}
        return self

    def samples(self) -> Samples:
        return {
            (sample.name.removeprefix("beacon_proxy_"), frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name that bear these labels; -1 if there is none."""
        found = [value for (of, those), value in self.samples().items() if of == name and labels.items() <= dict(those).items()]
        return sum(found) if found else -1

    def counters(self) -> Samples:
        """All that may only grow."""
        return {key: n for key, n in self.samples().items() if re.search(r"_(total|count|sum|bucket)$", key[0])}


def send(proxy: ProxyProcess, *queries: str, **headers: str) -> None:
    with httpx.Client(base_url=proxy.url, headers=headers) as client:
        for query in queries:
            assert client.get(f"/e?{query}").status_code == 200


def check_histogram(family: Metric) -> None:
    """As Prometheus needs it: buckets that only grow, the last one is the count."""
    by_labels: dict[frozenset[tuple[str, str]], dict[str, list[float]]] = {}
    for sample in family.samples:
        labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
        by_labels.setdefault(labels, {}).setdefault(sample.name.rpartition("_")[2], []).append(sample.value)
    assert by_labels
    for parts in by_labels.values():
        assert parts["bucket"] == sorted(parts["bucket"])
        assert [parts["bucket"][-1]] == parts["count"]
        assert parts["sum"][0] >= 0


def test_every_family_is_there_and_right_after_known_traffic(serve: Serve, sandbox: SandboxProcess) -> None:
    """Right across collector processes, in a form that the real parser takes; nothing of a visitor in any of it."""
    scraper = Scraper(free_port())
    proxy = serve(admin_port=str(scraper.port), workers="2", identity="false", honour_gpc="true")
    send(proxy, *(f"_n=Viewed{n}&_p=visitor-17&Mail=ann@example.com" for n in range(20)))
    send(proxy, "_p=visitor-17", "_n=Nobody", "_p=visitor-17&_n=" + "long" * 100)
    send(proxy, "_n=Viewed&_p=visitor-17", **{"sec-gpc": "1", "referer": "https://shop.example/visited", "user-agent": "UA-77"})
    wait_for(lambda: scraper.scrape().value("received_total") == 24 and scraper.value("pending") == 0, "everything settled")
    wait_for(lambda: scraper.scrape().value("attempts_total") == 21, "the forwarder's report")
    wait_for(lambda: scraper.scrape().value("commit_beacons_sum") == 23, "the collectors' reports")
    found = scraper.families
    assert {name: family.type for name, family in found.items()} == FAMILIES
    assert all(family.documentation for family in found.values())

    value = scraper.value
    assert value("received_total", site="default") == 24
    assert value("outcomes_total", site="default", ending="delivered", outcome="delivered") == 21
    dropped = {str(outcome): value("outcomes_total", outcome=outcome) for outcome in Outcome if outcome.ending is Ending.DROPPED}
    assert {outcome: n for outcome, n in dropped.items() if n} == {"no_name": 1, "no_person": 1, "gpc": 1}
    assert value("trimmed_total") == 1
    assert (value("refused_total"), value("dead_letters"), value("ledger_off"), value("lanes_set_aside")) == (0, 0, 0, 0)
    assert (value("ready"), value("spool_readable"), value("forwarder_running"), value("oldest_pending_seconds")) == (1, 1, 1, 0)
    assert value("forwarders") == 1
    assert value("attempts_total", upstream=sandbox.url, answer="200") == 21
    assert value("upstream_state", upstream=sandbox.url, state="closed") == value("upstream_state", upstream=sandbox.url) == 1
    assert (value("upstream_in_flight"), value("spool_max_bytes")) == (0, 10 * 1024**3)
    assert value("upstream_limit") >= 8
    assert value("spool_bytes") > 0
    for name in ("commit_seconds", "commit_beacons", "attempt_seconds", "delivery_seconds"):
        check_histogram(found[name])
    assert value("commit_seconds_count") == value("commit_beacons_count")
    assert value("attempt_seconds_count") == value("delivery_seconds_count") == 21

    for secret in ("visitor", "Viewed", "ann@", "Mail", "example.com", "UA-77", "shop.example", API_KEY):
        assert secret not in scraper.text
    labels = {(name, value) for family in found.values() for sample in family.samples for name, value in sample.labels.items()}
    assert {name for name, _ in labels} == {"site", "ending", "outcome", "le", "upstream", "state", "answer", "version"}
    assert {value for name, value in labels if name == "site"} == {"default"}


def test_counters_are_there_before_there_is_anything_to_count(serve: Serve, tmp_path: Path) -> None:
    """Prometheus sees no increase in a counter whose first value is not 0: the first beacon refused would be missed."""
    scraper = Scraper(free_port())
    (tmp_path / "config.toml").write_text('[sites.shop]\nhosts = ["shop.example"]\n')
    serve(admin_port=str(scraper.port), config=str(tmp_path / "config.toml"))
    wait_for(lambda: scraper.scrape().value("ready") == 1, "readiness")
    for site in ("default", "shop"):
        assert scraper.value("received_total", site=site) == scraper.value("refused_total", site=site) == 0
        assert {scraper.value("dead_letters", site=site, outcome=o) for o in Outcome if o.ending is Ending.DEAD} == {0}
        assert {scraper.value("outcomes_total", site=site, outcome=o) for o in Outcome if o.ending is not Ending.DEAD} == {0}


def test_counters_never_go_back(serve: Serve, sandbox: SandboxProcess) -> None:
    """Not when a process is killed, not when all is stopped and started: a counter that falls is taken for a fresh start, and
    all it ever counted would be counted again."""
    scraper = Scraper(free_port())
    started = serve(admin_port=str(scraper.port), workers="2")
    before: Samples = {}
    sent = 0

    def goes_on() -> None:
        nonlocal before, sent
        sent += 15
        send(started, *(f"_n=n{sent}.{n}&_p=me" for n in range(15)))
        wait_for(lambda: scraper.scrape().value("outcomes_total", outcome="delivered") == sent, "delivery")
        wait_for(
            lambda: all(scraper.scrape().value(f"{name}_count") > 0 for name in ("commit_seconds", "attempt_seconds")), "reports"
        )
        now = scraper.counters()
        assert {key: (n, now.get(key)) for key, n in before.items() if now.get(key, -1) < n} == {}
        before = now

    goes_on()
    for pid in children(started.process.pid):
        if b"collector" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    goes_on()
    started.stop()
    started = serve(admin_port=str(scraper.port), workers="2", port=started.port)
    goes_on()
    started.kill()
    started = serve(admin_port=str(scraper.port), workers="1", port=started.port)
    goes_on()


def test_a_stop_leaves_every_commit_and_every_attempt_counted(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """The figures are written once a second, and once more at the end."""
    scraper = Scraper(free_port())
    for round in (1, 2):
        proxy = serve(admin_port=str(free_port()))
        send(proxy, *(f"_n={round}.{n}&_p=me" for n in range(7)))
        sandbox.wait(7 * round)
        assert proxy.stop() == 0
    reading = look(AdminConfig(SpoolConfig(f"sqlite:{tmp_path}/spool")))
    assert reading.seen is not None
    assert read_intake_stats(tmp_path / "spool").batch_hits.sum == 14
    stats = reading.seen.told.upstreams[sandbox.url].stats
    assert stats.answers == {"200": 14}
    assert stats.attempt_seconds is not None
    assert sum(stats.attempt_seconds.counts) == 14
    assert reading.seen.told.is_running() is False
    assert scraper.scrape().families == {}


def test_the_ledger_being_off_is_seen(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """A row that vanishes without being settled is the one thing that must never happen; somebody's sqlite3 can do it."""
    sandbox.stop()
    scraper = Scraper(free_port())
    proxy = serve(admin_port=str(scraper.port), concurrency="1")
    send(proxy, *(f"_n={n}&_p=me" for n in range(9)))
    wait_for(lambda: scraper.scrape().value("pending") == 9, "the pending ones")
    assert scraper.value("ledger_off") == 0
    with contextlib.closing(open_file(tmp_path / "spool" / "lane-0000.db")) as db:
        for table in ("fresh", "waiting"):
            db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id DESC LIMIT 3)")
        gone = 9 - sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("fresh", "waiting"))
    assert gone >= 3
    assert audit(tmp_path / "spool", 100) == -gone
    for pid in children(proxy.process.pid):  # it looks once a minute; a new one looks at once
        if b"admin" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: scraper.scrape().value("ledger_off") == -gone, "the alarm")


def test_a_full_spool_is_not_ready_and_what_is_refused_is_counted(serve: Serve) -> None:
    """The promise is at risk: this is what somebody is woken for."""
    scraper = Scraper(free_port())
    proxy = serve(admin_port=str(scraper.port), upstream="http://127.0.0.1:9", max_bytes="1MiB", concurrency="1")
    wait_for(lambda: scraper.scrape().value("ready") == 1, "readiness")
    refused = 0
    while refused < 3:
        refused += httpx.post(f"{proxy.url}/e?_n=n&_p=p", content=b"v=" + b"x" * 60_000).status_code == 503
    wait_for(lambda: scraper.scrape().value("ready") == 0 and scraper.value("refused_total") == 3, "the alarm")
    assert scraper.value("spool_bytes") >= scraper.value("spool_max_bytes")
    assert scraper.value("oldest_pending_seconds") > 0


def test_a_spool_that_cannot_be_read_is_told_of_and_its_counters_are_left_out(tmp_path: Path) -> None:
    """A scrape that fails would say "the proxy is down", a counter of 0 "it was restarted": both would be wrong."""
    lane = Lane(tmp_path)
    lane.append_blocking(hit("one"))
    lane.close()
    with contextlib.closing(open_file(lane.path)) as db:
        db.execute("PRAGMA user_version = 99")
    config = AdminConfig(SpoolConfig(f"sqlite:{tmp_path}"), ("default",))
    for reading in (look(config), no_answer(config)):
        text = exposition(reading).decode()
        assert "beacon_proxy_ready 0.0" in text
        assert "beacon_proxy_spool_readable 0.0" in text
        assert "received" not in text


def test_servers_that_say_nothing_are_not_called_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fallback, and so no disk in it."""
    monkeypatch.setattr("proxy.admin.app.PATIENCE_S", 0.1)
    monkeypatch.setattr(Link.wait_open, "__defaults__", (0.3,))

    async def ask(config: SpoolConfig) -> httpx.Response:
        app = make_app(AdminConfig(config), Look(config))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
            return await client.get("/readyz")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = asyncio.run(ask(SpoolConfig(f"nats://127.0.0.1:{silent.getsockname()[1]}")))
    assert answer.status_code == 503
    assert "disk" not in answer.text


def test_a_corrupt_lane_hides_no_other(tmp_path: Path) -> None:
    """One bad file must not blind the operator."""
    good, bad = Lane(tmp_path), Lane(tmp_path)
    good.append_blocking(hit("one"))
    bad.append_blocking(hit("two"))
    bad.close()
    bad.path.write_bytes(b"rotten" * 4096)
    text = exposition(look(AdminConfig(SpoolConfig(f"sqlite:{tmp_path}")))).decode()
    assert 'beacon_proxy_received_total{site="default"} 1.0' in text
    assert "beacon_proxy_lanes_set_aside 1.0" in text
    good.close()


def test_figures_go_with_the_lane_whoever_holds_it(tmp_path: Path) -> None:
    """A collector that takes over a lane counts on; one that loses its lane and takes another leaves the figures behind."""
    first, second = Lane(tmp_path), Lane(tmp_path)
    for n in range(3):
        first.append_blocking(hit(f"a{n}"))
    second.append_blocking(hit("b"))
    first.close()
    again = Lane(tmp_path)
    assert again.path == first.path
    again.append_blocking(hit("c"))
    again._close()  # as after trouble
    third = Lane(tmp_path)
    third.append_blocking(hit("d"))
    again._tried = -1e9
    again.append_blocking(hit("e"))
    assert third.path == first.path != again.path
    for lane in (second, third, again):
        lane.close()
    assert read_intake_stats(tmp_path).batch_hits.sum == 7


@given(st.lists(st.floats(0, 20, allow_nan=False)), st.lists(st.floats(0, 20, allow_nan=False)))
def test_a_histogram_counts_each_value_once_in_the_right_place_and_adds_up(some: list[float], more: list[float]) -> None:
    """Against the plain definition: the bucket "le" holds all that is at or below it."""
    one, two = Histogram(SECONDS), Histogram(SECONDS)
    for value in some:
        one.observe(value)
    for value in more:
        two.observe(value)
    read = msgspec.json.decode(msgspec.json.encode(two), type=Histogram)
    assert read == two
    one.add(read)
    values = some + more
    assert one.cumulative() == [
        *((str(bound), sum(value <= bound for value in values)) for bound in SECONDS),
        ("+Inf", len(values)),
    ]
    assert one.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("counts", [[1], [0] * 20, [-1] * 15, "x"])
def test_a_histogram_that_does_not_fit_is_not_read(counts: object) -> None:
    """What lies on the disk may be anything; /metrics must not fail for it."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"bounds": SECONDS, "counts": counts, "sum": 1.0}), type=Histogram)


def test_a_histogram_of_other_bounds_is_left_out() -> None:
    """Another version's buckets cannot be added; better a counter that starts anew than a wrong one."""
    one, other = Histogram(SECONDS), Histogram(SIZES)
    other.observe(3)
    one.add(other)
    assert one == Histogram(SECONDS)
