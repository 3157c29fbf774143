"""Several beacons in one request: each with its own outcome, and all of them, or none, answered for."""

import asyncio
import base64
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, wait_for
from hypothesis import given
from hypothesis import strategies as st
from in_thread import InThread
from test_wsgi import Gunicorn, forward, gunicorn  # noqa: F401 - fixtures

from proxy.beacon import parse
from proxy.cli.ingest import Ingestion, Place
from proxy.collector.asgi import CollectorApp
from proxy.collector.batch import MAX_BEACONS, Batch, collect_batch
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig, ConsentRules
from proxy.collector.wsgi import CollectorWsgi
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.settings import load
from proxy.spool.memory import MemorySpool
from proxy.spool.port import SpoolConfig, SpoolRefused

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]
SPOOL = SpoolConfig("memory:")


def batch(body: bytes, headers: dict[bytes, bytes] | None = None, **config: object) -> Batch:
    asked = {b"host": b"shop.example", b"referer": b"https://shop.example/here", **(headers or {})}
    query = bytes(config.pop("query", b""))  # type: ignore[call-overload]
    rule = Collector(CollectorConfig(SPOOL, trusted_proxies=("127.0.0.0/8",), **config))  # type: ignore[arg-type]
    return collect_batch(rule, query, body, asked, "127.0.0.1", 1_700_000_000_000)


def hits(found: Batch) -> list[Hit]:
    return [one.found for one in found.beacons if isinstance(one.found, Hit)]


def test_each_line_is_a_beacon_with_its_own_outcome() -> None:
    """One bad line must not cost the others."""
    found = batch(b"e?_n=One&_p=me\n/s?_p=me&Plan=Pro\r\n\n  a?_p=x&_n=y \nnonsense\nz?_p=me\ne\n")
    assert [hit.kind for hit in hits(found)] == ["e", "s", "a"]
    assert [one.found for one in found.beacons[3:]] == [Outcome.NO_BEACON] * 3
    assert hits(found)[0].query == b"_n=One&_p=me"


def test_a_lines_own_page_stands_for_the_referer() -> None:
    """A beacon that is sent again from the next page must be the same to the byte, enrichment included."""
    first, second = hits(batch(b"e?_n=a&_p=b https://shop.example/there?x=1\ne?_n=a&_p=b"))
    assert (first.referer, second.referer) == ("https://shop.example/there?x=1", "https://shop.example/here")


@pytest.mark.parametrize("page", [b"javascript:1", b"\x1b]0;x\x07", b"https://shop.example/\xc3\xa9", b"x", b"https://a b"])
def test_a_page_that_is_no_address_is_not_taken(page: bytes) -> None:
    """It is shown to people, and what a Referer cannot hold it must not hold."""
    (hit,) = hits(batch(b"e?_n=a&_p=b " + page))
    assert hit.referer == "https://shop.example/here"


def test_where_only_images_can_be_asked_for_the_lines_are_the_query() -> None:
    """In base64url, so that there is nothing in the address for a list to match."""
    line = "e?_n=Größe&_p=b https://shop.example/there"
    coded = base64.urlsafe_b64encode(line.encode()).rstrip(b"=")
    assert batch(b"", query=coded) == batch(line.encode())
    assert [one.found for one in batch(b"", query=coded + b"=").beacons] == [Outcome.NO_BEACON]
    assert [one.found for one in batch(b"", query=b"_n=a&_p=b").beacons] == [Outcome.NO_BEACON]


def test_a_page_in_a_line_opens_no_list_of_origins() -> None:
    """What decides is the request's own header."""
    from proxy.collector.config import SiteRules

    sites = {"default": SiteRules(origins=("shop.example",))}
    found = batch(b"e?_n=a&_p=b https://shop.example/", {b"origin": b"https://evil.example"}, sites=sites)
    assert [one.found for one in found.beacons] == [Outcome.ORIGIN_DENIED]


def test_in_a_line_parameters_have_their_own_names() -> None:
    """Nobody reads a body by a list, and a page may have a property that is called like an alias."""
    (hit,) = hits(batch(b"e?u=blue&_n=a&_p=me", parameters={"_p": ("u",)}))
    assert hit.query == b"u=blue&_n=a&_p=me"


def test_a_new_visitors_beacons_are_all_the_same_new_persons() -> None:
    """One request, one cookie, one person."""
    found = batch(b"e?_n=a\ns?Plan=Pro\ne?_n=b&_p=me")
    one, two, named = (hit.identity for hit in hits(found))
    assert one == two
    assert (len(one), named) == (24, "")
    assert [cookie.partition(b";")[0] for cookie in found.cookies] == [b"km_ai=" + one.encode()]


def test_copies_of_one_request_are_identical() -> None:
    """With a trusted proxy's stamp, identity and time come from it, for every line."""
    stamp = {b"x-beacon-stamp": b"1700000000.123 " + b"ab" * 16}
    once, again = (hits(batch(b"e?_n=a\ne?_n=b", stamp)) for _ in range(2))
    assert once == again
    assert {hit.received_ms for hit in once} == {1_700_000_000_123}


def test_a_known_visitors_cookie_is_set_again_so_that_it_lasts() -> None:
    """Some browsers forget in a week what a script has set, and keep what a server sets."""
    tail = b"; Max-Age=34560000; Path=/; SameSite=Lax"
    cookies = {b"cookie": b"km_ai=aGVsbG8%3D; km_ni=ada"}
    assert batch(b"e?_n=a&_p=ada", cookies).cookies == [b"km_ai=aGVsbG8%3D" + tail]
    both = {b"cookie": b"km_aa=x; km_ai=y"}
    assert batch(b"e?_n=a&_p=ada", both).cookies == [b"km_ai=y" + tail, b"km_aa=x" + tail], "or it would be aliased again"
    for odd in (b'km_ai="x', b"km_ai=x y", b'km_ai=x"', b"km_ai=x,y", b"km_ai=" + b"x" * 1025, b"km_ni=ada"):
        assert list(batch(b"e?_n=a&_p=ada", {b"cookie": odd}).cookies) == []
    assert list(batch(b"e?_n=a&_p=ada", cookies, identity=False).cookies) == []
    assert list(batch(b"nonsense", cookies).cookies) == [], "nothing of this visitor's was stored"


def test_who_objects_gets_no_cookie_and_leaves_nothing() -> None:
    """Every line is counted by the reason."""
    found = batch(b"e?_n=a\ne?_n=b", {b"sec-gpc": b"1", b"cookie": b"km_ai=x"}, consent=ConsentRules())
    assert ([one.found for one in found.beacons], list(found.cookies)) == ([Outcome.GPC] * 2, [])


def test_what_is_too_much_is_dropped_whole_and_counted_once() -> None:
    """A small request must not become a large one on the disk."""
    assert len(hits(batch(b"e?_n=a&_p=b\n" * MAX_BEACONS))) == MAX_BEACONS
    assert [one.found for one in batch(b"e?_n=a&_p=b\n" * (MAX_BEACONS + 1)).beacons] == [Outcome.TOO_MANY_BEACONS]
    assert [one.found for one in batch(b"e?" + b"x" * 61_440).beacons] == [Outcome.TOO_LARGE]
    assert {one.found for one in batch(b"e?_n=a\n" * 3, default_site=False).beacons} == {Outcome.UNKNOWN_HOST}
    assert batch(b"\n \n").beacons == []


@given(st.binary(max_size=400), st.booleans())
def test_no_body_can_break_it(body: bytes, as_query: bool) -> None:
    """Anyone can send anything."""
    found = batch(b"", query=body) if as_query else batch(body)
    assert len(found.beacons) <= MAX_BEACONS
    for hit in hits(found):
        parse(hit)


names = st.text(min_size=1, max_size=20).filter(lambda name: name.strip() and not name.startswith("_"))


@given(st.lists(st.dictionaries(names, st.text(max_size=30), max_size=4), min_size=1, max_size=5))
def test_a_line_is_read_like_the_same_beacon_alone(all_properties: list[dict[str, str]]) -> None:
    """Two ways for one beacon would be two beacons."""
    queries = [
        "&".join([*(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in p.items()), "_n=a&_p=b"]) for p in all_properties
    ]
    together = hits(batch("\n".join(f"e?{query}" for query in queries).encode()))
    rule = Collector(CollectorConfig(SPOOL))
    alone = [rule.collect("e", query.encode(), b"", {b"host": b"shop.example"}, "", 1_700_000_000_000).found for query in queries]
    assert [parse(hit) for hit in together] == [parse(hit) for hit in alone if isinstance(hit, Hit)]


def test_a_batch_arrives_at_the_vendor_beacon_by_beacon(inside: Inside, sandbox: SandboxProcess) -> None:
    """The vendor knows no batches. Each line is received, dropped or delivered for itself; the answer is the GIF."""
    proxy = inside(debug_token="t" * 20)
    body = "e?_n=One&_p=me\ns?_p=me&Plan=Pro\na?_p=me&_n=you\ne?_p=nameless\nnonsense"
    with httpx.Client(base_url=proxy.url) as client:
        answer = client.post("/b", content=body, headers={"x-beacon-debug": "t" * 20, "origin": "https://shop.example"})
        assert (answer.status_code, len(answer.content), answer.headers["access-control-allow-origin"]) == (200, 43, "*")
        told = [one.partition(";")[0] for one in answer.headers["x-beacon-outcome"].split(", ")]
        assert told == ["stored", "stored", "stored", "no_name", "no_beacon"]
        assert client.get("/b").status_code == 200
        coded = base64.urlsafe_b64encode(b"e?_n=Image&_p=me").decode().rstrip("=")
        assert client.get(f"/b?{coded}").status_code == 200
        assert client.options("/b").status_code == 204
        assert client.put("/b", content=b"e?_n=x&_p=y").status_code == 405
    beacons = sandbox.wait(4)
    assert sorted((b["kind"], b["params"]["_p"], b["params"]["_k"]) for b in beacons) == [
        (kind, "me", API_KEY) for kind in "aees"
    ]
    status = wait_for(lambda: (found := proxy.status())["pending"] == 0 and found["received"] == 6 and found, "the ledger")
    assert (status["delivered"], status["dropped"]) == (4, {"no_name": 1, "no_beacon": 1})


def test_a_batch_under_wsgi(gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess) -> None:  # noqa: F811
    """The threaded edge takes it as the other does."""
    url = gunicorn(script="willow").url
    answer = httpx.post(f"{url}/b", content="e?_n=One\ne?_n=Two\nnonsense")
    assert (answer.status_code, len(answer.content)) == (200, 43)
    assert {beacon["params"]["_p"] for beacon in sandbox.wait(2)} == {answer.cookies["km_ai"]}
    wait_for(lambda: forward.status()["dropped"] == {"no_beacon": 1}, "the drop")
    script = httpx.get(f"{url}/willow.js")
    assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert httpx.get(f"{url}/willow.js", headers={"if-none-match": script.headers["etag"]}).status_code == 304
    assert httpx.post(f"{url}/willow.js", content=b"").status_code == 405


class Refusing(MemorySpool):
    """A spool that takes one beacon and no more."""

    async def append(self, hit: Hit) -> None:
        self.append_blocking(hit)

    def append_blocking(self, *hits: Hit) -> None:
        room = 0 if self.ledger().total("received") else 1
        super().append_blocking(*hits[:room])
        if hits[room:]:
            refused = SpoolRefused("full")
            refused.hits = hits[room:]
            raise refused


@pytest.mark.parametrize("edge", ["asgi", "wsgi"])
@pytest.mark.parametrize(("lines", "status"), [(1, 200), (3, 503)])
def test_a_batch_of_which_one_beacon_is_not_stored_is_answered_503(edge: str, lines: int, status: int) -> None:
    """A 200 is a promise for all of them. The sender sends all again, and those that were stored are duplicates upstream. Until
    then the visitor is nobody: no cookie."""
    spool = Refusing()
    config = CollectorConfig(SPOOL)
    asked = {"content": "e?_n=a\n" * lines, "headers": {"origin": "https://shop.example"}}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(CollectorApp(config, spool))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            return await client.post("/b", **asked)

    if edge == "asgi":
        answer = asyncio.run(send())
    else:
        transport = httpx.WSGITransport(CollectorWsgi(config, lambda: spool))
        with httpx.Client(transport=transport, base_url="http://shop.example") as client:
            answer = client.post("/b", **asked)
    assert (answer.status_code, len(answer.content), "set-cookie" in answer.headers) == (status, 43, status == 200)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert (spool.ledger().total("received"), spool.ledger().total("refused")) == (1, lines - 1)


def test_a_batch_from_nginx_log_is_what_a_collector_would_have_stored() -> None:
    """The first collector may have stored it, too, before its answer got lost: the copies must be identical."""
    from test_ingest import THEN_MS, logged

    body = "e?_n=One https://shop.example/there\ne?_n=Two&_p=me\nnonsense"
    spool = MemorySpool()
    ingestion = Ingestion(load(environ={"BEACON_PROXY_SPOOL": "memory:"}), spool)
    assert ingestion.line(Place("log", 1), logged(method="POST", uri="/b", body=body, length=str(len(body))))
    assert ingestion.flush()
    ingestion.close()
    assert (ingestion.report.lines, ingestion.report.taken, ingestion.report.dropped) == (1, 2, {"no_beacon": 1})
    stamp = f"{THEN_MS // 1000}.{THEN_MS % 1000:03d} {1:032x}"
    said = {"host": "shop.example", "user-agent": "Test/1.0", "referer": "https://shop.example/page", "x-beacon-stamp": stamp}
    asked = {name.encode(): value.encode() for name, value in {**said, "x-forwarded-for": "192.0.2.7"}.items()}
    rule = Collector(load(environ={"BEACON_PROXY_SPOOL": "memory:"}).collector())
    there = collect_batch(rule, b"", body.encode(), asked, "127.0.0.1", THEN_MS + 50, True)
    assert [claim.hit for claim in spool.claim(10, 2_000_000_000_000)] == hits(there)
    assert len(hits(there)) == 2
