"""Clients that are slow, rude or hostile: bounded, and nobody else notices."""

import contextlib
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, wait_for

Serve = Callable[..., ProxyProcess]
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


def test_a_client_that_closes_its_half_still_gets_its_answer(serve: Serve, sandbox: SandboxProcess) -> None:
    """`printf … | nc` does that."""
    proxy = serve()
    connection = connect(proxy)
    connection.sendall(b"GET /e?_n=half&_p=me HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    answer = ended(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b";")
    assert sandbox.wait(1)[0]["params"]["_n"] == "half"


def test_a_client_that_is_gone_before_the_answer_has_its_beacon_stored(serve: Serve, sandbox: SandboxProcess) -> None:
    """Pages are left while their beacons fly."""
    proxy = serve()
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
def test_endless_input_is_ended(serve: Serve, endless: tuple[bytes, bytes]) -> None:
    """After a bounded number of bytes, with an answer or without; never with memory."""
    proxy = serve()
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


def test_many_idle_connections_do_not_keep_others_out(serve: Serve) -> None:
    """Each costs a descriptor; the limit is raised to what the machine allows."""
    proxy = serve()
    idle = [connect(proxy) for _ in range(800)]
    for n in range(20):
        assert httpx.get(f"{proxy.url}/e?_n={n}&_p=me", timeout=5).status_code == 200
    for connection in idle:
        connection.close()
    wait_for(lambda: proxy.status()["delivered"] == 20, "delivery")
