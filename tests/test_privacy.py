"""What is refused or forgotten before anything is stored; requests in, the vendor's requests and the spool's bytes out."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, children, free_port, wait_for
from hypothesis import given
from hypothesis import strategies as st
from in_thread import InThread

from proxy.collector.address import TrustedProxies, forwarded_chain, truncated
from proxy.collector.limit import MAX_ADDRESSES, AddressLimit
from proxy.collector.origins import AllowedOrigins, origin_of
from proxy.collector.redact import Redaction, is_card, mask

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]


@pytest.mark.parametrize(
    ("settings", "headers", "reason"),
    [
        ({}, {"sec-gpc": "1"}, "gpc"),
        ({}, {"dnt": "1"}, None),
        ({"honour_gpc": "false"}, {"sec-gpc": "1"}, None),
        ({"honour_dnt": "true"}, {"dnt": "1"}, "dnt"),
        ({"opt_out_cookie": "no_tracking"}, {"cookie": "a=b; no_tracking=1"}, "opt_out"),
        ({"opt_out_cookie": "no_tracking"}, {"cookie": "no_tracking=0"}, None),
        ({"opt_out_cookie": "no_tracking"}, {"cookie": "no_tracking="}, "opt_out"),
        ({"opt_out_cookie": "no_tracking=1"}, {"cookie": 'no_tracking="1"'}, "opt_out"),
        ({"consent_cookie": "consent"}, {"cookie": "consent="}, "no_consent"),
        ({"consent_cookie": "consent=yes"}, {}, "no_consent"),
        ({"consent_cookie": "consent=yes"}, {"cookie": "consent=no"}, "no_consent"),
        ({"consent_cookie": "consent=yes"}, {"cookie": "x=1; consent=yes"}, None),
        ({"origins": "shop.example"}, {"referer": "https://evil.example/page"}, "origin_denied"),
        ({"origins": "shop.example"}, {"referer": "https://shop.example/page"}, None),
        ({"origins": "shop.example"}, {}, None),
        ({"origins": "shop.example", "missing_origin": "deny"}, {}, "origin_denied"),
        ({"bots": "drop"}, {"user-agent": "Googlebot/2.1 (+http://www.google.com/bot.html)"}, "bot"),
    ],
)
def test_a_beacon_that_must_be_forgotten_is_counted_by_reason_and_sets_no_cookie(
    inside: Inside, sandbox: SandboxProcess, settings: dict[str, str], headers: dict[str, str], reason: str | None
) -> None:
    """Still 200 and the GIF: nothing tells the visitor's choice from its absence."""
    proxy = inside(**settings)
    before = Counter(proxy.status()["dropped"])
    answer = httpx.get(f"{proxy.url}/e?_n=Viewed", headers={"user-agent": "UA", **headers})
    assert (answer.status_code, len(answer.content)) == (200, 43)
    if reason is None:
        assert len(sandbox.wait(1)) == 1
    else:
        assert reason == "bot" or "set-cookie" not in answer.headers
        wait_for(lambda: Counter(proxy.status()["dropped"]) - before == {reason: 1}, "the count")
        assert sandbox.beacons() == []


@pytest.mark.parametrize(
    ("mode", "address", "kept"),
    [
        ("keep", "198.51.100.77", "198.51.100.77"),
        ("truncate", "198.51.100.77", "198.51.100.0"),
        ("truncate", "2001:db8:1:2:3::9", "2001:db8:1::"),
        ("forget", "198.51.100.77", None),
    ],
)
def test_the_address_is_shortened_or_forgotten_before_it_is_stored(
    inside: Inside, sandbox: SandboxProcess, tmp_path: Path, mode: str, address: str, kept: str | None
) -> None:
    """Not even the disk has it; upstream it goes only when asked."""
    proxy = inside(addresses=mode, address_property="_ip")
    httpx.get(f"{proxy.url}/e?_n=a&_p=b", headers={"x-forwarded-for": address})
    [beacon] = sandbox.wait(1)
    assert beacon["params"].get("_ip") == kept
    if mode != "keep":
        assert not any(address.encode() in file.read_bytes() for file in (tmp_path / "spool").iterdir() if file.name != "reserve")


def test_what_is_redacted_is_neither_stored_nor_sent(inside: Inside, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """By name, and by look; in the query, the body and the page's address."""
    proxy = inside(redact="password,*secret*", mask_personal="true")
    httpx.post(
        f"{proxy.url}/e?_n=Signed+up&_p=me&PassWord=hunter2&My+Secret+Thing=abc",
        content="Note=mail+ada%40lovelace.example+now&Card=4111+1111+1111+1111&Order=4111111111111112",
        headers={
            "referer": "https://shop.example/done?mail=ada%40lovelace.example&password=hunter2&x=1",
            "content-type": "text/plain",
        },
    )
    [beacon] = sandbox.wait(1)
    params = beacon["params"]
    assert (params["Note"], params["Card"], params["Order"]) == ("mail *** now", "***", "4111111111111112")
    assert {name.lower() for name in params}.isdisjoint({"password", "my secret thing"})
    assert params["URL"] == "https://shop.example/done?mail=***&x=1"
    stored = b"".join(file.read_bytes() for file in (tmp_path / "spool").iterdir() if file.name != "reserve")
    for gone in (b"hunter2", b"lovelace", b"4111+1111", b"4111 1111"):
        assert gone not in stored


@given(
    st.from_regex(r"[a-z]{1,10}@[a-z]{1,10}\.(com|de|co\.uk)", fullmatch=True),
    st.text(st.characters(categories=["L"]), max_size=20),
)
def test_an_address_is_masked_wherever_it_stands(address: str, around: str) -> None:
    """Plain, or escaped once more inside a value."""
    text = f"{around} {address} {around}"
    assert address not in mask(text)
    assert address.replace("@", "%40") not in mask(text.replace("@", "%40"))
    assert mask(around) == around or "@" in around


@given(st.binary(max_size=300))
def test_redaction_breaks_on_no_bytes_and_changes_nothing_it_need_not(raw: bytes) -> None:
    """A query without anything personal keeps its bytes."""
    assert Redaction((), False).query(raw) == raw
    once = Redaction(("secret",), True).query(raw)
    assert Redaction(("secret",), True).query(once) == once


def test_card_numbers_are_told_from_other_numbers_by_their_check_digit() -> None:
    """Order numbers and times stay."""
    assert is_card("4111 1111 1111 1111")
    assert not is_card("4111 1111 1111 1112")
    assert mask("ordered 1700000000123 of 0000000000000000") == "ordered 1700000000123 of 0000000000000000"


@pytest.mark.parametrize(
    ("header", "chain"),
    [
        ('for=192.0.2.60;proto=http;by=203.0.113.43, for="[2001:db8::1]:8080"', "192.0.2.60,[2001:db8::1]:8080"),
        ("For=unknown, FOR=_hidden", "unknown,_hidden"),
        ("proto=https", ""),
        ("", ""),
    ],
)
def test_the_forwarded_header_is_read_as_a_chain(header: str, chain: str) -> None:
    """RFC 7239, section 4."""
    assert forwarded_chain(header) == chain


@given(st.text(max_size=300))
def test_no_forwarded_header_can_break_the_walk(header: str) -> None:
    """And what comes out is an address, or the peer."""
    found = TrustedProxies(("127.0.0.0/8",)).client("127.0.0.1", forwarded_chain(header))
    assert truncated(found) != ""


def test_forwarded_is_believed_of_trusted_peers(inside: Inside, sandbox: SandboxProcess) -> None:
    """The same walk as for X-Forwarded-For."""
    proxy = inside(address_property="_ip")
    httpx.get(f"{proxy.url}/e?_n=a&_p=b", headers={"forwarded": 'for="[2001:db8::7]:1234";proto=https'})
    assert sandbox.wait(1)[0]["params"]["_ip"] == "2001:db8::7"


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("https://shop.example", True),
        ("http://shop.example:8080", True),
        ("https://a.b.wild.example", True),
        ("https://wild.example", False),
        ("https://notwild.example", False),
        ("https://shop.example.evil.example", False),
        ("https://whole.example", True),
        ("http://whole.example", False),
        ("https://whole.example:444", False),
        ("ftp://shop.example", False),
        ("shop.example", False),
    ],
)
def test_origins_are_hosts_wildcards_or_whole_origins(origin: str, admitted: bool) -> None:
    """Nothing that merely looks alike."""
    rule = AllowedOrigins(("shop.example", "*.wild.example", "https://whole.example"), missing_allowed=False)
    assert rule.names(origin) is admitted
    assert rule.admits({b"origin": origin.encode()}) is admitted


@given(st.text(max_size=100))
def test_no_address_breaks_the_origin(url: str) -> None:
    """Total."""
    assert origin_of(url) == "" or origin_of(url).startswith(("http://", "https://"))


def test_cors_answers_name_allowed_origins_only(inside: Inside) -> None:
    """Credentials never with "*"."""
    proxy = inside(origins="shop.example")
    good, bad = {"origin": "https://shop.example"}, {"origin": "https://evil.example"}
    for ask in (httpx.options, httpx.get):
        allowed = ask(f"{proxy.url}/e?_n=a&_p=b", headers=good).headers
        assert allowed["access-control-allow-origin"] == "https://shop.example"
        assert allowed["access-control-allow-credentials"] == "true"
        assert "Origin" in allowed["vary"]
        assert "access-control-allow-origin" not in ask(f"{proxy.url}/e?_n=a&_p=b", headers=bad).headers
    proxy.stop()
    anybody = httpx.options(f"{inside().url}/e", headers=bad).headers
    assert anybody["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in anybody


def test_one_address_cannot_flood_and_the_others_do_not_notice(inside: Inside) -> None:
    """Dropped and counted, with a 200."""
    proxy = inside(rate_limit="60")
    with httpx.Client(base_url=proxy.url) as client:
        for n in range(40):
            flood = client.get(f"/e?_n={n}&_p=b", headers={"x-forwarded-for": "198.51.100.1"})
            other = client.get(f"/e?_n={n}&_p=b", headers={"x-forwarded-for": f"203.0.113.{n}"})
            assert flood.status_code == other.status_code == 200
    status = wait_for(lambda: (found := proxy.status())["pending"] == 0 and found, "delivery")
    assert 20 <= status["dropped"]["rate_limited"] <= 30
    assert status["delivered"] == 80 - status["dropped"]["rate_limited"]


def test_the_rate_limit_needs_bounded_memory_however_many_addresses_come() -> None:
    """A flood of addresses is let pass rather than remembered."""
    limit = AddressLimit(600)
    for n in range(MAX_ADDRESSES + 1000):
        limit.exceeded(str(n), 0)
    assert len(limit._counts) == MAX_ADDRESSES
    assert limit.exceeded("0", 9_999) is False
    assert [limit.exceeded("a", 10_000) for _ in range(101)].count(True) == 1
    assert len(limit._counts) == 1


def test_an_ipv6_network_counts_as_one_address() -> None:
    """Else whoever has one has 2 to the 64 limits; and mapped IPv4 addresses are many customers, not one."""
    limit = AddressLimit(60)
    assert [limit.exceeded(f"2001:db8::{n:x}", 0) for n in range(20)].count(True) == 10
    assert limit.exceeded("2001:db8:0:1::1", 0) is False
    assert [limit.exceeded(f"::ffff:198.51.100.{n}", 0) for n in range(20)].count(True) == 0
    assert limit.exceeded("no:address", 0) is False


def test_outcomes_are_told_to_the_debug_token_alone(inside: Inside) -> None:
    """Without it nothing tells stored from dropped, a robot from a person, or a spent limit."""
    proxy = inside(debug_token="tell-me-9", identity="false")
    queries = {"_n=a&_p=b": "stored", "_n=a": "no_person", "_p=b": "no_name", "x&" * 1100: "too_many_parameters"}
    plain = [httpx.get(f"{proxy.url}/e?{query}") for query in queries]
    assert len({(answer.status_code, answer.content, str(dict(answer.headers) | {"date": ""})) for answer in plain}) == 1
    for token in ("wrong", ""):
        assert "x-beacon-outcome" not in httpx.get(f"{proxy.url}/e?_n=a", headers={"x-beacon-debug": token}).headers
    for query, outcome in queries.items():
        told = httpx.get(f"{proxy.url}/e?{query}", headers={"x-beacon-debug": "tell-me-9"})
        address = "" if outcome == "too_many_parameters" else "; address=127.0.0.1"
        assert told.headers["x-beacon-outcome"] == outcome + address


def test_the_key_is_found_nowhere_but_in_the_request_to_the_vendor(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Everything at debug level, with a key that can be searched for; by file, so that no environment holds it."""
    key = "KEY-to-search-for-7731"
    key_file = tmp_path / "key"
    key_file.write_text(key + "\n")
    port = free_port()
    proxy = serve(log_level="debug", admin_port=str(port), api_key=None, api_key_file=str(key_file), debug_token="t")
    seen = []
    with httpx.Client(base_url=proxy.url, headers={"x-beacon-debug": "t"}) as client:
        for path in ("/e?_n=a&_p=b", "/s?_p=b&x=y", "/a?_p=b&_n=c", "/nothing", "/e?_n=a&_p=b&_k=mine"):
            for method in ("GET", "HEAD", "OPTIONS", "DELETE", "POST"):
                answer = client.request(method, path)
                seen.append(str(answer.headers) + answer.text)
    assert {beacon["params"]["_k"] for beacon in sandbox.wait(8)} == {key}
    sandbox.stop()
    httpx.get(f"{proxy.url}/e?_n=fails&_p=b")
    time.sleep(1)
    for path in ("/", "/healthz", "/readyz", "/metrics", "/nothing"):
        seen.append(httpx.get(f"http://127.0.0.1:{port}{path}").text)
    for command in (["status"], ["status", "--json"], ["check"], ["dead", "list"]):
        done = subprocess.run([sys.executable, "-m", "proxy", *command], env=proxy.environment, capture_output=True, text=True)
        seen.append(done.stdout + done.stderr)
    for pid in [proxy.process.pid, *children(proxy.process.pid)]:
        seen += [Path(f"/proc/{pid}/{file}").read_bytes().decode("latin-1") for file in ("environ", "cmdline", "comm")]
    proxy.stop()
    seen += [file.read_bytes().decode("latin-1") for file in (tmp_path / "spool").iterdir() if file.name != "reserve"]
    seen.append(proxy.log.read_text())
    assert len(seen) > 40
    assert not [text[:200] for text in seen if key in text]


def test_a_traceback_in_the_log_shows_no_values() -> None:
    """Neither as JSON nor on a terminal: the key may be in a local variable."""
    code = (
        "from proxy.log import configure, log\n"
        "configure('debug')\n"
        "def deliver(key):\n"
        "    request = 'https://vendor.example/e?_k=' + key\n"
        "    raise RuntimeError('broken')\n"
        "try:\n    deliver('-'.join(['KEY', 'in', 'a', 'variable']))\n"
        "except RuntimeError:\n    log.exception('it failed')\n"
    )
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    ours, theirs = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    on_terminal = os.read(ours, 65_536).decode()
    os.close(ours)
    os.close(theirs)
    for text in (plain, on_terminal):
        assert "RuntimeError" in text
        assert "KEY-in-a-variable" not in text


@pytest.mark.parametrize("name", ["URL", "Viewed%20URL", "Referrer"])
def test_an_address_in_a_value_is_redacted_like_the_pages_own(name: str) -> None:
    """The script sends the page's address as a property; what the Referer must not hold it must not hold either."""
    address = quote("https://shop.example/p?email=ann%40x.org&a=1#b", safe="")
    kept = Redaction(("email",), False).query(f"_n=Viewed&{name}={address}&x=1".encode())
    assert kept == f"_n=Viewed&{name}=https://shop.example/p?a%3D1%23b&x=1".encode()
    untouched = f"{name}={quote('https://shop.example/größe?a=1', safe='')}".encode()
    assert Redaction(("email",), False).query(untouched) == untouched


@given(st.text(max_size=60), st.sampled_from(["http://a?", "https%3A%2F%2Fb%3F", "HTTPS://x/"]), st.integers(0, 400))
def test_addresses_within_addresses_end_somewhere(tail: str, head: str, depth: int) -> None:
    """Anyone can nest them."""
    Redaction(("email",), True).query(("u=" + f"{head}u=" * depth + tail).encode())
