"""A short run of the laboratory over a real cluster (`make chaos-cluster` is the long one): the same hands, the same account."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import clean_environment, free_port, listening, need, wait_for
from rich.console import Console

from proxy.cli.cluster import Missing, brokers, front
from proxy.cli.cluster.brokers import Brokers
from proxy.cli.cluster.front import Front
from proxy.cli.cluster.hosts import CollectorHost
from proxy.cli.cluster.part import Part
from proxy.cli.cluster.table import Account, Scene
from proxy.spool import fallback_pending, ledger_of
from proxy.spool.port import SpoolConfig, SpoolError
from tests.cluster.laboratory import Found, broken, laboratory


async def _through_mishaps(place: Path) -> tuple[Found, list[Part]]:
    async with laboratory(place, rate=60.0, collectors=1, forwarders=2) as lab:
        killed = await lab.leader()
        killed.kill()
        await lab.load_for(0.5)
        killed.start()
        await lab.healthy()
        peer = (lab.brokers.all.index(await lab.leader()) + 1) % 3
        lab.cut_off(peer)
        await asyncio.sleep(1.0)
        lab.let_in(peer)
        await lab.brokers_restarted_in_turn()
        await lab.load_for(0.5)
        return await lab.account(), lab.cluster.parts


def test_a_cluster_that_loses_its_leader_and_a_peer_and_is_restarted_loses_no_answered_beacon(tmp_path: Path) -> None:
    """A 200 is a promise, whichever machine dies: two of three brokers have the beacon then."""
    found, parts = asyncio.run(_through_mishaps(tmp_path))
    assert found["answered_200"] > 200
    assert broken(found) == [], found
    assert (found["pending"], found["dead"]) == (0, 0)
    assert [part.name for part in parts if part.alive] == []


def test_the_demo_of_a_cluster_kills_a_part_and_loses_nothing(tmp_path: Path) -> None:
    """One command shows it, and leaves nothing behind; Ctrl-C ends it with the account."""
    need("nginx", "nginx-light")
    out = tmp_path / "demo.out"
    environ = clean_environment(TMPDIR=str(tmp_path))
    with out.open("wb") as file:
        command = [sys.executable, "-m", "proxy", "demo", "--cluster", "--port", "0"]
        demo = subprocess.Popen(command, env=environ, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: "collector-1 is started again" in out.read_text() or demo.poll() is not None, "a part to be killed", 40)
        assert demo.poll() is None, out.read_text()
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(40) == 0, out.read_text()
    finally:
        demo.kill()  # its parts end with it
        demo.wait()
    said = out.read_text()
    assert "kill -9 collector-1" in said
    assert "All that was answered 200 was counted." in said
    assert "nothing is left running" in said
    assert list(tmp_path.iterdir()) == [out]
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if _mentions(path, tmp_path)] == []


@pytest.mark.parametrize("which", [[], ["--cluster"]])
def test_a_demo_whose_port_is_taken_says_so_and_starts_nothing(which: list[str], tmp_path: Path) -> None:
    """Else it would show another server's answers as its own."""
    need("nginx", "nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "proxy", "demo", *which, "--port", str(port)]
        run = subprocess.run(command, env=clean_environment(TMPDIR=str(tmp_path)), capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_nginx_is_not_taken_for_ready_where_another_answers_at_its_port(tmp_path: Path) -> None:
    """Two demos that start at once draw the same port by lot, say. It tries for some seconds, and ends."""
    need("nginx", "nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as other:
        nginx = Front(tmp_path, other.getsockname()[1], [1, 2], shop=3)
        try:
            nginx.start()
            wait_for(lambda: nginx.ready() or not nginx.alive, "nginx")
            assert not nginx.ready()
            assert "Address already in use" in nginx.log.read_text()
        finally:
            nginx.kill()


def test_the_account_counts_each_beacon_that_nginx_kept_once(tmp_path: Path) -> None:
    """However many newlines a record has around it."""
    need("nginx", "nginx-light")
    port = free_port()
    nginx = Front(tmp_path, port, [9, 9], shop=9)  # nothing answers there
    try:
        nginx.start()
        wait_for(nginx.ready, "nginx")
        assert nginx.kept_lines() == 0
        for n in range(3):
            assert httpx.get(f"http://127.0.0.1:{port}/x7/e?_n=n{n}").status_code == 200
        wait_for(lambda: b"_n=n2" in nginx.kept.read_bytes(), "the last one")
        assert nginx.kept_lines() == 3
    finally:
        nginx.kill()


@pytest.mark.parametrize(
    ("account", "kept"),
    [
        (Account(sent=9, answered=9, missing=0), True),
        (Account(sent=9, answered=8, missing=0), True),
        (Account(sent=9, answered=0, missing=0), False),
        (Account(sent=9, answered=9, missing=1), False),
        (Account(missing=0), True),
    ],
)
def test_the_demo_fails_if_beacons_are_missing_or_none_was_taken(account: Account, kept: bool) -> None:
    """An account of nothing proves nothing; but somebody may end it at once."""
    assert account.kept_promise is kept
    assert (account.verdict() == "All that was answered 200 was counted.") is kept


@pytest.mark.parametrize("width", [80, 200])
def test_the_demo_s_account_is_seen_whole_on_a_small_screen(width: int, tmp_path: Path) -> None:
    """24 lines, and more has happened than there is room for: the latest of it stays, and every row of the account."""
    parts = [Part(name, [], tmp_path) for name in ("broker-1", "broker-2", "broker-3", "collector-1", "collector-2", "nginx")]
    events = [f"{n:6.1f} s  kill -9 forwarder-1: the other one goes on, and this line is longer than that" for n in range(60)]
    console = Console(width=width, height=24, file=io.StringIO())
    console.print(Scene(events, parts, Account(sent=1_000_000, copies=1_000_000, leader="broker-2")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < 24
    assert [what for what, _, _ in Account().rows() if not any(line.startswith(f" {what}") for line in lines)] == []
    assert lines[0].startswith("  5")
    assert "broker-2*" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in "".join(lines[-8:-1])


def _mentions(cmdline: Path, place: Path) -> bool:
    try:
        return str(place).encode() in cmdline.read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(("path", "named"), [("", "nginx"), ("/usr/sbin", "nats-server")])
def test_without_a_program_the_demo_says_what_to_install(path: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and nothing is started."""
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr("proxy.cli.cluster.front.ELSEWHERE", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    program = brokers.program if named == "nats-server" else front.program
    with pytest.raises(Missing, match=rf"{named} is not on this machine; install it"):
        program()


def test_a_collector_that_starts_while_the_brokers_have_no_majority_takes_beacons(tmp_path: Path) -> None:
    """After a power cut all start at once, and brokers take their time to elect a leader. Nobody may give up meanwhile."""
    cluster = Brokers(tmp_path)
    alone, others = cluster.all[0], cluster.all[1:]
    host = CollectorHost("collector", tmp_path, cluster.spool)
    try:
        alone.start()
        wait_for(lambda: listening(alone.port), "a broker")
        host.start()
        wait_for(host.ready, "the collector")
        url = f"http://127.0.0.1:{host.port}/e?_n=Early&_p=me"
        assert httpx.get(url, timeout=10).status_code == 200
        for broker in others:
            broker.start()
        held = SpoolConfig(cluster.spool, fallback=f"sqlite:{tmp_path / 'collector'}")

        def moved() -> bool:
            with contextlib.suppress(SpoolError):
                return fallback_pending(held) == 0 and ledger_of(held).pending == 1
            return False

        wait_for(moved, "the beacon to be moved over", 40)
    finally:
        for part in (host, *cluster.all):
            part.kill()
