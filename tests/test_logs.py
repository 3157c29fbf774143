"""What the log holds and what it never holds: lines of a real `serve` through a bad day, and the promises of proxy/log.py."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, children, wait_for

from proxy import log as logging
from proxy.log import Trouble

Serve = Callable[..., ProxyProcess]
SENT = (
    "Bought-Teapot",
    "ann@example.com",
    "198.51.100.77",
    "Colour",
    "Celadon",
    "UA-of-Ann",
    "page-she-saw",
    "km_ni",
    "cookie-of-ann",
)


def lines(proxy: ProxyProcess) -> list[dict[str, Any]]:
    """Every line of the log, each of which must be JSON with what a log shipper needs."""
    found = [json.loads(line) for line in proxy.log.read_text().splitlines()]
    for line in found:
        assert line["event"]
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
    return found


def events(proxy: ProxyProcess) -> list[str]:
    return [line["event"] for line in lines(proxy)]


def some_traffic(proxy: ProxyProcess, n: int) -> None:
    headers = {
        "user-agent": "UA-of-Ann",
        "referer": "https://shop.example/page-she-saw",
        "x-forwarded-for": "198.51.100.77",
        "cookie": "km_ni=cookie-of-ann",
    }
    with httpx.Client(base_url=proxy.url, headers=headers) as client:
        for _ in range(n):
            assert client.get("/e?_n=Bought-Teapot&Colour=Celadon&_p=ann@example.com").status_code == 200
            assert client.post("/s", content="Colour=Celadon&_p=ann@example.com").status_code == 200


def bad_clients(port: int) -> None:
    """Bytes that are no HTTP, half a request, an absurd head."""
    for said in (b"\x16\x03\x01Bought-Teapot\r\n\r\n", b"GET /e?_n=Bought-Teapot HTTP/1.1\r\nho", b"Bought-Teapot" * 20_000):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            try:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                client.recv(1000)
            except OSError:
                pass


def test_a_bad_day_is_a_few_lines_and_none_of_them_holds_what_was_sent(serve: Serve, sandbox: SandboxProcess) -> None:
    """Traffic, hostile clients, an outage and its end, a killed process, a stop: a line for each change, none for a beacon."""
    proxy = serve(log_level="debug", workers="2")
    some_traffic(proxy, 50)
    sandbox.wait(100)
    calm = events(proxy)
    assert calm == ["listening", "started", "started", "started", "started"]
    bad_clients(proxy.port)
    sandbox.stop()
    some_traffic(proxy, 50)
    wait_for(lambda: "upstream takes nothing: waiting and probing" in events(proxy), "the outage in the log")
    back = SandboxProcess(sandbox.port)
    try:
        wait_for(lambda: "upstream takes beacons again" in events(proxy), "its end in the log")
        wait_for(lambda: proxy.status()["delivered"] == 200, "the backlog's end")
        os.kill(children(proxy.process.pid)[-1], signal.SIGKILL)
        wait_for(lambda: len(events(proxy)) == len(calm) + 4, "the restart in the log")
        proxy.stop()
    finally:
        back.stop()
    assert events(proxy)[len(calm) :] == [
        "upstream takes nothing: waiting and probing",
        "upstream takes beacons again",
        "died, will be restarted",
        "started",
    ]
    text = proxy.log.read_text()
    assert [secret for secret in (*SENT, API_KEY, "_k=", "_p=", "Traceback") if secret in text] == []


def test_a_full_spool_is_two_lines_however_many_beacons_are_refused(serve: Serve) -> None:
    """The hour in which the log is needed is not the hour to fill the disk with it."""
    proxy = serve(upstream="http://127.0.0.1:9", max_bytes="1MiB", concurrency="1")
    with httpx.Client() as client:
        answers = [client.post(f"{proxy.url}/e?_n=n&_p=p", content=b"v=" + b"x" * 60_000).status_code for _ in range(60)]
    assert answers.count(503) > 20
    assert events(proxy).count("refusing beacons") == 1
    assert [line["level"] for line in lines(proxy) if line["event"] == "refusing beacons"] == ["error"]


def test_the_format_is_a_setting(serve: Serve) -> None:
    """Some collect the log of a service for eyes, some read JSON on a terminal."""
    proxy = serve(log_format="console")
    text = wait_for(lambda: (found := proxy.log.read_text()).count("started") == 3 and found, "the start in the log")
    assert not text.startswith("{")
    assert "\x1b" not in text
    assert "url=" in text


def said(code: str, **over: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **over)


def test_what_nobody_caught_and_what_libraries_say_are_lines_too_and_bear_no_messages() -> None:
    """An exception's message may hold what a visitor sent; where it happened is enough to find the mistake."""
    done = said(
        "import logging, threading\n"
        "from proxy.log import configure, own_process\n"
        "configure('info', 'json')\n"
        "own_process()\n"
        "def fail(): int('ann@example.com')\n"
        "thread = threading.Thread(target=fail, name='spool-writer'); thread.start(); thread.join()\n"
        "try:\n    fail()\n"
        "except ValueError:\n    logging.getLogger('uvicorn.error').exception('Exception in ASGI\\nann@example.com')\n"
        "logging.getLogger('anything').info('not worth it')\n"
        "try:\n    fail()\nexcept ValueError as e:\n    raise RuntimeError('ann@example.com') from e\n"
    )
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["level"]) for line in found] == [
        ("unexpected error", "critical"),
        ("Exception in ASGI", "error"),
        ("unexpected error", "critical"),
    ]
    assert [line.get("thread") for line in found] == ["spool-writer", None, None]
    assert "ValueError" in found[0]["exception"]
    assert ["RuntimeError" in found[2]["exception"], "ValueError" in found[2]["exception"]] == [True, True]
    assert [line["exception"].count("in fail") for line in found] == [1, 1, 1]
    assert "ann@" not in done.stderr.replace("int('ann@example.com')", "")
    assert done.returncode == 1


def test_a_reader_of_the_log_who_goes_away_stops_nothing() -> None:
    """`serve 2>&1 | head` must not make the writer of the spool fail."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-c", "from proxy.log import log\nlog.error('one')\nlog.error('two')\nprint('goes on')"],
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(theirs)
    assert done.stdout == "goes on\n"


def test_inside_another_application_its_logging_stays_as_it_is() -> None:
    """Ours goes to standard error as JSON, and shows no values, without anybody having configured it."""
    done = said(
        "import logging, structlog\n"
        "structlog.configure(processors=[lambda *_: 'the host said so'], logger_factory=structlog.PrintLoggerFactory())\n"
        "from proxy.log import log\n"
        "structlog.get_logger().info('x')\n"
        "try:\n    key = 'the-key'; raise ValueError(key)\n"
        "except ValueError:\n    log.exception('ours')\n"
        "log.debug('too quiet')\n"
        "assert not logging.getLogger().handlers\n"
    )
    assert done.stdout == "the host said so\n"
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["event"], line["level"]) == ("ours", "error")
    assert "the-key" not in done.stderr
    assert done.returncode == 0


def test_what_flaps_is_told_once_in_a_while_and_what_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines a second for days would hide everything else; but a trouble that began in the quiet must not stay untold."""
    now = [0.0]
    monkeypatch.setattr(logging, "time", SimpleNamespace(monotonic=lambda: now[0]))
    trouble = Trouble()
    assert [trouble.begins(), trouble.begins(), trouble.ends(), trouble.ends()] == [True, False, True, False]
    now[0] = 1.0
    assert [trouble.begins(), trouble.ends(), trouble.begins()] == [False, False, False]
    now[0] = logging.QUIET_S
    assert [trouble.begins(), trouble.begins(), trouble.ends()] == [True, False, True]


def test_every_event_that_can_be_logged_is_explained_to_operators() -> None:
    """The list in docs/operations.md is whole."""
    root = Path(__file__).resolve().parent.parent
    told = (root / "docs" / "operations.md").read_text().partition("## The log")[2]
    named = [start.rstrip(" …") for start in re.findall(r"`([^`]+)`", told)]
    logged = set()
    for file in (root / "proxy").rglob("*.py"):
        logged |= set(re.findall(r"log\.(?:debug|info|warning|error|exception|critical)\(\s*\"([^\"]+)\"", file.read_text()))
    assert len(logged) > 15
    assert {event for event in logged if not any(event.startswith(name) for name in named)} == set()
