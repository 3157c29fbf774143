"""The short way and the long way must be one: same requests, same hits, same answers."""

import asyncio
import socket
from collections.abc import Callable

import httptools
from conftest import ProxyProcess, SandboxProcess
from hypothesis import given
from hypothesis import strategies as st

from proxy.collector.asgi import CollectorApp, joined
from proxy.collector.config import CollectorConfig
from proxy.collector.express import Express, parse_headers
from proxy.hit import Hit
from proxy.spool.memory import MemorySpool
from proxy.spool.port import SpoolConfig, SpoolRefused

Serve = Callable[..., ProxyProcess]
CONFIG = CollectorConfig(SpoolConfig("memory:"), trusted_proxies=("127.0.0.0/8",), redact=("secret",))


class Connection:
    """As much of a connection as the short way asks for."""

    peer, https, site, closes, extras = "127.0.0.1", False, "", False, None

    def __init__(self) -> None:
        self.answers: list[SpoolRefused | None] = []

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return LOOP

    def told(self, error: SpoolRefused | None) -> None:
        self.answers.append(error)


LOOP = asyncio.new_event_loop()
NAMES = b"Host|user-agent|Referer|Cookie|X-Forwarded-For|Forwarded|Accept-Language|Sec-GPC|Sec-CH-UA|X_y||Content-Length"
names = st.sampled_from([*NAMES.split(b"|"), b"Origin", b"bad name", b"Transfer-Encoding", b" Host", b"Host ", b"\xff"])
values = st.one_of(
    st.sampled_from(
        [b"shop.example", b"1.2.3.4, 5.6.7.8", b"for=1.2.3.4", b"km_ai=x; km_ni=y", b"1", b"", b"0", b"https://shop.example/"]
    ),
    st.binary(max_size=30),
)
queries = st.text(st.sampled_from("_pnktd=&%20+abcA1[]."), max_size=40).map(str.encode)
heads = st.builds(
    lambda query, pairs: b"GET /e?" + query + b" HTTP/1.1\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in pairs) + b"\r\n",
    queries,
    st.lists(st.tuples(names, values), max_size=6),
)


def the_long_way(head: bytes) -> tuple[bytes, dict[bytes, bytes]] | None:
    """What the server's own parser makes of it; None if it refuses, or sees more than a head without a body."""
    seen: list[tuple[bytes, bytes]] = []
    url = []
    done = []

    class Callbacks:
        def on_url(self, part: bytes) -> None:
            url.append(part)

        def on_header(self, name: bytes, value: bytes) -> None:
            seen.append((name.lower(), value))

        def on_message_complete(self) -> None:
            done.append(True)

    try:
        httptools.HttpRequestParser(Callbacks()).feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return (b"".join(url).partition(b"?")[2], joined(seen)) if done else None


@given(heads)
def test_what_the_short_way_takes_the_long_way_would_read_the_same(head: bytes) -> None:
    """It may leave requests to the long way, but never read one otherwise."""
    taken = parse_headers(head.partition(b"\r\n")[2])
    if taken is None:
        return
    assert the_long_way(head) is None or the_long_way(head) == (head.split(b" ")[1].partition(b"?")[2], taken)
    if not {b"content-length", b"transfer-encoding"} & taken.keys():
        assert the_long_way(head) is not None, "the parser refuses it, so the short way must not take it"


@given(heads)
def test_the_same_hit_comes_of_both(head: bytes) -> None:
    """Identities that are made up aside."""
    spool = MemorySpool()
    app = CollectorApp(CONFIG, spool)
    connection = Connection()
    if not Express(app, spool).take(connection, head):
        return
    LOOP.run_until_complete(asyncio.sleep(0))
    assert connection.answers == [None]
    read = the_long_way(head)
    assert read is not None
    query, headers = read
    expected = app.collector.collect("e", query, b"", headers, "127.0.0.1", 0).found
    claims = spool.claim(1, 0)
    if isinstance(expected, Hit):
        [claim] = claims
        made_up = not claim.hit.identity or b"km_" not in headers.get(b"cookie", b"")
        facts = [getattr(claim.hit, field) for field in Hit.__struct_fields__ if field not in ("received_ms", "identity")]
        assert facts == [getattr(expected, field) for field in Hit.__struct_fields__ if field not in ("received_ms", "identity")]
        assert made_up or claim.hit.identity == expected.identity or len(claim.hit.identity) == len(expected.identity) == 24
    else:
        assert claims == []


def answers(proxy: ProxyProcess, request: bytes, n: int) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(request)
        got = b""
        while got.count(b"\x01\x00;") < n:
            chunk = connection.recv(65_536)
            assert chunk, got
            got += chunk
        return got


def test_both_ways_answer_the_same_bytes(running: Serve) -> None:
    """An empty Expect sends a request the long way; but for the date, nothing tells them apart."""
    proxy = running()
    request = b"GET /e?_n=a&_p=b HTTP/1.1\r\nHost: shop.example\r\nOrigin: https://shop.example\r\n%s\r\n"
    short, long = (answers(proxy, request % extra, 1) for extra in (b"", b"Expect: nothing\r\n"))
    undated = [sorted(line for line in answer.split(b"\r\n") if not line.startswith(b"date")) for answer in (short, long)]
    assert undated[0] == undated[1]


def test_pipelined_requests_are_answered_in_their_order_whatever_way_they_go(running: Serve, sandbox: SandboxProcess) -> None:
    """Short, long, short, with a body in between, in one segment."""
    proxy = running()
    short = b"GET /e?_n=%d&_p=b HTTP/1.1\r\nHost: a\r\n\r\n"
    wrong = b"DELETE /e HTTP/1.1\r\nHost: a\r\n\r\n"
    posted = b"POST /e?_n=%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n_p=b"
    got = answers(proxy, short % 1 + short % 2 + posted % 3 + wrong + short % 4 + posted % 5 + short % 6, 6)
    statuses = [line.split(b" ")[1] for line in got.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert statuses == [b"200", b"200", b"200", b"405", b"200", b"200", b"200"]
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(6)} == {"1", "2", "3", "4", "5", "6"}


def test_what_arrives_while_a_beacon_waits_is_read_in_its_order(running: Serve, sandbox: SandboxProcess) -> None:
    """Many requests in many small segments: none may overtake another, or be torn."""
    proxy = running()
    n = 200
    stream = b"".join(b"GET /e?_n=%d&_p=b HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(n))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first in range(0, len(stream), 37):
            connection.sendall(stream[first : first + 37])
        got = b""
        while got.count(b"\x01\x00;") < n:
            chunk = connection.recv(65_536)
            assert chunk, got[-300:]
            got += chunk
    assert got.count(b"HTTP/1.1 200 OK") == n
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(n)} == {str(i) for i in range(n)}
