"""The one contract of both upstream engines, against raw sockets: what goes out, byte by byte, and what every answer becomes."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from conftest import free_port

from proxy.delivery import Answer
from proxy.forward.sign import UpstreamRequest
from proxy.forward.upstream import ENGINES, Upstream, open_upstream

T = TypeVar("T")
Step = bytes | Callable[[socket.socket], None]
TIMEOUT_S = 1.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


class RawVendor:
    """Records each request's bytes and answers the n-th with the n-th step of the script; 200 after its end."""

    def __init__(self, *script: Step) -> None:
        self.requests: list[bytes] = []
        self.closing = threading.Event()
        self._script = list(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := self._read(connection):
                step = self._script.pop(0) if self._script else OK
                self.requests.append(request)
                if callable(step):
                    step(connection)
                    return
                connection.sendall(step)

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (chunk := connection.recv(65_536)):
                return b""
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(headers_of(data).get("content-length", "0"))
        while len(body) < length:
            body += connection.recv(65_536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def headers_of(request: bytes) -> dict[str, str]:
    """Lower-case names to values."""
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def vendor() -> Iterator[Callable[..., RawVendor]]:
    """Starts raw vendors by their script; ends them."""
    started: list[RawVendor] = []

    def start(*script: Step) -> RawVendor:
        started.append(RawVendor(*script))
        return started[-1]

    yield start
    for one in started:
        one.close()


Vendor = Callable[..., RawVendor]
each_engine = pytest.mark.parametrize("engine", ENGINES)


def using(engine: str, call: Callable[[Upstream], Awaitable[T]]) -> T:
    """One client's life."""

    async def run() -> T:
        upstream = open_upstream(engine, TIMEOUT_S, 8)
        try:
            return await call(upstream)
        finally:
            await upstream.close()

    return asyncio.run(run())


def send(engine: str, *requests: UpstreamRequest) -> list[Answer]:
    """The answers to requests sent one after the other by one client."""

    async def run(upstream: Upstream) -> list[Answer]:
        return [await upstream.send(request) for request in requests]

    return using(engine, run)


def get(url: str) -> UpstreamRequest:
    return UpstreamRequest(url, None)


@each_engine
@pytest.mark.parametrize(
    "query",
    [
        "_n=Viewed%20Product&_p=a%2Bb%40example.com&URL=http%3A%2F%2Fx%2F%3Fa%3Db%26c",
        "_p=-._~azAZ09&v=%25%7E%2e%2E&quote=%27%28%29%2A%21%22%3C%3E%5B%5D%7B%7C%7D%5C%5E%60&%E2%82%AC=%F0%9F%AB%96&nul=%00%0D%0A",
        "empty=&_p=%20",
    ],
)
def test_the_url_goes_out_byte_for_byte(engine: str, vendor: Vendor, query: str) -> None:
    """A resend is a duplicate to the vendor only if it is the same bytes, whichever engine sends it."""
    server = vendor()
    assert send(engine, get(f"{server.url}/e?{query}")) == [Answer(200)]
    assert server.requests[0].split(b"\r\n")[0] == f"GET /e?{query} HTTP/1.1".encode()


@each_engine
def test_a_get_carries_nothing_the_vendor_did_not_ask_for(engine: str, vendor: Vendor) -> None:
    """No conditions, no referrer, no cookie, no body; the host is the vendor's."""
    server = vendor()
    send(engine, get(f"{server.url}/e?_p=a"), get(f"{server.url}/e?_p=b"))
    for request in server.requests:
        headers = headers_of(request)
        assert [name for name in headers if name.startswith("if-")] == []
        assert not {"referer", "cookie", "content-type", "authorization", "transfer-encoding"} & set(headers)
        assert headers["host"] == f"127.0.0.1:{server.port}"
        assert headers["user-agent"].startswith("beacon-proxy/")
        assert request.endswith(b"\r\n\r\n")


@each_engine
def test_a_post_arrives_as_given(engine: str, vendor: Vendor) -> None:
    """The form of a long beacon, with its length and its type."""
    server = vendor()
    body = b"_n=Viewed%20Product&_p=a%2Bb&" + b"v=" + b"x" * 100_000
    assert send(engine, UpstreamRequest(f"{server.url}/e", body)) == [Answer(200)]
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /e HTTP/1.1\r\n")
    assert sent == body
    assert headers_of(server.requests[0])["content-type"] == "application/x-www-form-urlencoded"
    assert headers_of(server.requests[0])["content-length"] == str(len(body))


def test_both_engines_send_the_same_headers(vendor: Vendor) -> None:
    """Changing the engine changes nothing the vendor can see, but for what only concerns the connection."""
    sent = []
    for engine in ENGINES:
        server = vendor()
        send(engine, get(f"{server.url}/e?_p=a"), UpstreamRequest(f"{server.url}/e", b"_p=a"))
        hop_by_hop = {"host", "connection", "keep-alive"}
        sent.append([{n: v for n, v in headers_of(r).items() if n not in hop_by_hop} for r in server.requests])
    assert sent[0] == sent[1]


@each_engine
def test_a_redirect_is_not_followed(engine: str, vendor: Vendor) -> None:
    """The key must not go wherever an answer points."""
    elsewhere = vendor()
    server = vendor(f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}/x\r\nContent-Length: 0\r\n\r\n".encode())
    assert send(engine, get(f"{server.url}/e?_p=a")) == [Answer(302)]
    assert elsewhere.requests == []
    assert len(server.requests) == 1


COOKIE = b"HTTP/1.1 200 OK\r\nSet-Cookie: visitor=1; Path=/; Max-Age=9999\r\nContent-Length: 2\r\n\r\n"


@each_engine
def test_a_cookie_is_not_sent_back(engine: str, vendor: Vendor) -> None:
    """All visitors would become one to the vendor."""
    server = vendor(COOKIE + b"OK")
    send(engine, get(f"{server.url}/e?_p=a"), get(f"{server.url}/e?_p=b"))
    assert len(server.requests) == 2
    assert b"visitor" not in server.requests[1]


@each_engine
def test_a_cookie_is_not_sent_back_while_its_answer_is_still_coming(engine: str, vendor: Vendor) -> None:
    """Many requests are in flight at once: the next one leaves before this answer has ended."""
    begun, second = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        connection.sendall(COOKIE)
        begun.set()
        second.wait(TIMEOUT_S * 0.7)
        connection.sendall(b"OK")

    server = vendor(slow)

    async def run(upstream: Upstream) -> None:
        first = asyncio.create_task(upstream.send(get(f"{server.url}/e?_p=a")))
        await asyncio.to_thread(begun.wait, 5)
        await asyncio.sleep(0.1)
        assert not first.done()
        await upstream.send(get(f"{server.url}/e?_p=b"))
        second.set()
        assert await first == Answer(200)

    using(engine, run)
    assert b"visitor" not in server.requests[1]


@each_engine
@pytest.mark.parametrize("status", [200, 204, 304, 400, 404, 429, 500, 503])
def test_a_status_is_reported_with_its_retry_after(engine: str, vendor: Vendor, status: int) -> None:
    """The engine judges nothing: what a status means is decided elsewhere."""
    body = b"" if status in (204, 304) else b"Content-Length: 4\r\n"
    server = vendor(
        b"HTTP/1.1 %d Whatever\r\nRetry-After: 17\r\nETag: x\r\n%b\r\n%b" % (status, body, b"body" if body else b""),
        b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n",
    )
    answers = send(engine, get(f"{server.url}/e?_p=a"), get(f"{server.url}/e?_p=a"))
    assert answers == [Answer(status, retry_after="17"), Answer(503)]


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang(connection: socket.socket) -> None:
    connection.recv(1)  # until the client gives up


def dribble(connection: socket.socket) -> None:
    """Never silent for long, never done."""
    for n in range(20):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" if n == 0 else b"x")
        time.sleep(TIMEOUT_S / 4)


def ends_with(answer: bytes) -> Step:
    return lambda connection: connection.sendall(answer)


FAILURES: dict[str, Step] = {
    "reset": reset,
    "closed": ends_with(b""),
    "half a head": ends_with(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": ends_with(b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\nGIF89a"),
    "half a chunk": ends_with(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n43\r\nGIF89a"),
    "not HTTP": ends_with(b"\x15\x03\x01\x00\x02\x02\x46 no HTTP at all\r\n\r\n"),
    "bad length": ends_with(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nGIF89a"),
    "hang": hang,
    "dribble": dribble,
}


@each_engine
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_an_answer_and_comes_in_time(engine: str, vendor: Vendor, failure: str) -> None:
    """Whatever the network does is an Answer without a status and with a name, within the timeout; and the client lives on."""
    server = vendor(FAILURES[failure])
    began = time.monotonic()
    [failed, next_one] = send(engine, get(f"{server.url}/e?_p=a"), get(f"{server.url}/e?_p=b"))
    assert time.monotonic() - began < 2.5 * TIMEOUT_S
    assert failed.status == 0
    assert failed.failure
    assert next_one == Answer(200)


@each_engine
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_vendor_that_is_not_there_is_an_answer(engine: str, host: str) -> None:
    """A closed port, a name that does not resolve."""
    [answer] = send(engine, get(f"http://{host}:{free_port()}/e?_p=a"))
    assert answer.status == 0
    assert answer.failure


@each_engine
@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd"])
def test_a_body_is_not_decoded(engine: str, vendor: Vendor, coding: str) -> None:
    """A 200 is a 200: a middlebox that labels the GIF wrongly must not turn a delivery into a retry, nor a small body large."""
    server = vendor(f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 6\r\n\r\nGIF89a".encode())
    assert send(engine, get(f"{server.url}/e?_p=a")) == [Answer(200)]


@each_engine
def test_a_proxy_in_the_environment_is_ignored(engine: str, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes to the vendor alone."""
    other, server = vendor(), vendor()
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    assert send(engine, get(f"{server.url}/e?_p=a")) == [Answer(200)]
    assert other.requests == []
    assert len(server.requests) == 1


@each_engine
def test_many_requests_are_in_flight_at_once(engine: str, vendor: Vendor) -> None:
    """One slow answer holds no other back."""
    together = threading.Barrier(8, timeout=5)

    def meet(connection: socket.socket) -> None:
        together.wait()
        connection.sendall(OK)

    server = vendor(*[meet] * 8)

    async def run(upstream: Upstream) -> list[Answer]:
        return await asyncio.gather(*[upstream.send(get(f"{server.url}/e?_p={n}")) for n in range(8)])

    assert using(engine, run) == [Answer(200)] * 8
