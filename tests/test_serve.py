"""`serve`, as a user runs it: real processes, real sockets, the sandbox as the vendor."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, children, free_port, listening, wait_for

Serve = Callable[..., ProxyProcess]


def test_a_beacon_goes_in_without_the_key_and_reaches_the_vendor_with_it(running: Serve, sandbox: SandboxProcess) -> None:
    """The main job."""
    proxy = running()
    answer = httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me&Plan=Pro")
    assert (answer.status_code, len(answer.content)) == (200, 43)
    assert answer.content.startswith(b"GIF89a")
    assert API_KEY not in str(answer.headers) + answer.text
    [beacon] = sandbox.wait(1)
    assert beacon["kind"] == "e"
    assert {name: beacon["params"][name] for name in ("_k", "_p", "_n", "_d", "Plan")} == {
        "_k": API_KEY,
        "_p": "me",
        "_n": "Viewed",
        "_d": "1",
        "Plan": "Pro",
    }
    assert abs(int(beacon["params"]["_t"]) - time.time()) < 30


def test_every_answer_forbids_every_cache_to_keep_it(running: Serve) -> None:
    """A cached pixel is a beacon that never arrives."""
    headers = httpx.get(f"{running().url}/e?_n=Viewed&_p=me").headers
    assert "no-store" in headers["cache-control"]
    assert headers["cdn-cache-control"] == headers["surrogate-control"] == "no-store"
    assert headers["content-length"] == "43"


@pytest.mark.parametrize(
    "evil", ["_k=EVIL", "%5Fk=EVIL", "%5f%6b=EVIL", "_K=EVIL", "_k[]=EVIL", "+_k=EVIL", ".k=EVIL", "_k=EVIL&_k=EVIL2"]
)
def test_a_clients_own_key_never_goes_upstream(running: Serve, sandbox: SandboxProcess, evil: str) -> None:
    """The key is the server's, however the client writes its own."""
    proxy = running()
    httpx.post(f"{proxy.url}/e?{evil}&_n=Viewed&_p=me", content=evil, headers={"content-type": "text/plain"})
    [beacon] = sandbox.wait(1)
    assert "EVIL" not in beacon["query"] + beacon["body"]
    assert [value for name, value in beacon["pairs"] if name == "_k"] == [API_KEY]


def test_query_and_body_are_read_together(running: Serve, sandbox: SandboxProcess) -> None:
    """sendBeacon posts text/plain; forms post urlencoded; a real client sends a GET with a body."""
    proxy = running()
    httpx.post(f"{proxy.url}/e?_n=One", content="_p=me&Plan=Pro", headers={"content-type": "text/plain;charset=UTF-8"})
    httpx.post(f"{proxy.url}/e", data={"_n": "Two", "_p": "me", "Plan": "Pro"})
    httpx.request("GET", f"{proxy.url}/e", content=iter([b"_n=Three&", b"_p=me&Plan=Pro"]))
    beacons = sandbox.wait(3)
    assert {beacon["params"]["_n"] for beacon in beacons} == {"One", "Two", "Three"}
    assert all(beacon["params"]["Plan"] == "Pro" for beacon in beacons)


def test_methods_and_paths(serve: Serve) -> None:
    """HEAD and OPTIONS store nothing, other methods are refused with Allow, other paths are 404."""
    proxy = serve(prefix="/x7/y")
    base = f"{proxy.url}/x7/y"
    head = httpx.head(f"{base}/e?_n=a&_p=b")
    assert (head.status_code, head.headers["content-length"]) == (200, "43")
    preflight = httpx.options(f"{base}/s")
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]
    wrong = httpx.delete(f"{base}/a")
    assert wrong.status_code == 405
    assert "GET" in wrong.headers["allow"]
    assert {httpx.get(f"{proxy.url}{path}").status_code for path in ("/e", "/x7/e", "/x7/y/e/", "/x7/y/z", "/")} == {404}
    assert proxy.status()["received"] == 0


def test_a_beacon_that_is_too_large_is_dropped_and_counted(serve: Serve, sandbox: SandboxProcess) -> None:
    """Limits are kept without an error: the page must not break, and the ledger tells."""
    proxy = serve()
    answer = httpx.post(f"{proxy.url}/e?_n=big&_p=me", content=b"x=" + b"y" * 200_000)
    assert (answer.status_code, len(answer.content)) == (200, 43)
    wait_for(lambda: proxy.status()["dropped"] == {"too_large": 1}, "the drop in the ledger")


def test_a_full_spool_is_answered_503_with_the_gif(serve: Serve, tmp_path: Path) -> None:
    """What could not be stored is not promised; what was stored stays."""
    proxy = serve(upstream="http://127.0.0.1:9", max_bytes="1MiB", concurrency="1")
    with httpx.Client() as client:
        answers = [client.post(f"{proxy.url}/e?_n=n&_p=p", content=b"v=" + b"x" * 60_000) for _ in range(30)]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 503
    assert answers[-1].content == answers[0].content
    stored = sum(answer.status_code == 200 for answer in answers)
    status = wait_for(lambda: (found := proxy.status())["received"] == stored and found, "the ledger")
    assert status["pending"] == stored


def test_the_vendor_being_away_costs_the_visitor_nothing_and_loses_nothing(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """Beacons wait in the spool and are delivered when the vendor is back."""
    sandbox.stop()
    proxy = serve()
    began = time.monotonic()
    assert all(httpx.get(f"{proxy.url}/e?_n={n}&_p=me").status_code == 200 for n in range(20))
    assert time.monotonic() - began < 10
    assert proxy.status()["pending"] == 20
    back = SandboxProcess(sandbox.port)
    try:
        assert {beacon["params"]["_n"] for beacon in back.wait(20)} == {str(n) for n in range(20)}
        wait_for(lambda: proxy.status()["delivered"] == 20, "the settlements")
    finally:
        back.stop()


def test_the_ledger_balances_and_can_be_read_running_or_not(serve: Serve, sandbox: SandboxProcess) -> None:
    """received = delivered + dropped + dead + pending."""
    proxy = serve(workers="2", identity="false")
    for query in ("_n=Viewed&_p=me", "_p=me", "_n=Viewed", "_n=Viewed&_p=" + "x" * 300):
        httpx.get(f"{proxy.url}/e?{query}")
    wait_for(lambda: proxy.status()["pending"] == 0, "everything settled")
    assert proxy.status_command()["received"] == 4
    assert proxy.stop() == 0
    status = proxy.status_command()
    assert status["received"] == 4
    assert status["delivered"] == 1
    assert status["dropped"] == {"no_person": 1, "no_name": 1, "person_too_long": 1}
    assert status["received"] == status["delivered"] + sum(status["dropped"].values()) + status["dead"] + status["pending"]


def test_sigterm_ends_serve_with_status_0_and_leaves_the_rest_in_the_spool(serve: Serve, tmp_path: Path) -> None:
    """A deploy in the middle of an outage."""
    proxy = serve(upstream="http://127.0.0.1:9")
    httpx.get(f"{proxy.url}/e?_n=a&_p=b")
    below = children(proxy.process.pid)
    assert proxy.stop() == 0
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert proxy.status()["pending"] == 1


def test_sigint_to_the_whole_group_ends_serve_with_status_0(serve: Serve) -> None:
    """Ctrl-C reaches every process of the terminal's group at once."""
    proxy = serve(workers="2")
    os.killpg(proxy.process.pid, signal.SIGINT)
    assert proxy.process.wait(timeout=15) == 0


def test_a_child_that_dies_is_restarted(serve: Serve, sandbox: SandboxProcess) -> None:
    """Any process may be killed at any instant, and comes back."""
    proxy = serve()
    before = set(children(proxy.process.pid))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(set(children(proxy.process.pid)) - before) == len(before), "new children")
    assert httpx.get(f"{proxy.url}/e?_n=again&_p=me", timeout=15).status_code == 200
    assert sandbox.wait(1)[0]["params"]["_n"] == "again"


def test_children_go_when_their_supervisor_is_killed(serve: Serve) -> None:
    """No orphan keeps the port or the spool."""
    proxy = serve()
    below = children(proxy.process.pid)
    os.kill(proxy.process.pid, signal.SIGKILL)
    proxy.process.wait()
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], "the children's end")


def test_the_key_is_in_no_process_that_faces_the_internet(serve: Serve) -> None:
    """Not in a collector's environment, arguments or memory-mapped configuration; not in any argument list at all."""
    proxy = serve(workers="2")
    for pid in children(proxy.process.pid):
        for file in ("environ", "cmdline"):
            assert API_KEY.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    assert API_KEY not in proxy.log.read_text()


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_kill_9_of_the_whole_tree_under_load_loses_no_answered_beacon(
    serve: Serve, sandbox: SandboxProcess, durability: str
) -> None:
    """A 200 is a promise: every beacon answered 200 reaches the vendor, and every further copy of it is identical."""
    answered: list[str] = []
    port = 0
    for round in range(4):
        proxy = serve(durability=durability, workers="2", **({"port": port} if port else {}))
        port = proxy.port
        stop = threading.Event()
        threads = [threading.Thread(target=_load, args=(port, f"{round}.{n}", answered, stop), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        goal = len(answered) + 150 + 70 * round
        wait_for(lambda goal=goal: len(answered) >= goal, "answers under load")
        proxy.kill()
        stop.set()
        for thread in threads:
            thread.join(10)
    proxy = serve(durability=durability, workers="1", port=port)
    wait_for(lambda: proxy.status()["pending"] == 0, "the backlog's end")
    copies: dict[str, set[str]] = {}
    for beacon in sandbox.beacons():
        copies.setdefault(beacon["params"]["_n"], set()).add(beacon["query"])
    assert len(answered) > 600
    assert set(answered) - set(copies) == set()
    assert [name for name, queries in copies.items() if len(queries) > 1] == []
    status = proxy.status()
    assert status["received"] == status["delivered"] >= len(answered)


def _load(port: int, who: str, answered: list[str], stop: threading.Event) -> None:
    """Keep-alive beacons on a raw socket; a name is noted only after a complete 200 was read."""
    n = 0
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            while not stop.is_set():
                n += 1
                name = f"{who}.{n}"
                connection.sendall(f"GET /e?_n={name}&_p=me HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode())
                answer = b""
                while not answer.endswith(b"\x01\x00;"):
                    chunk = connection.recv(4096)
                    if not chunk:
                        return
                    answer += chunk
                if re.match(rb"HTTP/1.1 200 ", answer):
                    answered.append(name)
    except OSError:
        return


def test_the_admin_listener_tells_health_readiness_and_the_ledger(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Ready means: can keep its promise. The upstream being away is not unready; a full spool is."""
    sandbox.stop()
    port = free_port()
    proxy = serve(admin_port=str(port), max_bytes="1MiB", concurrency="1")
    admin = f"http://127.0.0.1:{port}"
    wait_for(lambda: listening(port) and httpx.get(f"{admin}/readyz").status_code == 200, "readiness")
    assert httpx.get(f"{admin}/healthz").status_code == 200
    while httpx.post(f"{proxy.url}/e?_n=n&_p=p", content=b"v=" + b"x" * 60_000).status_code == 200:
        assert httpx.get(f"{admin}/healthz").status_code == 200
    unready = wait_for(lambda: (answer := httpx.get(f"{admin}/readyz")).status_code == 503 and answer, "redness")
    assert "full" in unready.text
    ledger = httpx.get(f"{admin}/").json()
    assert ledger["pending"] == ledger["received"] > 0
    assert httpx.get(f"{proxy.url}/healthz").status_code == 404
