"""Clients that are slow, rude or hostile: bounded, and nobody else notices."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, wait_for
from in_thread import InThread

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]
CUT_OFF_S = 25.0
"""REQUEST_S and two sweeps, and some for a busy machine."""


def connect(proxy: ProxyProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=CUT_OFF_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ended(connection: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65_536):
            got += chunk
    return got


def test_a_request_that_does_not_arrive_is_cut_off_and_not_stored(serve: Serve) -> None:
    """Slow-loris: a head that never ends, and a body that never ends; half a beacon is no beacon."""
    proxy = serve()
    head, body, idle = connect(proxy), connect(proxy), connect(proxy)
    began = time.monotonic()
    head.sendall(b"GET /e?_n=slow&_p=me HTTP/1.1\r\nHost: a\r\n")
    body.sendall(b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n_n=slow&_p=half-an-ident")
    finished = httpx.Client(base_url=proxy.url)
    for n in range(8):
        head.sendall(b"X-%d: y\r\n" % n)
        body.sendall(b"&a=b")
        assert finished.get(f"/e?_n=quick{n}&_p=me", timeout=5).status_code == 200
        time.sleep(0.25)
    assert (ended(head), ended(body), ended(idle)) == (b"", b"", b"")
    assert 10 < time.monotonic() - began < CUT_OFF_S
    assert finished.get("/e?_n=after&_p=me").status_code == 200, "an idle keep-alive connection is not a slow request"
    assert proxy.status()["received"] == 9


def test_a_client_that_closes_its_half_still_gets_its_answer(running: Serve, sandbox: SandboxProcess) -> None:
    """`printf … | nc` does that."""
    proxy = running()
    connection = connect(proxy)
    connection.sendall(b"GET /e?_n=half&_p=me HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    answer = ended(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b";")
    assert sandbox.wait(1)[0]["params"]["_n"] == "half"


def test_a_client_that_is_gone_before_the_answer_has_its_beacon_stored(running: Serve, sandbox: SandboxProcess) -> None:
    """Pages are left while their beacons fly."""
    proxy = running()
    for n in range(20):
        connection = connect(proxy)
        connection.sendall(f"GET /e?_n=gone{n}&_p=me HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        connection.close()
    assert len(sandbox.wait(20)) == 20


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((b"GET /e?_n=", b"x" * 8192), id="request line"),
        pytest.param((b"GET /e?_n=a&_p=b HTTP/1.1\r\n", b"X-Filler: " + b"y" * 4000 + b"\r\n"), id="headers"),
        pytest.param(
            (b"POST /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"2000\r\n" + b"z" * 0x2000 + b"\r\n"), id="body"
        ),
        pytest.param((b"POST /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: y\r\n" * 500), id="trailers"),
    ],
)
def test_endless_input_is_ended(running: Serve, endless: tuple[bytes, bytes]) -> None:
    """After a bounded number of bytes, with an answer or without; never with memory."""
    proxy = running()
    begin, more = endless
    connection = connect(proxy)
    connection.sendall(begin)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 64 * 1024 * 1024:
            connection.sendall(more)
            sent += len(more)
    assert sent < 32 * 1024 * 1024
    assert httpx.get(f"{proxy.url}/e?_n=other&_p=me").status_code == 200


def test_many_idle_connections_do_not_keep_others_out(running: Serve) -> None:
    """Each costs a descriptor; the limit is raised to what the machine allows."""
    proxy = running()
    before = proxy.status()["delivered"]
    idle = [connect(proxy) for _ in range(800)]
    for n in range(20):
        assert httpx.get(f"{proxy.url}/e?_n={n}&_p=me", timeout=5).status_code == 200
    for connection in idle:
        connection.close()
    wait_for(lambda: proxy.status()["delivered"] == before + 20, "delivery")


WHOLE = b"POST /e?_n=A#1&x=\xc3\xa9 HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n_p=bob#17&y=2"


def test_a_request_is_read_the_same_wherever_its_segments_end(running: Serve, sandbox: SandboxProcess) -> None:
    """A "#" that was cut would make it somebody else's event. An empty line and two requests, cut at one place each time."""
    proxy = running()
    places = [1, 4, 5, 9, 12, 14, 18, 21, 27, 40, len(WHOLE) - 14, len(WHOLE) - 13, len(WHOLE) - 1]
    for at in places:
        with connect(proxy) as connection:
            for part in (b"\r\n" + WHOLE[:at], WHOLE[at:] + WHOLE[:at], WHOLE[at:]):
                connection.sendall(part)
                time.sleep(0.02)
            got = b""
            while got.count(b"GIF89a") < 2:
                chunk = connection.recv(4096)
                assert chunk, (at, got)
                got += chunk
            assert got.count(b"HTTP/1.1 200") == 2
    beacons = sandbox.wait(2 * len(places))
    assert {(b["params"]["_n"], b["params"]["_p"], b["params"]["x"]) for b in beacons} == {("A#1", "bob#17", "é")}


def test_a_body_is_never_read_as_a_request(running: Serve, sandbox: SandboxProcess) -> None:
    """Smuggling: a request in the body of one that was answered before its body came."""
    proxy = running()
    for first in (b"POST /nothing", b"PUT /e", b"OPTIONS /e", b"HEAD /e"):
        connection = connect(proxy)
        inner = b"GET /e?_n=SMUGGLED&_p=evil HTTP/1.1\r\nHost: a\r\n\r\n"
        body = b"GET /" + b"#" * 60 + b" x\n" + b" " * 100 + inner
        connection.sendall(first + b" HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.recv(4096)
        connection.sendall(body)
        connection.sendall(b"GET /e?_n=honest&_p=me HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answers = ended(connection)
        assert answers.count(b"HTTP/1.1 200") == 1, (first, answers)
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(4)} == {"honest"}


def test_an_upgrade_is_not_taken_up_and_the_body_is_read(running: Serve, sandbox: SandboxProcess) -> None:
    """curl --http2 and others ask for h2c in passing."""
    proxy = running()
    for protocol in (b"h2c", b"websocket"):
        connection = connect(proxy)
        body = b"_n=up-" + protocol + b"&_p=me"
        head = b"POST /e HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % (protocol, len(body)))
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(2)} == {"up-h2c", "up-websocket"}


def test_a_request_line_that_is_too_long_is_dropped_and_counted_like_a_body(inside: Inside) -> None:
    """The page gets its GIF, the ledger its count."""
    proxy = inside()
    for size in (61_000, 66_000, 100_000):
        connection = connect(proxy)
        connection.sendall(b"GET /e?_n=a&_p=b&x=" + b"y" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    wait_for(lambda: proxy.status()["dropped"] == {"too_large": 2}, "the drops")


def test_who_resets_before_he_is_known_is_believed_nothing(inside: Inside, sandbox: SandboxProcess) -> None:
    """Without an address he would pass for a Unix socket, which is trusted: he could choose his address and his time."""
    proxy = inside(trusted_proxies="203.0.113.0/24", address_property="Address", addresses="keep")
    stamp = f"{time.time() - 250:.3f} {'0' * 32}"
    request = f"GET /e?_n=Reset&_p=me HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 8.8.8.8\r\nX-Beacon-Stamp: {stamp}\r\n\r\n"
    began = time.time()
    for _ in range(200):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.connect(("127.0.0.1", proxy.port))
            client.sendall(request.encode())
    assert httpx.get(f"{proxy.url}/e?_n=Last&_p=me").status_code == 200
    wait_for(lambda: "Last" in {beacon["params"]["_n"] for beacon in sandbox.beacons()}, "what came after")
    for beacon in sandbox.beacons():
        assert beacon["params"]["Address"] == "127.0.0.1"
        assert int(beacon["params"]["_t"]) >= int(began)


def test_a_request_has_its_whole_time_however_long_the_connection_was_idle(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time between two requests is none of the second's: it would be cut off if its head came in two pieces."""
    monkeypatch.setattr("proxy.collector.server.SWEEP_S", 0.1)
    monkeypatch.setattr("proxy.collector.server.REQUEST_S", 3.0)
    connection = connect(inside())  # type: ignore[arg-type]
    request = b"GET /e?_n=a&_p=me HTTP/1.1\r\nHost: a\r\n\r\n"

    def waited(seconds: float) -> None:
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > seconds, "sweeps")

    def answered() -> bool:
        with contextlib.suppress(ConnectionError):
            return connection.recv(65_536).startswith(b"HTTP/1.1 200")
        return False

    connection.sendall(request)
    assert answered()
    waited(3.5)
    connection.sendall(request[:20])
    waited(0.5)
    connection.sendall(request[20:])
    assert answered()
    waited(0.5)
    connection.sendall(request[:20])
    assert ended(connection) == b"", "one that never arrives is still cut off"
