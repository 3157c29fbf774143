"""What `serve` and `forward` are to a service manager: real notification sockets, real socket activation, real signals."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import (
    API_KEY,
    DEADLINE_S,
    SandboxProcess,
    children,
    clean_environment,
    free_port,
    kill_tree,
    listening,
    need,
    wait_for,
)

from proxy.cli.service import Service

PYTHON = [sys.executable, "-m", "proxy"]


class Manager:
    """The end of a notification socket that systemd would hold, and the process that it started."""

    def __init__(self, directory: Path, upstream: str, *command: str, port: int = 0, abstract: bool = False, **more: str) -> None:
        self.told: list[tuple[float, str]] = []
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._short = tempfile.TemporaryDirectory(prefix="bp")  # a socket's name has 107 bytes at most
        name = f"@{self._short.name}" if abstract else f"{self._short.name}/notify"
        self._ear.bind(name.replace("@", "\0"))
        self.key = directory / "key"
        self.key.write_text(API_KEY)
        self.config = directory / "beacon-proxy.toml"
        self.config.touch()
        self.log = directory / "service.log"
        self.environment = clean_environment(
            **{
                "NOTIFY_SOCKET": name,
                "BEACON_PROXY_CONFIG": str(self.config),
                "BEACON_PROXY_API_KEY_FILE": str(self.key),
                "BEACON_PROXY_UPSTREAM": upstream,
                "BEACON_PROXY_SPOOL": f"sqlite:{directory / 'spool'}",
                "BEACON_PROXY_PORT": str(self.port),
                "BEACON_PROXY_ADMIN_PORT": "0",
                "BEACON_PROXY_ENRICHERS": "page",
                **more,
            }
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._ear.recv(4096):
                self.told.append((time.monotonic(), message.decode()))

    def words(self) -> list[str]:
        return [message.partition("\n")[0] for _, message in self.told]

    def hears(self, word: str, times: int = 1) -> None:
        wait_for(lambda: self.words().count(word) >= times or self.process.poll() is not None, f"{word} x {times}")
        assert self.words().count(word) >= times, self.log.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def below(self, supervisor: int | None = None) -> dict[str, int]:
        """The children: process id by role."""
        found = {}
        for pid in children(supervisor or self.process.pid):
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if "proxy.cli.child" in arguments:
                    found[arguments[arguments.index("proxy.cli.child") + 1]] = pid
        return found

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            kill_tree(self.process.pid)
            self.process.wait()
        self._ear.shutdown(socket.SHUT_RDWR)
        self._listener.join(5)
        self._ear.close()
        self._short.cleanup()


Start = Callable[..., Manager]


@pytest.fixture
def start(tmp_path: Path, sandbox: SandboxProcess) -> Iterator[Start]:
    started: list[Manager] = []

    def start(*command: str, **more: Any) -> Manager:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Manager(directory, sandbox.url, *(command or (*PYTHON, "serve")), **more))
        return started[-1]

    yield start
    for manager in started:
        manager.close()


class Visitors:
    """Beacons without end, each on a connection of its own; a name is `answered` after a whole 200, or stands in `failed`."""

    def __init__(self, port: int, count: int = 3) -> None:
        self.answered: list[str] = []
        self.failed: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(n,), daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _visit(self, who: int) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            name = f"{who}.{n}"
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=15) as connection:
                    request = f"GET /e?_n={name}&_p=me HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"
                    connection.sendall(request.encode())
                    answer = b""
                    while chunk := connection.recv(4096):
                        answer += chunk
                whole = answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\x01\x00;")
                self.answered.append(name) if whole else self.failed.append(f"{name}: {answer[:60]!r}")
            except OSError as error:
                self.failed.append(f"{name}: {error}")

    def more(self, n: int = 20) -> None:
        """Until that many more were answered."""
        goal = len(self.answered) + n
        wait_for(lambda: len(self.answered) >= goal or self.failed, f"{n} more answers")

    def leave(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        return self.answered


def all_delivered(sandbox: SandboxProcess, names: list[str]) -> list[dict[str, Any]]:
    """Every beacon at the vendor, once each of these is there."""
    wait_for(lambda: set(names) <= {beacon["params"]["_n"] for beacon in sandbox.beacons()}, "each answered beacon upstream")
    beacons = sandbox.beacons()
    copies: dict[str, set[str]] = {}
    for beacon in beacons:
        copies.setdefault(beacon["params"]["_n"], set()).add(beacon["params"]["_t"])
    assert [name for name, times in copies.items() if len(times) > 1] == []
    return beacons


@pytest.mark.parametrize("abstract", [False, True], ids=["a file", "an abstract name"])
def test_ready_is_said_once_a_beacon_can_be_stored_and_not_before(start: Start, tmp_path: Path, abstract: bool) -> None:
    """What is ordered after the service, nginx for example, may send visitors at once."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(f"import sys\nif 'collector' in sys.orig_argv: open({str(gate)!r}).read()\n")
    manager = start(abstract=abstract, PYTHONPATH=str(slow))
    wait_for(lambda: set(manager.below()) == {"collector", "forwarder", "admin"}, "the children")
    with gate.open("w"):  # returns when the collector has come there: it cannot take beacons yet
        assert manager.told == []
    manager.hears("READY=1")
    assert httpx.get(f"{manager.url}/e?_n=first&_p=me").status_code == 200


def test_the_end_is_said_and_ready_is_said_only_once(start: Start) -> None:
    """A manager that hears of the end does not take it for a failure."""
    manager = start()
    manager.hears("READY=1")
    assert manager.stop() == 0
    manager.hears("STOPPING=1")
    assert manager.words() == ["READY=1", "STOPPING=1"]


@pytest.mark.parametrize("command", ["serve", "forward"])
def test_the_watchdog_is_patted_in_time(start: Start, command: str) -> None:
    """A manager restarts who falls silent; who is well must not be restarted."""
    manager = start(*PYTHON, command, WATCHDOG_USEC="1500000")
    manager.hears("READY=1")
    manager.hears("WATCHDOG=1", 4)
    times = [when for when, word in manager.told if word == "WATCHDOG=1"]
    assert max(later - earlier for earlier, later in pairwise(times)) < 1.5
    assert manager.stop() == 0
    manager.hears("STOPPING=1")


def test_a_watchdog_meant_for_another_process_is_not_patted(start: Start) -> None:
    """sd_watchdog_enabled(3): the variables may have been inherited."""
    manager = start(WATCHDOG_USEC="100000", WATCHDOG_PID="1", LISTEN_PID="1", LISTEN_FDS="1")
    manager.hears("READY=1")
    assert httpx.get(f"{manager.url}/e?_n=own+socket&_p=me").status_code == 200
    assert manager.stop() == 0
    assert "WATCHDOG=1" not in manager.words()


def test_a_forwarder_alone_is_ready_also_while_it_stands_by(start: Start, sandbox: SandboxProcess) -> None:
    """Two of them on one spool is a way to be safe; the manager must not think that the second never came up."""
    first = start(*PYTHON, "forward")
    first.hears("READY=1")
    second = start(*PYTHON, "forward", BEACON_PROXY_SPOOL=first.environment["BEACON_PROXY_SPOOL"])
    second.hears("READY=1")
    assert second.stop() == 0
    assert second.words() == ["READY=1", "STOPPING=1"]


def test_a_forwarder_alone_that_hangs_ends_and_says_where(start: Start) -> None:
    """Not every manager has a watchdog: Kubernetes and Docker start anew what has ended."""
    hangs = (
        "import asyncio, time; from proxy.cli import forward; from proxy.cli.main import main\n"
        "async def hang(config, until): await asyncio.sleep(0); time.sleep(600)\n"
        "forward.HANG_S, forward.run_forwarder = 0.5, hang; main()"
    )
    manager = start(sys.executable, "-c", hangs, "forward")
    assert manager.process.wait(DEADLINE_S) == 1
    assert "in hang" in manager.log.read_text()


def test_no_child_inherits_what_the_manager_said(start: Start) -> None:
    """A child that spoke to the manager, or took a socket for its own, would break both."""
    manager = start(WATCHDOG_USEC="60000000")
    manager.hears("READY=1")
    for pid in manager.below().values():
        names = {line.partition("=")[0] for line in Path(f"/proc/{pid}/environ").read_text().split("\0")}
        assert not [name for name in names if re.match("NOTIFY_|WATCHDOG_|LISTEN_|BEACON_PROXY_", name)]


RESTARTED = 'while :; do sh -c \'export LISTEN_PID=$$; exec "$@"\' service "$@"; done'
"""The part of systemd that starts a service anew with the socket that it kept."""


def activated(*addresses: str, name: str = "public") -> list[str]:
    tool = need("systemd-socket-activate", "systemd")
    passed = [word for n in (*os.environ, "NOTIFY_SOCKET") for word in ("-E", n) if not n.startswith("BEACON_PROXY_")]
    settings = ("CONFIG", "API_KEY_FILE", "UPSTREAM", "SPOOL", "PORT", "ADMIN_PORT", "ENRICHERS")
    passed += [word for n in settings for word in ("-E", f"BEACON_PROXY_{n}")]
    return [tool, *passed, f"--fdname={name}", *(word for address in addresses for word in ("-l", address))]


def test_a_restart_refuses_no_connection_and_loses_no_beacon(start: Start, sandbox: SandboxProcess) -> None:
    """With socket activation a new version goes in under full traffic."""
    port = free_port()
    manager = start(*activated(f"127.0.0.1:{port}"), "sh", "-c", RESTARTED, "manager", *PYTHON, "serve", port=port)
    wait_for(lambda: "Listening" in manager.log.read_text(), "the manager's socket")
    visitors = Visitors(port)
    for turn in (1, 2, 3):
        manager.hears("READY=1", turn)
        visitors.more()
        service = wait_for(lambda: children(manager.process.pid), "the service")[0]
        os.kill(service, signal.SIGTERM)
        manager.hears("STOPPING=1", turn)
    visitors.more()
    answered = visitors.leave()
    assert visitors.failed == []
    all_delivered(sandbox, answered)


REQUEST = b"GET /e?_n=late&_p=me HTTP/1.1\r\nHost: shop.example\r\n\r\n"
POST = b"POST /e HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 12\r\n\r\n_n=late&_p=m"


@pytest.mark.parametrize("request_", [REQUEST, POST], ids=["pixel", "sendBeacon"])
def test_a_request_on_its_way_when_the_end_comes_is_answered_as_its_connections_last(start: Start, request_: bytes) -> None:
    """nginx sends on a connection that it holds idle, at the very moment at which we stop; a POST it would not repeat."""
    manager = start()
    manager.hears("READY=1")
    address = ("127.0.0.1", manager.port)
    with socket.create_connection(address, timeout=15) as fresh, socket.create_connection(address, timeout=15) as used:
        used.sendall(REQUEST)
        assert used.recv(4096).startswith(b"HTTP/1.1 200 ")  # whoever connected before it was accepted, too
        manager.process.terminate()
        wait_for(lambda: not listening(manager.port), "the listener's end")
        for connection in (fresh, used):
            connection.sendall(request_)
        for connection in (fresh, used):
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nconnection: close\r\n" in answer
    assert manager.process.wait(DEADLINE_S) == 0


def test_a_unix_socket_of_the_manager_is_served(start: Start, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """nginx on the same machine needs no port."""
    with tempfile.TemporaryDirectory(prefix="bp") as short:
        path = f"{short}/public"
        manager = start(*activated(path), *PYTHON, "serve")
        wait_for(lambda: Path(path).exists(), "the socket")
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=15) as client:
            assert client.get("http://shop.example/e?_n=here&_p=me").status_code == 200
        manager.hears("READY=1")
        assert sandbox.wait(1)[0]["params"]["_n"] == "here"
        assert manager.logged("listening")[0]["url"] == f"unix:{path}"


@pytest.mark.parametrize("wrong", ["not listening", "two"])
def test_sockets_that_cannot_be_served_are_told_in_plain_words(start: Start, wrong: str) -> None:
    """A slip in a socket unit (Accept=yes, a second ListenStream=) must not end as silence or as a traceback."""
    with socket.socket() as one, socket.socket() as other:
        for held in (one, other):
            held.bind(("127.0.0.1", 0))
        if wrong == "two":
            one.listen()
            other.listen()
        count = 2 if wrong == "two" else 1
        script = f'exec 3<&{one.fileno()} 4<&{other.fileno()}; export LISTEN_PID=$$ LISTEN_FDS={count}; exec "$@"'
        run = subprocess.run(
            ["bash", "-c", script, "manager", *PYTHON, "serve"],
            env=clean_environment(BEACON_PROXY_API_KEY=API_KEY, BEACON_PROXY_SPOOL=f"sqlite:{tempfile.mkdtemp()}"),
            pass_fds=[one.fileno(), other.fileno()],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert run.returncode == 2
    assert run.stderr.startswith("beacon-proxy: LISTEN_FDS: ")
    assert "expected" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_new_key_needs_a_reload_and_costs_no_beacon(start: Start, sandbox: SandboxProcess) -> None:
    """The key is changed at the vendor, the file is changed here: the forwarder alone is replaced."""
    manager = start()
    manager.hears("READY=1")
    before = manager.below()
    visitors = Visitors(manager.port)
    visitors.more()
    sandbox.wait(1)
    manager.key.write_text("another-key-77")
    manager.reload()
    manager.hears("RELOADING=1")
    manager.hears("READY=1", 2)
    after = manager.below()
    visitors.more()
    answered = visitors.leave()
    assert visitors.failed == []
    assert {role for role in before if before[role] != after[role]} == {"forwarder"}
    assert manager.words() == ["READY=1", "RELOADING=1", "READY=1"]
    keys = [beacon["params"]["_k"] for beacon in all_delivered(sandbox, answered)]
    assert keys[0] == API_KEY
    assert keys[-1] == "another-key-77"
    assert "another-key" not in manager.log.read_text()


def test_a_new_rule_of_the_collectors_replaces_the_collectors(start: Start) -> None:
    """Connections wait in the socket's queue meanwhile."""
    manager = start()
    manager.hears("READY=1")
    before = manager.below()
    manager.config.write_text('prefix = "/x7"')
    manager.reload()
    manager.hears("READY=1", 2)
    after = manager.below()
    assert {role for role in before if before[role] != after[role]} == {"collector"}
    assert httpx.get(f"{manager.url}/x7/e?_n=new&_p=me", timeout=15).status_code == 200
    assert httpx.get(f"{manager.url}/e?_n=old&_p=me", timeout=15).status_code == 404


def test_the_forwarder_is_turned_off_and_on_by_a_reload(start: Start, sandbox: SandboxProcess) -> None:
    """Without one no key is needed, and beacons wait for another one; the collectors go on."""
    manager = start()
    manager.hears("READY=1")
    before = manager.below()
    key = manager.key.read_text()
    manager.key.unlink()
    good = manager.config.read_text() if manager.config.exists() else ""
    manager.config.write_text(f"{good}\nforward = false\n")
    manager.reload()
    manager.hears("READY=1", 2)
    assert manager.below() == {role: pid for role, pid in before.items() if role != "forwarder"}
    assert httpx.get(f"{manager.url}/e?_n=waits&_p=me").status_code == 200
    manager.key.write_text(key)
    manager.config.write_text(good)
    manager.reload()
    manager.hears("READY=1", 3)
    assert manager.below().keys() == before.keys()
    assert sandbox.wait(1)[0]["params"]["_n"] == "waits"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('prefx = "/x7"', "did you mean prefix"),
        ('prefix = "/x7"\ngeo_database = "/nowhere.mmdb"', "geo_database"),
        ('prefix = "/x7"\nworkers = 3', "workers: a change of this setting needs a restart"),
        ("", "api_key_file"),
    ],
    ids=["unknown", "not loadable", "needs a restart", "key unreadable"],
)
def test_settings_that_are_wrong_at_a_reload_change_nothing(
    start: Start, sandbox: SandboxProcess, config: str, reason: str
) -> None:
    """All of them are taken or none; what is at work goes on."""
    manager = start()
    manager.hears("READY=1")
    before = manager.below()
    manager.config.write_text(config)
    if not config:
        manager.key.unlink()
    manager.reload()
    manager.hears("READY=1", 2)
    [refusal] = manager.logged("settings not taken: all goes on as before")
    assert reason in refusal["reason"]
    assert not refusal["reason"].startswith("{")
    assert manager.below() == before
    assert httpx.get(f"{manager.url}/e?_n=on&_p=me").status_code == 200
    assert sandbox.wait(1)[0]["params"]["_k"] == API_KEY


def impatient(**constants: float) -> list[str]:
    """`serve` with other constants of the supervisor: nobody waits a minute in a test."""
    changes = "".join(f"supervisor.{name} = {value}; " for name, value in constants.items())
    return [sys.executable, "-c", f"from proxy.cli import main, supervisor; {changes}main.main()", "serve"]


@pytest.mark.parametrize("role", ["collector", "forwarder", "admin"])
def test_a_child_that_hangs_is_killed_and_replaced(start: Start, sandbox: SandboxProcess, role: str) -> None:
    """A process that is there but does nothing is worse than one that died."""
    manager = start(*impatient(HANG_S=2.5))
    manager.hears("READY=1")
    before = manager.below()
    os.kill(before[role], signal.SIGSTOP)
    wait_for(lambda: manager.logged("killed: it hangs"), "the kill")
    after = wait_for(lambda: (now := manager.below()).get(role, before[role]) != before[role] and now, "a new child")
    assert {name for name in before if before[name] != after[name]} == {role}
    assert httpx.get(f"{manager.url}/e?_n=again&_p=me", timeout=15).status_code == 200
    assert sandbox.wait(1)[0]["params"]["_n"] == "again"


def test_a_machine_that_slept_is_not_taken_for_children_that_hang(start: Start) -> None:
    """A paused container or a suspended machine stops all of them; whoever wakes first must not kill the others."""
    manager = start(*impatient(HANG_S=2.0, ASLEEP_S=1.0), WATCHDOG_USEC="800000")
    manager.hears("READY=1")
    before = manager.below()
    for pid in (manager.process.pid, *before.values()):
        os.kill(pid, signal.SIGSTOP)
    slept = time.monotonic()
    wait_for(lambda: time.monotonic() - slept > 3.0, "the night's end")
    said = len(manager.told)
    os.kill(manager.process.pid, signal.SIGCONT)
    wait_for(lambda: len(manager.told) >= said + 2, "rounds of the supervisor")
    for pid in before.values():
        os.kill(pid, signal.SIGCONT)
    assert httpx.get(f"{manager.url}/e?_n=morning&_p=me").status_code == 200
    assert manager.below() == before
    assert manager.logged("killed: it hangs") == []


def test_ready_is_not_said_while_a_child_that_was_at_work_is_dead(start: Start, tmp_path: Path) -> None:
    """A collector that died takes no beacon until it is back, whatever it did before the others were up."""
    admin_gate, never, once = tmp_path / "gate", tmp_path / "never", tmp_path / "once"
    os.mkfifo(admin_gate)
    os.mkfifo(never)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'admin' in sys.orig_argv: open({str(admin_gate)!r}).read()\n"
        f"if 'collector' in sys.orig_argv and os.path.exists({str(once)!r}): open({str(never)!r}).read()\n"
    )
    admin_port = str(free_port())
    manager = start(
        *impatient(RESTART_PAUSE_S=3600.0),
        PYTHONPATH=str(slow),
        BEACON_PROXY_ADMIN_PORT=admin_port,
        WATCHDOG_USEC="400000",
    )

    def answers(url: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url, timeout=1).status_code == 200
        return False

    wait_for(lambda: answers(f"{manager.url}/e?_n=a&_p=me"), "the collector")
    manager.hears("WATCHDOG=1", manager.words().count("WATCHDOG=1") + 8)  # rounds in which its beats are heard
    once.touch()
    os.kill(manager.below()["collector"], signal.SIGKILL)
    wait_for(lambda: manager.logged("died, will be restarted"), "its death to be seen")
    with admin_gate.open("w"):
        pass
    wait_for(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"), "the admin listener")
    manager.hears("WATCHDOG=1", manager.words().count("WATCHDOG=1") + 8)
    assert "READY=1" not in manager.words()


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A manager's socket whose queue is full."""
    monkeypatch.setattr("proxy.cli.service.SEND_S", 0.05)
    with tempfile.TemporaryDirectory(prefix="bp") as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"{place}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{place}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
            other.setblocking(False)
            while True:
                other.sendto(b"other", f"{place}/notify")
        yield ear


def heard(ear: socket.socket) -> list[bytes]:
    """What waits there, but for what other services say."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(ear.recv(4096, socket.MSG_DONTWAIT))
    return [words for words in found if words != b"other"]


def test_what_a_busy_manager_did_not_take_is_said_again(deaf: socket.socket) -> None:
    """A service that is never heard to be ready, or alive, is stopped."""
    service = Service()
    service.ready()
    service.alive()
    assert heard(deaf) == []
    service.ready()
    service.alive()
    assert heard(deaf) == [b"READY=1", b"WATCHDOG=1"]
    service.ready()
    service.alive()
    assert heard(deaf) == []


def test_a_forwarder_alone_says_ready_again_to_a_busy_manager(deaf: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no supervisor's rounds."""
    monkeypatch.delenv("WATCHDOG_USEC")
    monkeypatch.setattr("proxy.cli.service.AGAIN_S", 0.05, raising=False)

    async def attended() -> list[bytes]:
        attending = asyncio.create_task(Service().attend())
        await asyncio.sleep(0)
        assert heard(deaf) == []
        found = await asyncio.to_thread(wait_for, lambda: heard(deaf), "what it says")
        await attending
        return found  # type: ignore[no-any-return]

    assert asyncio.run(attended()) == [b"READY=1"]
