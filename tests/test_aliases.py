"""Other names: of paths, calls, parameters. What a page says in them is the same beacon."""

import base64
from collections.abc import Callable
from urllib.parse import quote

import httpx
from conftest import ProxyProcess, SandboxProcess, wait_for
from hypothesis import example, given
from hypothesis import strategies as st
from in_thread import InThread

from proxy.beacon import Beacon, parse
from proxy.collector.aliases import Aliases
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.port import SpoolConfig

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]
ALIASES = {"_p": ("u", "user"), "_n": ("v",), "_t": ("w",), "_d": ("x",), "Product": ("q1",), "*": ("zq", "~")}


def coded(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def beacon(query: str, body: str = "", **config: object) -> Beacon:
    rule = Collector(CollectorConfig(SpoolConfig("memory:"), **{"parameters": ALIASES, **config}))  # type: ignore[arg-type]
    hit = rule.collect("e", query.encode(), body.encode(), {b"host": b"shop.example"}, "127.0.0.1", 1_700_000_000_000).found
    assert isinstance(hit, Hit)
    found = parse(hit)
    assert isinstance(found, Beacon)
    return found


def test_a_parameter_by_another_name_is_the_same() -> None:
    """In the query, in a form, escaped, and beside the API's own names."""
    plain = Beacon("e", "me", "Viewed", 1_600_000_000, {"Product": "Teapot", "Größe": "3"}, False)
    assert beacon(f"u=me&v=Viewed&w=1600000000&x=1&q1=Teapot&zq{coded('Größe')}=3") == plain
    assert beacon("v=Viewed&q1=Teapot", f"user=me&w=1600000000&x=1&~{coded('Größe')}=3") == plain
    assert beacon("%75=me&_n=Viewed&Product=Teapot&_t=1600000000&x=1&Gr%C3%B6%C3%9Fe=3") == plain


def test_the_person_is_found_behind_the_alias() -> None:
    """A beacon that names its person must not get a cookie's."""
    rule = Collector(CollectorConfig(SpoolConfig("memory:"), parameters=ALIASES))
    found = rule.collect("e", b"u=me&v=Viewed", b"", {b"host": b"shop.example", b"cookie": b"km_ai=other"}, "", 5)
    assert isinstance(found.found, Hit)
    assert (found.found.identity, found.cookie) == ("", b"")


def test_what_is_never_stored_is_not_stored_under_another_name_either() -> None:
    """Redaction goes by the property's own name."""
    assert beacon(f"u=me&v=Viewed&q1=x&zq{coded('secret word')}=y", redact=("product", "*secret*")).properties == {}


def test_no_name_lends_the_key() -> None:
    """Whatever is coded comes out as what a client could have sent plainly, and that never speaks in the proxy's name."""
    found = beacon(f"u=me&v=Viewed&zq{coded('_k')}=EVIL&zq{coded('_K')}=EVIL&zq{coded('_k[]')}=EVIL")
    assert found.properties == {}


def test_what_is_no_code_stays_as_it_is() -> None:
    """A property of the page's own that happens to begin like the mark."""
    found = beacon("u=me&v=Viewed&zq=1&zqx!=2&zq%FF=3&zqUTF=4&zq_w=5").properties
    assert found.keys() == {"zq", "zqx!", "zq\ufffd", "zqUTF", "zq_w"}, "neither another spelling of a code nor what is no text"


def test_what_grows_beyond_the_limit_is_dropped() -> None:
    """A short alias may stand for a long name a thousand times over."""
    rule = Collector(CollectorConfig(SpoolConfig("memory:"), parameters={"é" * 100: ("q",)}))
    found = rule.collect("e", b"&".join([b"q=1"] * 900), b"", {b"host": b"shop.example"}, "", 5)
    assert found.found is Outcome.TOO_LARGE


@given(st.text(min_size=1, max_size=40), st.text(max_size=20))
@example("_p", "x")
@example("a&b=c", "x")
@example("u", "x")
def test_any_name_comes_back(name: str, value: str) -> None:
    """As if it had been sent plainly, where names have no aliases: one that is coded is none of them."""
    said = quote(value, safe="")
    plain = beacon(f"_p=me&_n=V&{quote(name, safe='')}={said}", parameters={})
    assert beacon(f"u=me&v=V&zq{coded(name)}={said}") == plain


@given(st.binary(max_size=200))
def test_no_query_can_break_it(raw: bytes) -> None:
    """And without aliases not a byte changes."""
    assert Aliases({}).query(raw) == raw
    found = Aliases(ALIASES).query(raw)
    assert found.count(b"&") == raw.count(b"&")
    assert Aliases(ALIASES).query(found).count(b"&") == raw.count(b"&")


def test_old_and_new_paths_are_live_together(inside: Inside, sandbox: SandboxProcess) -> None:
    """Pages are cached; a prefix can be changed without losing one of them."""
    names = {"endpoints__e": "lark,wren", "endpoints__b": "fern", "parameters___p": "u", "parameters___n": "v"}
    proxy = inside(prefix="/new/path,/old", script="willow,old", **names)
    with httpx.Client(base_url=proxy.url) as client:
        for n, path in enumerate(["/new/path/lark", "/new/path/e", "/old/wren", "/old/e"]):
            assert client.get(f"{path}?v=Seen&u=me&n={n}").status_code == 200
        assert client.post("/old/fern", content="e?_n=Seen&_p=me&n=4&v=0").status_code == 200
        assert {client.get(path).status_code for path in ("/lark", "/new/lark", "/new/path/moss", "/willow.js")} == {404}
        script = client.get("/old/willow.js")
        assert script.content == client.get("/new/path/old.js").content
        assert (script.headers["cache-control"], script.headers["content-encoding"]) == ("public, max-age=3600", "gzip")
        unchanged = client.get("/old/willow.js", headers={"if-none-match": f'"x", {script.headers["etag"]}'})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert client.head("/old/willow.js").headers["etag"] == script.headers["etag"]
        assert client.put("/old/willow.js").status_code == 405
        assert b'"b":"fern"' in script.content
        assert script.headers["vary"] == "Accept-Encoding"
        plain = client.get("/old/willow.js", headers={"accept-encoding": "gzip;q=0, br"})
        assert ("content-encoding" not in plain.headers, plain.content) == (True, script.content)
    found = {beacon["params"]["n"]: beacon["params"] for beacon in sandbox.wait(5)}
    assert {(params["_p"], params["_n"]) for params in found.values()} == {("me", "Seen")}
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    wait_for(lambda: proxy.status()["delivered"] == 5, "the ledger")
