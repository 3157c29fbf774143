"""`proxy.wsgi:app` under a real gunicorn with threads and without the key; `beacon-proxy forward` beside it holds the key."""

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, children, clean_environment, free_port, kill_tree, listening, wait_for


class GunicornProcess:
    """The collector as a WSGI host runs it."""

    def __init__(self, spool: Path, port: int | None = None, **settings: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = spool.parent / "gunicorn.log"
        settings = {"SPOOL": f"sqlite:{spool}", **settings}
        environment = clean_environment(**{f"BEACON_PROXY_{name.upper()}": value for name, value in settings.items()})
        command = ["gunicorn", "proxy.wsgi:app", "--worker-class", "gthread", "--threads", "8", "--workers", "2"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, "-b", f"127.0.0.1:{self.port}"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: listening(self.port) and len(children(self.process.pid)) == 2, "gunicorn")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        kill_tree(self.process.pid)
        self.process.wait()


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., GunicornProcess]]:
    """Starts gunicorn on the test's spool. Whatever was started is ended."""
    started: list[GunicornProcess] = []

    def start(port: int | None = None, **settings: str) -> GunicornProcess:
        started.append(GunicornProcess(tmp_path / "spool", port, **settings))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


@pytest.fixture
def forward(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[ProxyProcess]:
    """`beacon-proxy forward` on the test's spool."""
    process = ProxyProcess(tmp_path / "spool", sandbox.url, command="forward")
    yield process
    if process.process.poll() is None:
        process.kill()


Gunicorn = Callable[..., GunicornProcess]


def test_every_way_of_sending_a_beacon_reaches_the_vendor(
    gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess
) -> None:
    """The threaded edge takes what the other edge takes: query, form, text/plain, both together, and chunked."""
    url = gunicorn().url
    plain = {"content-type": "text/plain;charset=UTF-8"}
    answers = [
        httpx.get(f"{url}/e?_n=get&_p=me&Plan=Pro"),
        httpx.post(f"{url}/e", data={"_n": "form", "_p": "me", "Plan": "Pro"}),
        httpx.post(f"{url}/e", content="_n=plain&_p=me&Plan=Pro", headers=plain),
        httpx.post(f"{url}/e?_n=both", content="_p=me&Plan=Pro", headers=plain),
        httpx.request("GET", f"{url}/e?_n=get+body", content="_p=me&Plan=Pro"),
        httpx.post(f"{url}/e?_n=chunked", content=iter([b"_p=", b"me&Plan=", b"Pro"])),
    ]
    for answer in answers:
        assert (answer.status_code, answer.content[:6], len(answer.content)) == (200, b"GIF89a", 43)
        assert "no-store" in answer.headers["cache-control"]
        assert API_KEY not in answer.text + str(answer.headers)
    beacons = sandbox.wait(6)
    assert {beacon["params"]["_n"] for beacon in beacons} == {"get", "form", "plain", "both", "get body", "chunked"}
    assert {(b["params"]["_k"], b["params"]["_p"], b["params"]["Plan"]) for b in beacons} == {(API_KEY, "me", "Pro")}


def test_methods_and_paths_under_wsgi(gunicorn: Gunicorn, forward: ProxyProcess) -> None:
    """HEAD and OPTIONS store nothing, other methods are refused with Allow, other paths are 404."""
    url = gunicorn(prefix="/x7").url
    head = httpx.head(f"{url}/x7/e?_n=a&_p=b")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "43", b"")
    preflight = httpx.options(f"{url}/x7/s")
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for method in ("PUT", "DELETE", "PATCH"):
        wrong = httpx.request(method, f"{url}/x7/a", content=b"")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert {httpx.get(f"{url}{path}?_n=a&_p=b").status_code for path in ("/", "/e", "/x7/e/", "/x7/z", "/x7/e/../x")} == {404}
    assert forward.status()["received"] == 0


@pytest.mark.parametrize("size", [66_000, 200_000, 900_000])
def test_a_beacon_that_is_too_large_is_answered_and_counted(gunicorn: Gunicorn, forward: ProxyProcess, size: int) -> None:
    """The page must not break, the connection stays usable, and the ledger tells."""
    with httpx.Client(base_url=gunicorn().url) as client:
        answer = client.post("/e?_n=big&_p=me", content=b"x=" + b"y" * size)
        assert (answer.status_code, len(answer.content)) == (200, 43)
        assert client.get("/e?_n=next&_p=me").status_code == 200
    status = wait_for(lambda: (found := forward.status())["delivered"] == 1 and found, "the next beacon's delivery")
    assert status["dropped"] == {"too_large": 1}


def test_bytes_that_mean_nothing_break_nothing(gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess) -> None:
    """Anyone can send anything: raw bytes in headers and body, broken escapes, a body that ends early. (Raw bytes in the
    request line gunicorn refuses by itself.)"""
    process = gunicorn()
    head = b"Host: shop.example\r\nUser-Agent: \xff\xfe\r\nReferer: http://caf\xe9/\r\nConnection: close\r\n"
    body = b"_p=me&v=\xff\xfe\x00%zz%"
    requests = [
        b"GET /e?_n=raw&_p=me&v=%ff%c3%28%00%zz% HTTP/1.1\r\n" + head + b"\r\n",
        b"POST /e?_n=body HTTP/1.1\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
    ]
    for request in requests:
        with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(b"POST /e?_n=early&_p=me HTTP/1.1\r\n" + head + b"Content-Length: 100\r\n\r\nv=1")
    assert httpx.get(f"{process.url}/e?_n=after&_p=me").status_code == 200
    wait_for(lambda: {"raw", "body", "after"} <= {beacon["params"]["_n"] for beacon in sandbox.beacons()}, "all beacons")
    assert {beacon["params"]["_k"] for beacon in sandbox.beacons()} == {API_KEY}
    assert "Traceback" not in process.log.read_text()


def test_many_threads_at_once_lose_nothing(gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess) -> None:
    """Many threads share one commit; every one of them is told the truth."""
    url = gunicorn().url

    def send(who: int) -> list[str]:
        with httpx.Client(base_url=url, timeout=30) as client:
            names = [f"{who}.{n}" for n in range(25)]
            return [name for name in names if client.post("/e", content=f"_n={name}&_p=me").status_code == 200]

    with ThreadPoolExecutor(32) as pool:
        answered = [name for names in pool.map(send, range(32)) for name in names]
    assert len(answered) == 800
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(800)} == set(answered)
    wait_for(lambda: forward.status()["pending"] == 0, "everything settled")
    assert forward.status()["received"] == forward.status()["delivered"] == 800


def test_no_process_of_the_wsgi_server_has_the_key(gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess) -> None:
    """The server that faces the internet works without it."""
    process = gunicorn()
    assert httpx.get(f"{process.url}/e?_n=a&_p=b").status_code == 200
    assert sandbox.wait(1)[0]["params"]["_k"] == API_KEY
    for pid in (process.process.pid, *children(process.process.pid)):
        assert API_KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    assert process.stop() == 0
    assert API_KEY not in process.log.read_text()


def test_kill_9_of_gunicorn_under_load_loses_no_answered_beacon(
    gunicorn: Gunicorn, forward: ProxyProcess, sandbox: SandboxProcess
) -> None:
    """A 200 is a promise here too: one worker killed, then the whole tree, again and again."""
    answered: list[str] = []
    port = free_port()
    for round in range(4):
        process = gunicorn(port)
        stop = threading.Event()
        threads = [threading.Thread(target=_load, args=(port, f"{round}.{n}", answered, stop), daemon=True) for n in range(8)]
        for thread in threads:
            thread.start()
        goal = len(answered) + 150 + 60 * round
        wait_for(lambda goal=goal: len(answered) >= goal, "answers under load")
        if round == 0:
            os.kill(children(process.process.pid)[0], 9)
            wait_for(lambda goal=goal: len(answered) >= goal + 100, "answers after a worker's death")
        process.kill()
        stop.set()
        for thread in threads:
            thread.join(10)
    gunicorn(port)
    wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/e?_n=last&_p=me").status_code == 200, "gunicorn again")
    wait_for(lambda: forward.status()["pending"] == 0, "the backlog's end")
    copies: dict[str, set[str]] = {}
    for beacon in sandbox.beacons():
        copies.setdefault(beacon["params"]["_n"], set()).add(beacon["query"])
    assert len(answered) > 700
    assert set(answered) - set(copies) == set()
    assert [name for name, queries in copies.items() if name != "last" and len(queries) > 1] == []
    status = forward.status()
    assert status["received"] == status["delivered"] > len(answered)


def _load(port: int, who: str, answered: list[str], stop: threading.Event) -> None:
    """Keep-alive beacons; a name is noted only after a complete 200 was read. A lost connection is made anew."""
    n = 0
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            while not stop.is_set():
                n += 1
                connection.request("GET", f"/e?_n={who}.{n}&_p=me")
                answer = connection.getresponse()
                if answer.status == 200 and len(answer.read()) == 43:
                    answered.append(f"{who}.{n}")
        except (OSError, http.client.HTTPException):
            stop.wait(0.02)
        finally:
            connection.close()
