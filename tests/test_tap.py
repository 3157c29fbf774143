"""The tap: whoever watches gets a copy, and nobody waits for him. Real spools, real processes, real sockets."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from conftest import ProxyProcess, SandboxProcess, wait_for

from proxy.outcome import Outcome
from proxy.spool import watching
from proxy.spool.port import SpoolConfig, SpoolError, Tapped
from proxy.spool.tap import DATAGRAM_BYTES, TAPS, Tap, listening

Serve = Callable[..., ProxyProcess]
EVENT = Tapped(1, "default", "delivered", "e", "Viewed", "me", {"Plan": "Pro"}, "200", 1, 5)


def heard(listener: socket.socket, timeout: float = 10) -> Tapped:
    listener.settimeout(timeout)
    return msgspec.json.decode(listener.recv(DATAGRAM_BYTES), type=Tapped)


@contextlib.contextmanager
def telling(directory: Path) -> Iterator[Tap]:
    tap = Tap(directory)
    tap.look()
    yield tap
    tap.close()


def sockets(directory: Path) -> list[str]:
    return os.listdir(directory / TAPS)


def test_every_watcher_gets_a_copy(tmp_path: Path) -> None:
    """Two operators may look at once; who leaves is forgotten, and leaves nothing behind."""
    with listening(tmp_path) as one:
        with listening(tmp_path) as other, telling(tmp_path) as tap:
            tap.tell(EVENT)
            assert heard(one) == heard(other) == EVENT
        with telling(tmp_path) as tap:
            tap.tell(EVENT)
            assert heard(one) == EVENT
            assert len(tap.open) == 1
    assert sockets(tmp_path) == []


def test_a_watcher_who_does_not_read_keeps_nobody_waiting_and_is_told_what_he_missed(tmp_path: Path) -> None:
    """His queue fills, large ones first; the other gets every one."""
    large = msgspec.structs.replace(EVENT, properties={"URL": "x" * 60_000})
    with listening(tmp_path) as asleep, listening(tmp_path) as awake, telling(tmp_path) as tap:
        slowest = 0.0
        for n in range(400):
            began = time.perf_counter()
            tap.tell(large if n < 20 else EVENT)
            slowest = max(slowest, time.perf_counter() - began)
            assert heard(awake).missed == 0
        assert slowest < 1
        taken = 0
        asleep.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while asleep.recv(DATAGRAM_BYTES):
                taken += 1
        tap.tell(EVENT)
        assert taken > 0
        assert heard(asleep).missed == 400 - taken
        tap.tell(EVENT)
        assert heard(asleep).missed == 0


def test_what_does_not_fit_a_datagram_is_missed_and_hurts_nobody(tmp_path: Path) -> None:
    """The kernel limits a datagram; a hostile beacon may be larger."""
    with listening(tmp_path) as listener, telling(tmp_path) as tap:
        tap.tell(msgspec.structs.replace(EVENT, properties={"x": "y" * 5_000_000}))
        tap.tell(EVENT)
        assert heard(listener).missed == 1


def test_a_killed_watcher_is_forgotten_and_his_socket_removed(tmp_path: Path) -> None:
    """At the first thing told to him, or by whoever looks next: kill -9 leaves the socket's name behind."""
    code = f"from proxy.spool.tap import listening\nwith listening({str(tmp_path)!r}): print('up', flush=True); input()"
    for told_before in (True, False):
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == b"up\n"
            with contextlib.ExitStack() as stack:
                tap = stack.enter_context(telling(tmp_path)) if told_before else None
                watcher.kill()
                watcher.wait()
                assert len(sockets(tmp_path)) == 1
                if tap is None:
                    tap = stack.enter_context(telling(tmp_path))
                tap.tell(EVENT)
                assert not tap.open
                tap.look()
                assert sockets(tmp_path) == []


def test_a_spool_with_a_long_path_can_be_watched(tmp_path: Path) -> None:
    """A socket's address has 108 bytes (unix(7)); a path may have more."""
    long = tmp_path / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    with listening(long) as listener, telling(long) as tap:
        tap.tell(EVENT)
        assert heard(listener) == EVENT


def test_nobody_watching_costs_a_look_and_no_words(tmp_path: Path) -> None:
    """No socket is opened, and nothing is put into words."""
    before = len(os.listdir("/proc/self/fd"))
    with telling(tmp_path) as tap:
        assert not tap.open
        tap.tell(EVENT)
        assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []


def test_looking_and_telling_from_two_threads_loses_and_leaks_nothing(tmp_path: Path) -> None:
    """The lane looks from its writer's thread and tells from the event loop's."""
    before = len(os.listdir("/proc/self/fd"))
    with telling(tmp_path) as tap, listening(tmp_path) as stays:
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                tap.look()

        looker = threading.Thread(target=look)
        looker.start()
        wait_for(lambda: tap.open, "the first look")
        for _ in range(200):
            with listening(tmp_path):
                tap.tell(EVENT)
            assert heard(stays).missed == 0
        over.set()
        looker.join()
    # Threads of earlier tests in this process may open and close one meanwhile; what is leaked stays.
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "the descriptors to be closed", 5)


def test_where_nothing_can_be_watched_the_message_says_what_to_do(tmp_path: Path) -> None:
    """No spool yet, a spool in memory, or a place that is none."""
    with pytest.raises(SpoolError, match="start `beacon-proxy serve` first"), watching(SpoolConfig(f"sqlite:{tmp_path}/not")):
        pass
    with pytest.raises(SpoolError, match="memory"), watching(SpoolConfig("memory:")):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match="run it as the user"), watching(SpoolConfig(f"sqlite:{tmp_path}/file")):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_root_watches_stays_the_owners(tmp_path: Path) -> None:
    """`sudo beacon-proxy tail` must neither see nothing nor shut the service's own user out afterwards."""
    os.chown(tmp_path, 65534, 65534)
    with listening(tmp_path):
        [listener] = (tmp_path / TAPS).iterdir()
        place = (tmp_path / TAPS).stat()
        assert (place.st_uid, place.st_gid, place.st_mode & 0o777) == (65534, 65534, 0o700)
        assert listener.stat().st_mode & 0o222 == 0o222  # who may enter the directory may send


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led astray: run as root")
def test_root_is_led_nowhere_by_a_link(tmp_path: Path) -> None:
    """A spool's owner who plants a link must not be given what it leads to."""
    elsewhere, spool = tmp_path / "elsewhere", tmp_path / "spool"
    elsewhere.mkdir()
    spool.mkdir()
    (spool / TAPS).symlink_to(elsewhere)
    os.chown(spool, 65534, 65534)
    with pytest.raises(SpoolError), listening(spool):
        pass
    assert (elsewhere.stat().st_uid, list(elsewhere.iterdir())) == (0, [])


def test_telling_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look may hang with the disk; a beacon that is told of meanwhile, and a visitor with it, must not."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hanging(path: Path) -> list[str]:
        hangs.set()
        goes_on.wait(20)
        return []

    with listening(tmp_path) as listener, telling(tmp_path) as tap:
        monkeypatch.setattr("proxy.spool.tap.os.listdir", hanging)
        looking = threading.Thread(target=tap.look)
        looking.start()
        assert hangs.wait(20)
        tap.tell(EVENT)
        assert heard(listener) == EVENT
        goes_on.set()
        looking.join()


def test_visitors_and_deliveries_go_on_while_a_watcher_sleeps(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """The whole way: a watcher is stopped in its tracks, its queue is full, and everything is answered and delivered."""
    proxy = serve(honour_dnt="true")
    config = SpoolConfig(f"sqlite:{tmp_path / 'spool'}")
    with watching(config) as asleep, watching(config) as awake:
        answers = []
        with httpx.Client(base_url=proxy.url) as client:

            def seen() -> bool:
                answers.append(client.get("/e?_n=Viewed&_p=me", headers={"dnt": "1"}).status_code)
                with contextlib.suppress(TimeoutError):
                    return heard(awake, 0.1).outcome == Outcome.DNT
                return False

            wait_for(seen, "the collector's look")
            for n in range(100):
                answers.append(client.get(f"/e?_n=Viewed&_p=me{n}").status_code)
        assert set(answers) == {200}
        sandbox.wait(100)

        def delivery_seen() -> bool:
            answers.append(httpx.get(f"{proxy.url}/e?_n=More&_p=me{len(answers)}").status_code)
            with contextlib.suppress(TimeoutError):
                return heard(awake, 0.1).outcome == Outcome.DELIVERED
            return False

        wait_for(delivery_seen, "the forwarder's look")
        assert heard(asleep).outcome == Outcome.DNT
    status = wait_for(lambda: (found := proxy.status())["pending"] == 0 and found, "the ledger")
    assert status["delivered"] + status["dropped"]["dnt"] == len(answers)


def test_a_tail_that_is_ended_leaves_no_socket(serve: Serve, tmp_path: Path) -> None:
    """SIGTERM is how a script ends it."""
    proxy = serve()
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "tail"], env=proxy.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tail:
        assert tail.stderr is not None
        assert b"watching" in tail.stderr.readline()
        wait_for(lambda: sockets(tmp_path / "spool"), "the socket")
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(20) == 0
    assert sockets(tmp_path / "spool") == []
