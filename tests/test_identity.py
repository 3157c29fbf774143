"""Who the visitor is: the page's word, the vendor library's cookies, or a new first-party cookie."""

import re
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, wait_for
from hypothesis import given
from hypothesis import strategies as st
from in_thread import InThread

from proxy.collector.collect import Collected, Collector
from proxy.collector.config import CollectorConfig, SiteRules
from proxy.collector.identity import from_cookies, says_person
from proxy.hit import Hit
from proxy.spool.port import SpoolConfig

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]


def collected(query: bytes = b"_n=Viewed", cookies: bytes = b"", kind: str = "e", **config: object) -> Collected:
    headers = {b"host": b"shop.example", **({b"cookie": cookies} if cookies else {})}
    proto = config.pop("proto", None)
    if proto:
        headers[b"x-forwarded-proto"] = str(proto).encode()
    peer = str(config.pop("peer", "127.0.0.1"))
    rule = Collector(CollectorConfig(SpoolConfig("memory:"), trusted_proxies=("127.0.0.0/8",), **config))  # type: ignore[arg-type]
    return rule.collect(kind, query, b"", headers, peer, 5)


def person(found: Collected) -> str:
    assert isinstance(found.found, Hit)
    return found.found.identity


def test_a_plain_image_works_and_the_same_person_comes_back(running: Serve, sandbox: SandboxProcess) -> None:
    """No script at all: the server sets the cookie, the browser brings it back."""
    proxy = running()
    with httpx.Client(base_url=proxy.url) as browser:
        first = browser.get("/e?_n=Viewed")
        assert "set-cookie" in first.headers
        assert "set-cookie" not in browser.get("/e?_n=Bought").headers
        assert "set-cookie" not in browser.get("/s?Plan=Pro").headers
    people = {beacon["params"]["_p"] for beacon in sandbox.wait(3)}
    assert people == {first.cookies["km_ai"]}
    assert "set-cookie" not in httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me").headers


def test_the_pages_word_comes_first_then_the_known_then_the_anonymous_identity() -> None:
    """The order of the vendor's own library; visitors known to it stay known."""
    both = b"other=1; km_ai=aGVsbG8%3D; km_ni=ada%40shop.example; km_lv=x"
    assert person(collected(b"_n=a&_p=me", both)) == ""
    assert person(collected(b"_n=a", both)) == "ada@shop.example"
    assert person(collected(b"_n=a", b"km_ai=aGVs%2BbG8%3D")) == "aGVs+bG8="
    assert person(collected(b"_n=a", b"km_ai=aGVs+bG8=")) == "aGVs+bG8="
    assert person(collected(b"_n=a&_p=", both)) == "ada@shop.example"
    assert person(collected(b"_n=other", b"km_ai=anonymous", kind="a")) == "anonymous"
    assert collected(b"_n=other", kind="a").cookie == b"", "an alias with nobody makes nobody new"


@pytest.mark.parametrize(
    "cookies", [b"km_ni=", b"km_ni=%20", b"km_ni=%ff%fe", b"km_ni=" + b"x" * 300, b"xkm_ni=a", b"km_ni=a%0ab", b"km_nix=a"]
)
def test_absurd_cookies_are_no_identity(cookies: bytes) -> None:
    """A new one is made."""
    found = collected(b"_n=a", cookies)
    assert len(person(found)) == 24
    assert found.cookie


@given(st.binary(max_size=200))
def test_no_cookie_header_can_break_it(cookies: bytes) -> None:
    """Whatever comes out can be a person."""
    identity = from_cookies(b"km_" + cookies)
    assert len(identity) <= 255
    assert identity == "" or identity.isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60))
def test_an_identity_survives_the_cookies_encoding(identity: str) -> None:
    """URL-encoded, as the vendor's library writes it."""
    if "\ufffd" not in identity and identity.isprintable():
        assert from_cookies(f"a=b; km_ni={quote(identity, safe='')}; c=d".encode()) == identity


@given(st.binary(max_size=60))
def test_a_person_is_recognised_where_the_parser_would_find_one(query: bytes) -> None:
    """However it is escaped."""
    assert says_person(query + b"&%5Fp=me", b"")
    assert says_person(b"x=y", b"a=b&_%70=me" + query)


def test_the_cookie_says_what_it_must() -> None:
    """A year and a bit, this site, everywhere on it, not to others; Secure where the visitor came by https."""
    cookie = collected().cookie.decode()
    assert re.fullmatch(r"km_ai=[\w-]{24}; Max-Age=34560000; Path=/; SameSite=Lax", cookie)
    assert collected(proto="https").cookie.endswith(b"; Secure")
    assert not collected(proto="http").cookie.endswith(b"; Secure")
    assert not collected(proto="https", peer="203.0.113.9").cookie.endswith(b"; Secure"), "a stranger's word"
    strict = collected(cookie_http_only=True, sites={"default": SiteRules(cookie_domain="shop.example")}).cookie
    assert b"; Domain=shop.example; HttpOnly" in strict


def test_two_strangers_are_two_people() -> None:
    """144 random bits."""
    assert len({person(collected()) for _ in range(100)}) == 100


def test_switched_off_nobody_is_made_up(inside: Inside) -> None:
    """Dropped and counted, and no cookie."""
    proxy = inside(identity="false")
    assert "set-cookie" not in httpx.get(f"{proxy.url}/e?_n=a", headers={"cookie": "km_ai=x"}).headers
    wait_for(lambda: proxy.status()["dropped"] == {"no_person": 1}, "the drop")
