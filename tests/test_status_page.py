"""The status page, in a real browser on a real `serve`: what an operator sees, what stays hidden, and who is refused."""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from browsers import bare_chromium
from conftest import API_KEY, DEADLINE_S, ProxyProcess, SandboxProcess, free_port, wait_for
from hypothesis import given
from hypothesis import strategies as st
from nats_server import NatsServer
from playwright.sync_api import Browser, BrowserContext, Page, expect

from proxy.admin.page import FILES
from proxy.admin.page import look as looks
from proxy.admin.page.guard import foreign, strange_host
from proxy.admin.page.look import Look
from proxy.admin.page.words import away
from proxy.histogram import SECONDS, Histogram
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.port import Ledger, SpoolConfig, SpoolError
from tests.chaos.laboratory import Upstream

Serve = Callable[..., ProxyProcess]
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
expect.set_options(timeout=DEADLINE_S * 1000)
BROWSER = {"accept": "text/html,*/*;q=0.8"}


class Watched:
    """A page, and everything that must not happen on it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{url}/")
        expect(self.page.locator("#pulse")).to_have_text("live")

    def shows(self, selector: str, text: str) -> None:
        expect(self.page.locator(selector)).to_contain_text(text, use_inner_text=True)

    def is_clean(self) -> None:
        """No word on the console (a violation of the policy would be one), nothing asked of anybody else, no key."""
        assert self.complaints == []
        assert {url for url in self.asked if not url.startswith(f"{self.url}/")} == set()
        assert API_KEY not in self.page.content()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Each test has a context, which is a profile of its own."""
    with bare_chromium() as started:
        yield started


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def admin(serve: Serve) -> Callable[..., tuple[ProxyProcess, str]]:
    """Starts `serve`; the proxy, and its admin listener's address."""

    def start(**settings: Any) -> tuple[ProxyProcess, str]:
        port = free_port()
        proxy = serve(admin_port=str(port), **settings)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ready(url), "readiness")
        return proxy, url

    return start


Admin = Callable[..., tuple[ProxyProcess, str]]


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def faulty() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


def send(proxy: ProxyProcess, kind: str = "e", **parameters: str) -> None:
    assert httpx.get(f"{proxy.url}/{kind}?{urlencode(parameters)}").status_code == 200


def number(page: Page, name: str) -> int:
    return int(page.locator(f"#ledger dd[data-n={name}]").inner_text().replace(",", ""))


def test_the_page_shows_what_the_status_command_prints(admin: Admin, context: BrowserContext) -> None:
    """One truth: the same ledger, for eyes and for scripts; and the glance says that the promise is kept."""
    proxy, url = admin()
    for n in range(12):
        send(proxy, _n=f"Event {n}", _p="me")
    send(proxy, _p="me")
    send(proxy, _p="me")
    wait_for(lambda: proxy.status()["delivered"] == 12, "delivery")
    watched = Watched(context, url)
    watched.shows("#ledger", "14")
    told = proxy.status_command()
    for name in ("received", "delivered", "dead", "pending"):
        assert number(watched.page, name) == told[name], name
    assert number(watched.page, "dropped") == sum(told["dropped"].values()) == 2
    watched.shows("#headline", "Every beacon is kept and delivered")
    watched.shows("#balance", "Balanced: the beacons on disk were counted, and agree.")
    watched.shows("#outcomes", "no_name")
    watched.shows("#upstreams", "takes beacons")
    watched.shows("#commit-p99", "ms")
    assert watched.page.title() == "ready – beacon-proxy"
    for path in ("/", "/status.json"):
        assert httpx.get(f"{url}{path}").json().keys() == told.keys()
    watched.is_clean()


def test_the_page_says_how_many_forwarders_there_are_if_not_one(
    admin: Admin, context: BrowserContext, nats_server: NatsServer
) -> None:
    """On however many machines; the usual one is not worth a word."""
    config = nats_server.spool("page")
    _, url = admin(SPOOL=config.url)
    watched = Watched(context, url)
    watched.shows("#upstreams", "takes beacons")
    expect(watched.page.locator("#forwarders")).to_be_empty()
    other = JetStreamOutlet(config)
    other.publish(b'{"upstreams":{}}')
    watched.shows("#forwarders", "2 forwarders at work")
    other.close()
    watched.is_clean()


def test_servers_that_are_away_are_said_in_amber_while_this_host_takes_beacons(
    admin: Admin, context: BrowserContext, tmp_path: Path
) -> None:
    """As /readyz has it: nothing is lost. Old figures do not go on saying that they balance. Without a fallback it is red."""
    server = NatsServer(tmp_path / "nats")
    try:
        proxy, url = admin(SPOOL=server.spool("away").url)
        send(proxy, _n="First", _p="me")
        wait_for(lambda: proxy.status()["delivered"] == 1, "delivery")
        watched = Watched(context, url)
        watched.shows("#balance", "Balanced")
        server.kill()
        wait_for(lambda: send(proxy, _n="Waits", _p="me") or "1 beacon" in httpx.get(f"{url}/readyz").text, "the fallback")
        watched.shows("#headline", "The spool's servers cannot be read")
        watched.shows("#detail", "Beacons are taken meanwhile. Spool: 127.0.0.1")
        watched.shows("#ready", "ready")
        watched.shows("#balance", "old.")
        assert watched.page.locator("#verdict").get_attribute("data-level") == "warn"
        assert watched.page.title() == "look – beacon-proxy"
        server.start()
        watched.shows("#headline", "Every beacon is kept and delivered")
        watched.shows("#balance", "Balanced")
        watched.is_clean()
    finally:
        server.kill()
    assert away("spool: gone", "spool: gone")["verdict"].level == "bad"


def test_charts_move_while_beacons_come(admin: Admin, context: BrowserContext) -> None:
    """The rates are those of the ledger, second by second; a page that opens later has the last minutes at once."""
    proxy, url = admin()
    watched = Watched(context, url)
    for n in range(50):
        send(proxy, _n=f"Event {n}", _p="me")
    expect(watched.page.locator(".chart.received .line")).to_have_attribute("d", re.compile(r"M.*L.*L"))
    wait_for(lambda: (samples := _samples(url))[-1][1] - samples[0][1] == 50 and len(samples) >= 3, "samples")
    watched.page.locator(".chart.received svg").hover()
    expect(watched.page.locator(".chart.received .scale")).to_have_text(re.compile(r"^now$|^\d+ s before$"))
    watched.is_clean()


def _samples(url: str) -> list[list[int]]:
    found: list[list[int]] = httpx.get(f"{url}/page/live.json").json()["history"]["samples"]
    return found


def test_an_upstream_that_is_away_is_said_with_the_reason_and_since_when(admin: Admin, context: BrowserContext) -> None:
    """Beacons wait safely; the page says so in amber, not red, and says when it is over."""
    sandbox = SandboxProcess()
    proxy, url = admin(upstream=sandbox.url, concurrency="16")
    send(proxy, _n="First", _p="me")
    wait_for(lambda: proxy.status()["delivered"] == 1, "delivery")
    watched = Watched(context, url)
    watched.shows("#headline", "Every beacon is kept and delivered")
    sandbox.stop()
    for n in range(20):
        send(proxy, _n=f"Waits {n}", _p="me")
    watched.shows("#headline", "The upstream takes nothing")
    watched.shows("#detail", "20 beacons wait safely on disk")
    watched.shows("#upstreams .pill", "takes nothing")
    watched.shows("#upstreams .pill", " for ")
    watched.shows("#upstreams", "reason: ")
    assert watched.page.locator("#verdict").get_attribute("data-level") == "warn"
    sandbox = SandboxProcess(sandbox.port)
    watched.shows("#headline", "Every beacon is kept and delivered")
    watched.shows("#upstreams .pill", "takes beacons")
    sandbox.stop()
    watched.is_clean()


def test_a_spool_that_takes_nothing_is_red_with_the_reason(admin: Admin, context: BrowserContext, faulty: Upstream) -> None:
    """As /readyz says."""
    faulty.ask("fault closed")
    proxy, url = admin(max_bytes="1MiB", concurrency="1", upstream=faulty.url)
    while httpx.post(f"{proxy.url}/e?_n=n&_p=p", content=b"v=" + b"x" * 60_000).status_code == 200:
        pass
    watched = Watched(context, url)
    watched.shows("#headline", "Not taking beacons")
    watched.shows("#detail", "The spool is full")
    assert watched.page.locator("#verdict").get_attribute("data-level") == "bad"
    watched.is_clean()


def test_hostile_names_are_inert(admin: Admin, context: BrowserContext) -> None:
    """Names are a stranger's text: shown as text, in a direction of their own, however long, on a phone as well."""
    context.set_default_timeout(10_000)
    proxy, url = admin()
    names = [HOSTILE, "شراء \u202egnp.exe\u202c", "W" * 255, "a\x00b\x1b[31m\u2028c"]
    for name in names:
        send(proxy, _n=name, _p=name, **{name.replace("=", ""): name})
    wait_for(lambda: proxy.status()["delivered"] == len(names), "delivery")
    watched = Watched(context, url)
    watched.page.set_viewport_size({"width": 375, "height": 812})
    watched.shows("#beacons", HOSTILE)
    watched.page.click("#values")
    watched.shows("#beacons .value >> nth=0", "b")
    text = watched.page.locator("#beacons").inner_text()
    assert "W" * 255 in text
    assert "شراء" in text
    assert not set("\u202e\x00\x1b") & set(text)
    assert watched.page.locator("main script, main img[src=x]").count() == 0
    assert watched.page.title() != "owned"
    assert _overflow(watched.page) <= 0
    watched.is_clean()


def test_values_and_persons_are_masked_until_asked_for(admin: Admin, context: BrowserContext) -> None:
    """What the page does not need never leaves the server; an alias' name is a person too."""
    proxy, url = admin()
    send(proxy, _n="Purchased", _p="visitor@example.com", Product="Teapot")
    send(proxy, "a", _n="known@example.com", _p="anonymous-7")
    wait_for(lambda: proxy.status()["delivered"] == 2, "delivery")
    bodies: list[str] = []
    watched = Watched(context, url)
    watched.page.on("response", lambda answer: bodies.append(answer.text()) if "live.json" in answer.url else None)
    watched.shows("#beacons", "Purchased")
    watched.shows("#beacons", "Product")
    wait_for(lambda: watched.page.wait_for_timeout(50) or bodies, "an answer")
    secrets = ("visitor@example.com", "known@example.com", "anonymous-7", "Teapot")
    assert not [secret for secret in secrets for body in bodies if secret in body]
    watched.page.click("#values")
    for secret in secrets:
        watched.shows("#beacons", secret)
    watched.page.click("#values")
    expect(watched.page.locator("#beacons")).not_to_contain_text("Teapot")
    watched.page.reload()
    watched.shows("#beacons", "Purchased")
    assert not [secret for secret in secrets if secret in watched.page.content()]
    watched.is_clean()


def test_replay_asks_first_and_then_dead_letters_are_delivered(admin: Admin, context: BrowserContext, faulty: Upstream) -> None:
    """The mistake is mended, one click and a yes: all go out, each once."""
    faulty.ask("fault 404")
    proxy, url = admin(upstream=faulty.url)
    for n in range(3):
        send(proxy, _n=f"lost {n}", _p="me")
    wait_for(lambda: proxy.status()["dead"] == 3, "dead letters")
    watched = Watched(context, url)
    watched.shows("#headline", "3 dead letters")
    watched.shows("#reasons", "rejected")
    watched.shows("#letters", "lost 1")
    watched.shows("#letters", "404")
    faulty.ask("fault ok")

    watched.page.click("#replay-all")
    watched.shows("#confirm", "Replay 3 dead letters?")
    watched.page.keyboard.press("Escape")
    expect(watched.page.locator("#confirm")).not_to_be_visible()
    assert proxy.status()["dead"] == 3

    watched.page.get_by_role("button", name="Replay rejected …").focus()
    watched.page.keyboard.press("Enter")
    watched.shows("#confirm", "Replay 3 dead letters (rejected)?")
    watched.page.click("#go")
    watched.shows("#replayed", "3 dead letters are pending again.")
    wait_for(lambda: proxy.status()["delivered"] == 3, "delivery")
    watched.shows("#dead-none", "None.")
    watched.shows("#headline", "Every beacon is kept and delivered")
    assert faulty.ask("report")["copies"] == 0
    watched.is_clean()


def test_only_the_page_itself_may_replay(admin: Admin, faulty: Upstream) -> None:
    """Other sites' forms and scripts, and a name that was rebound to this machine, are refused, and change nothing."""
    faulty.ask("fault 404")
    proxy, url = admin(upstream=faulty.url)
    send(proxy, _n="lost", _p="me")
    wait_for(lambda: proxy.status()["dead"] == 1, "the dead letter")
    ours = {"x-beacon-proxy-page": "1"}
    for headers in (
        {},
        {"content-type": "application/x-www-form-urlencoded"},
        {"origin": url},
        {**ours, "origin": "https://evil.example"},
        {**ours, "origin": "null"},
        {**ours, "sec-fetch-site": "cross-site"},
        {**ours, "sec-fetch-site": "same-site"},
        {**ours, "host": "evil.example"},
        {**ours, "host": ""},
    ):
        assert httpx.post(f"{url}/page/replay", headers=headers).status_code == 403, headers
    assert httpx.get(f"{url}/page/replay", headers=ours).status_code in (404, 405)
    assert (
        httpx.options(f"{url}/page/replay", headers={"origin": "https://evil.example"}).headers.get("access-control-allow-origin")
        is None
    )
    assert httpx.get(f"{url}/page/live.json", headers={"host": "evil.example"}).status_code == 403
    assert httpx.post(f"{url}/page/replay?reason=delivered", headers=ours).status_code == 400
    assert proxy.status()["dead"] == 1
    assert httpx.post(f"{url}/page/replay", headers={**ours, "origin": url}).json() == {"replayed": 1}


def test_it_fits_a_phone_and_follows_the_colour_scheme(admin: Admin, chromium: Browser, faulty: Upstream) -> None:
    """375 pixels without scrolling sideways, with something in every part; dark where the system is dark."""
    faulty.ask("fault 404")
    proxy, url = admin(upstream=faulty.url)
    send(proxy, _n="Viewed Product", _p="me", Product="Teapot", **{"A property with a rather long name": "x"})
    wait_for(lambda: proxy.status()["dead"] == 1, "the dead letter")
    colours = {}
    for scheme in ("light", "dark"):
        context = chromium.new_context(viewport={"width": 375, "height": 812}, color_scheme=scheme, is_mobile=True)
        watched = Watched(context, url)
        watched.shows("#letters", "Viewed Product")
        assert _overflow(watched.page) <= 0
        colours[scheme] = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        watched.is_clean()
        context.close()
    assert colours["light"] != colours["dark"]


def _overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_a_proxy_that_is_gone_is_said(admin: Admin, context: BrowserContext) -> None:
    """A page that went on showing green would be worse than none."""
    proxy, url = admin()
    watched = Watched(context, url)
    proxy.kill()
    watched.shows("#headline", "The admin listener does not answer")
    assert watched.page.locator("#verdict").get_attribute("data-level") == "bad"


def test_a_browser_gets_the_page_and_its_headers_forbid_all_else(admin: Admin) -> None:
    """Nothing inline, nothing from elsewhere, in nobody's frame, in no cache; types as they are."""
    _, url = admin()
    page = httpx.get(f"{url}/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "html": "text/html"}
    answers = [page, *(httpx.get(f"{url}/page/{name}") for name in FILES), httpx.get(f"{url}/page/live.json")]
    for answer in answers[1:-1]:
        assert answer.headers["content-type"].split(";")[0] == types[answer.url.path.rpartition(".")[2]]
    for answer in answers:
        assert answer.status_code == 200
        assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert API_KEY not in answer.text
    assert "style=" not in page.text
    assert " on" not in "".join(line for line in page.text.splitlines() if "<button" in line)
    assert httpx.get(f"{url}/page/nothing.js").status_code == 404
    assert httpx.get(f"{url}/page/..%2f__init__.py").status_code == 404


def test_ten_pages_cost_the_spool_as_much_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are answered from the last reading, whatever the traffic and however many ask."""
    read: Counter[str] = Counter()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            read[call.__name__] += 1
            return call(*arguments)

        return counting

    for name in ("ledger_of", "unready", "intake_stats", "spool_bytes", "ledger_off", "read_report"):
        monkeypatch.setattr(looks, name, counted(getattr(looks, name)))

    async def ten_pages() -> None:
        look = Look(SpoolConfig(f"sqlite:{tmp_path}"))
        async with look.kept():
            for _ in range(20):
                assert None not in await asyncio.gather(*(look.latest() for _ in range(10)))

    with ThreadPoolExecutor() as elsewhere:  # this thread's event loop may be playwright's
        elsewhere.submit(asyncio.run, ten_pages()).result()
    assert read["ledger_of"] <= 3
    assert all(n <= 3 for n in read.values()), read


def test_history_gives_each_page_what_it_has_not_seen() -> None:
    """A page that asks each second gets a sample each second, not five minutes; one that is ahead (of a restart) gets all."""
    look = Look(SpoolConfig("memory:history"))
    for n in range(400):
        look._samples.append(looks.Sample(n, n, n, 0, 0))
        look._numbered += 1
    for after, n in ((-1, 300), (0, 300), (99, 300), (100, 300), (101, 299), (399, 1), (400, 0), (5000, 300)):
        found = look.history(after)
        assert (found["last"], len(found["samples"])) == (400, n), after  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host", ["localhost:8001", "127.0.0.1", "[::1]:8001", "10.0.0.7:80", "proxy", "a.internal", "a.b.local:1"]
)
def test_private_names_are_let_in(host: str) -> None:
    """Names that nobody can register lead only where the operator wants."""
    assert strange_host(host) == ""


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "[", "x.localhost.com"]
)
def test_names_that_somebody_may_own_are_not(host: str) -> None:
    """DNS rebinding needs a name of the attacker's."""
    assert "Host: found" in strange_host(host)


@given(st.text(max_size=300))
def test_whatever_stands_in_the_headers_nothing_fails(text: str) -> None:
    """Headers are input."""
    assert isinstance(strange_host(text), str)
    assert foreign({"x-beacon-proxy-page": "1", "origin": text, "host": "localhost"}) or text == ""


@given(st.lists(st.floats(0, 20), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """Buckets tell no more than that, and must tell no less."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    true = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    bounds = [0.0, *SECONDS, float("inf")]
    low, high = next((low, high) for low, high in pairwise(bounds) if low <= true <= high)
    found = histogram.quantile(share)
    assert found is not None
    assert low <= found + 1e-9
    assert found <= min(high, SECONDS[-1]) + 1e-9
    assert sum(histogram.since(Histogram(SECONDS)).counts) == len(values)
    assert sum(histogram.since(histogram).counts) == 0
    assert histogram.since(Histogram((1.0,))) is histogram


def test_a_histogram_of_nothing_has_no_quantile() -> None:
    """A dash on the page, not a zero."""
    assert Histogram(SECONDS).quantile(0.5) is None


def test_that_beacons_are_taken_is_not_said_before_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool failed while no page was open, and now it hangs: they may be refused."""
    monkeypatch.setattr(looks, "PATIENCE_S", 0.2)
    hangs, wakes = threading.Event(), threading.Event()

    def ledger_of(config: SpoolConfig) -> Ledger:
        if hangs.is_set():
            wakes.wait(20)
        raise SpoolError("spool: gone")

    monkeypatch.setattr(looks, "ledger_of", ledger_of)
    monkeypatch.setattr(looks, "unready", lambda config: "")

    async def opened() -> tuple[Look, dict[str, Any]]:
        look = Look(SpoolConfig("nats://127.0.0.1:1?stream=x"))
        async with look.kept():
            await asyncio.to_thread(wait_for, lambda: look.failure, "a reading that fails")
            hangs.set()
            await look.latest()
            before = away(look.failure, look.unready)
            wakes.set()
            await asyncio.to_thread(wait_for, lambda: look.unready == "", "it to be asked")
        return look, before

    with ThreadPoolExecutor() as elsewhere:
        look, before = elsewhere.submit(asyncio.run, opened()).result()
    assert (before["verdict"].detail, before["unready"]) == ("Spool: gone.", None)
    now = away(look.failure, look.unready)
    assert (now["verdict"].detail, now["unready"]) == ("Beacons are taken meanwhile. Spool: gone.", "")
