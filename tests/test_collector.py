"""The collector's rule, pure; and its public listener against any bytes at all, over a real socket."""

import socket
from collections.abc import Iterator

import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.collector.address import TrustedProxies, parse_address
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.hit import MAX_BEACON_BYTES, Hit
from proxy.outcome import Outcome
from proxy.spool.port import SpoolConfig

SPOOL = SpoolConfig("memory:")


def collector(**settings: object) -> Collector:
    return Collector(CollectorConfig(spool=SPOOL, **settings))  # type: ignore[arg-type]


def test_a_hit_holds_the_requests_facts_uninterpreted() -> None:
    """Capture raw, interpret later."""
    headers = {
        b"host": b"Shop.example:443",
        b"user-agent": b"UA\xff",
        b"referer": b"https://shop.example/",
        b"accept-language": b"de",
    }
    found = collector().collect("e", b"a=%zz&_p=me", b"body", headers, "192.0.2.7", 5)
    assert found == (
        "default",
        Hit("e", b"a=%zz&_p=me", b"body", "default", "Shop.example:443", "192.0.2.7", "UA\xff", "https://shop.example/", "de", 5),
        b"",
    )


def test_every_field_has_a_limit() -> None:
    """A hit's size is bounded whatever the client sends."""
    headers = dict.fromkeys((b"host", b"user-agent", b"referer", b"accept-language"), b"x" * 100000)
    found = collector().collect("e", b"q", b"", headers, "192.0.2.7", 5).found
    assert isinstance(found, Hit)
    assert max(len(found.host), len(found.user_agent), len(found.referer), len(found.language)) == 4096
    assert collector().collect("e", b"q" * (MAX_BEACON_BYTES + 1), b"", {}, "", 0).found is Outcome.TOO_LARGE
    assert collector().collect("e", b"a&" * 1000, b"", {}, "", 0).found is Outcome.TOO_MANY


@pytest.mark.parametrize(
    ("host", "site"),
    [
        (b"shop.example", "shop"),
        (b"SHOP.example.:8443", "shop"),
        (b"a.b.wild.example", "wild"),
        (b"wild.example", None),
        (b"evil.example", None),
        (b"", None),
        (b"\xff\xfe::::", None),
        (b"[::1]:80", "six"),
    ],
)
def test_a_host_finds_its_site(host: bytes, site: str | None) -> None:
    """Exact names, names below a wildcard, ports, upper case, a trailing dot, garbage; without a default the rest is dropped."""
    hosts = {"shop.example": "shop", "*.wild.example": "wild", "[::1]": "six"}
    found = collector(hosts=hosts, default_site=False).collect("e", b"", b"", {b"host": host}, "", 0).found
    assert (found.site if isinstance(found, Hit) else None) == site


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("127.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.1", "1.2.3.4"),
        ("", "1.2.3.4:5678", "1.2.3.4"),
        ("127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("127.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "1.2.3.4, garbage", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", ", ".join(["10.0.0.1"] * 1000), "10.0.0.1"),
    ],
)
def test_the_client_is_the_nearest_hop_that_is_not_a_trusted_proxy(peer: str, chain: str, client: str) -> None:
    """From the right: what stands further left was written by the client itself."""
    assert TrustedProxies(("127.0.0.0/8", "10.0.0.0/8")).client(peer, chain) == client


@given(st.text(max_size=200), st.text(max_size=40))
def test_no_forwarding_header_can_break_the_walk(chain: str, peer: str) -> None:
    """Total over any text."""
    found = TrustedProxies(("127.0.0.0/8",)).client("127.0.0.1", chain)
    assert parse_address(found) is not None
    TrustedProxies(("127.0.0.0/8",)).client(peer, chain)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProxyProcess, SandboxProcess]]:
    sandbox = SandboxProcess()
    proxy = ProxyProcess(tmp_path_factory.mktemp("any") / "spool", sandbox.url, durability="os")
    yield proxy, sandbox
    proxy.kill()
    sandbox.stop()


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    return answer


QUERY = st.binary(max_size=300).map(lambda raw: raw.translate(None, b"\r\n"))
"""Any bytes but those that end a request line."""


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(QUERY, st.binary(max_size=500), st.sampled_from(["e", "s", "a"]), st.sampled_from([b"GET", b"POST"]))
def test_any_bytes_are_answered_with_the_gif_and_never_5xx(
    running: tuple[ProxyProcess, SandboxProcess], query: bytes, body: bytes, kind: str, method: bytes
) -> None:
    """Bad input is the client's affair; the page must not break."""
    proxy, _ = running
    head = b"%s /%s?%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    answer = exchange(proxy.port, head % (method, kind.encode(), query, len(body)) + body)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    assert answer.endswith(b"\x00;")


def test_after_all_those_bytes_the_vendor_saw_our_key_alone(running: tuple[ProxyProcess, SandboxProcess]) -> None:
    """Over everything that the property test sent and this one adds."""
    proxy, sandbox = running
    exchange(proxy.port, b"GET /e?_n=end&_p=end&%5Fk=EVIL HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    beacons = sandbox.wait(1)
    for beacon in beacons:
        assert [value for name, value in beacon["pairs"] if name.lower().strip() == "_k"] == [API_KEY]


def test_a_query_that_is_no_url_is_read_as_it_was_meant(running: tuple[ProxyProcess, SandboxProcess]) -> None:
    """Raw UTF-8, a space, a "#" that leaked out of a value: a strict server would answer 400, or cut the query short."""
    proxy, sandbox = running
    exchange(proxy.port, "GET /e?_n=nö #1&_p=raw&x=y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def found() -> list[dict[str, object]]:
        return [beacon["params"] for beacon in sandbox.beacons() if beacon["params"].get("_p") == "raw"]

    [params] = wait_for(found, "the beacon")
    assert (params["_n"], params["x"]) == ("nö #1", "y")


@given(st.binary(max_size=120))
def test_no_host_header_can_break_the_look_up(host: bytes) -> None:
    """Total, and only a site's own names lead to it."""
    hosts = {"shop.example": "shop", "*.wild.example": "wild"}
    found = collector(hosts=hosts, default_site=False).collect("e", b"_p=b", b"", {b"host": host}, "", 0)
    if isinstance(found.found, Hit):
        name = host.decode("latin-1").partition(":")[0].rstrip(".").lower()
        assert name == "shop.example" if found.site == "shop" else name.endswith(".wild.example")
    else:
        assert found.found is Outcome.UNKNOWN_HOST


@given(st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}", fullmatch=True), st.sampled_from(["", ".", ":443", ".:8443"]))
def test_a_name_below_the_wildcard_is_found_however_it_is_written(label: str, tail: str) -> None:
    """Upper case, a trailing dot, a port."""
    host = f"{label}.wild.example{tail}".upper().encode()
    found = collector(hosts={"*.wild.example": "wild"}, default_site=False).collect("e", b"_p=b", b"", {b"host": host}, "", 0)
    assert found.site == "wild"
