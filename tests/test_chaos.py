"""A short run of the laboratory (`make chaos` is the long one): the same experiments, the same promises."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ProxyProcess, need, wait_for
from in_thread import InThread

from tests.chaos import disk, laboratory
from tests.chaos.__main__ import broken
from tests.chaos.laboratory import Upstream
from tests.chaos.schedule import Event, schedule
from tests.chaos.volume import CannotMount

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk to be filled")
SEED = 50
FULL = [
    Event(0.5, "read", 7, 0.0),
    Event(0.5, "read", 7, 0.99),
    Event(1.0, "closed"),
    Event(2.0, "fill", 2, 0.5),
    Event(2.5, "delete"),
    Event(3.0, "tree"),
    Event(6.0, "ok"),
    Event(7.0, "fill", 2, 0.5),
    Event(8.0, "forwarder"),
]
"""The vendor comes back while readers hold the lanes, so that nothing goes from their logs into the lanes."""


def run(experiment: Any, place: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = asyncio.run(experiment(place, lambda share, now: None, **options))
    return found


def test_kills_lose_no_answered_beacon(tmp_path: Path) -> None:
    """Tree, collector, forwarder; both durabilities."""
    found = run(laboratory.kills, tmp_path, n=6, rate=200.0)
    assert found["answered_200"] > 200
    assert broken(found) == [], found


def test_a_schedule_of_faults_loses_no_answered_beacon(tmp_path: Path) -> None:
    """Every fault of the vendor once. (Latency is the long run's to judge.)"""
    found = run(laboratory.faults, tmp_path, beacons=2_000, seconds=14.0)
    assert found["answered_200"] >= 2_000
    assert {name: found[name] for name in ("missing_upstream", "differing_copies", "ledger_off_by", "answered_503")} == {
        "missing_upstream": 0,
        "differing_copies": 0,
        "ledger_off_by": 0,
        "answered_503": 0,
    }


@ROOT
def test_a_full_disk_loses_no_answered_beacon_and_service_comes_back_with_the_room(tmp_path: Path) -> None:
    """Full to the last block, by a filler and by the spool itself, with kills on it. (How soon is the long run's to judge.)"""
    try:
        found = run(disk.disk, tmp_path, minutes=0.15, rate=400.0, events=FULL, size_mib=16, drain_s=30.0)
    except CannotMount as error:
        pytest.skip(str(error))
    assert found["disk_full"] >= 1
    assert found["kills_and_restarts_while_full"] >= 1
    assert found["readers"] >= 1
    assert found["answered_200"] > 200
    assert [promise for promise in broken(found) if not promise.startswith("recover_s")] == [], found


def test_the_schedule_of_full_disks_is_that_of_its_seed() -> None:
    """A run that broke a promise can be repeated; and nothing is planned for after the end, when all must be well."""
    assert schedule(SEED, 600) == schedule(SEED, 600) != schedule(SEED + 1, 600)
    for seed in range(50):
        events = schedule(seed, 60)
        kinds = {event.what for event in events}
        assert kinds & {"fill", "read"}
        assert {"closed", "ok"} <= kinds
        assert all(0 <= event.at_s <= event.at_s + event.for_s <= 60 for event in events)


def test_a_recovery_that_never_came_counts_as_long_as_it_was_waited_for() -> None:
    """Else the service that never comes back would look the best. What was too short to judge is left out."""
    back, gone = [10.0, 20.0, 30.0, 33.0], [0.0, 15.0, 29.0, 32.0]
    assert disk.recoveries(back, gone, [10.5, 35.0], end=50.0) == [0.5, 9.0, 2.0]


@ROOT
def test_an_interrupted_experiment_leaves_no_file_system_and_no_process_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a full disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "disk", "--seed", str(SEED), "--place", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: process.poll() is not None or list(tmp_path.glob("disk-*/disk/filler-*")), "the filler")
        if process.poll() == 2:
            pytest.skip(process.stderr.read())  # type: ignore[union-attr]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its foreground
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
    assert process.stderr.read() == "disk: interrupted\n"  # type: ignore[union-attr]
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not list(tmp_path.glob("disk-*/disk*"))
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _mentions(pid, str(tmp_path))]


def _mentions(pid: Path, text: str) -> bool:
    try:
        return text.encode() in (pid / "cmdline").read_bytes() + (pid / "environ").read_bytes()
    except OSError:
        return False


def test_without_the_right_to_mount_the_experiment_says_so(tmp_path: Path) -> None:
    """Status 2 and a sentence, no traceback: it is no promise that broke."""
    drop = [need("setpriv", "util-linux"), "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, sys.executable, "-m", "tests.chaos", "disk", "--place", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("disk: cannot mount a file system for this experiment")
    assert "It needs root" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("disk-*/disk*"))


@pytest.mark.parametrize("fault", ["ok", "slow", "hang", "closed", "reset"])
def test_sigterm_under_load_ends_within_the_grace_and_loses_nothing(serve: Serve, fault: str) -> None:
    """Whatever state the vendor is in."""
    upstream = Upstream()
    try:
        upstream.ask(f"fault {fault}")
        proxy = serve(upstream=upstream.url, shutdown_grace="6")
        with httpx.Client(base_url=proxy.url) as client:
            for n in range(60):
                assert client.get(f"/e?_n=before{n}&_p=me").status_code == 200
        began = time.monotonic()
        assert proxy.stop() == 0
        assert time.monotonic() - began < 6.5
        upstream.ask("fault ok")
        again = serve(upstream=upstream.url)
        wait_for(lambda: again.status()["pending"] == 0, "the rest")
        report = upstream.ask("report")
        assert (report["acknowledged"], report["differing"]) == (60, 0)
        assert again.status()["delivered"] == 60
    finally:
        upstream.stop()


def test_an_outage_burns_no_attempts_and_the_backlog_drains_without_a_storm(serve: Serve) -> None:
    """Breaker, probe, slow start: `status` tells it all."""
    upstream = Upstream()
    try:
        upstream.ask("fault 500")
        proxy = serve(upstream=upstream.url, max_attempts="2", concurrency="16")
        with httpx.Client(base_url=proxy.url) as client:
            for n in range(300):
                assert client.get(f"/e?_n={n}&_p=me").status_code == 200
        state = wait_for(
            lambda: (found := proxy.status()["upstreams"].get(upstream.url)) and found["state"] != "closed" and found, "it"
        )
        assert state["eta_s"] is None
        assert state["last_failure"] == "500"
        requests = upstream.ask("report")["requests"]
        time.sleep(3)
        assert upstream.ask("report")["requests"] - requests <= 6, "only probes"
        assert proxy.status()["dead"] == 0
        upstream.ask("fault ok")
        wait_for(lambda: proxy.status()["delivered"] == 300, "the backlog's end")
        assert upstream.ask("report")["most_in_flight"] <= 16
        assert proxy.status()["dead"] == 0
    finally:
        upstream.stop()


def test_a_hit_that_fails_alone_becomes_a_dead_letter_and_the_others_pass(inside: Inside) -> None:
    """A vendor that chokes on one beacon must not hold up the rest for a week."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))

    def vendor() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    def converse(connection: socket.socket) -> None:
        buffer = b""
        while chunk := connection.recv(65_536):
            buffer += chunk
            while b"\r\n\r\n" in buffer:
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                status = b"500 Poisoned" if b"_n=poison" in head else b"200 OK"
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=vendor, daemon=True).start()
    proxy = inside(
        upstream=f"http://127.0.0.1:{listener.getsockname()[1]}", max_attempts="4", backoff_base="0.05", backoff_cap="0.1"
    )
    with httpx.Client(base_url=proxy.url) as client:
        client.get("/e?_n=poison&_p=me")
        sent = 1

        def keep_on() -> bool:
            nonlocal sent
            sent += 1
            client.get(f"/e?_n=good{sent}&_p=me")
            return bool(proxy.status()["dead"] == 1)

        wait_for(keep_on, "the dead letter")
    wait_for(lambda: proxy.status()["delivered"] == sent - 1, "the others")
    listener.close()


def test_two_vendors_one_away_the_other_is_served_at_once(inside: Inside, tmp_path: Path) -> None:
    """One vendor's outage is not the other's, and its backlog drains when it is back."""
    one, two = Upstream(), Upstream()
    try:
        one.ask("fault closed")
        proxy = inside(
            upstream=one.url,
            sites__blog__hosts="blog.example",
            sites__blog__upstream=two.url,
        )
        with httpx.Client(base_url=proxy.url) as client:
            for n in range(400):
                host = "blog.example" if n % 2 else "shop.example"
                assert client.get(f"/e?_n={n}&_p=me", headers={"host": host}).status_code == 200
        wait_for(lambda: two.ask("report")["acknowledged"] == 200, "the other vendor's beacons")
        status = proxy.status()
        assert status["pending"] == 200
        assert status["upstreams"][one.url]["pending"] == 200
        one.ask("fault ok")
        wait_for(lambda: one.ask("report")["acknowledged"] == 200, "the backlog")
        assert one.ask("report")["copies"] == two.ask("report")["copies"] == 0
    finally:
        one.stop()
        two.stop()


def test_unreachable_by_name_or_tls_is_the_upstreams_state(serve: Serve) -> None:
    """DNS failure and broken TLS: no attempt burnt, delivered after the address is mended."""
    upstream = Upstream()
    try:
        port = 0
        for broken_url in ("http://no-such-host.invalid", f"https://127.0.0.1:{upstream.port}"):
            proxy = serve(upstream=broken_url, max_attempts="1", shutdown_grace="2", **({"port": port} if port else {}))
            port = proxy.port
            for n in range(10):
                assert httpx.get(f"{proxy.url}/e?_n={port}.{n}.{len(broken_url)}&_p=me").status_code == 200
            wait_for(lambda at=proxy: any(u["last_failure"] for u in at.status()["upstreams"].values()), "a failure")
            assert proxy.stop() == 0
        again = serve(upstream=upstream.url, port=port)
        wait_for(lambda: again.status()["pending"] == 0, "delivery")
        assert (again.status()["delivered"], again.status()["dead"]) == (20, 0)
    finally:
        upstream.stop()


def test_a_corrupt_lane_under_a_running_service_is_set_aside_and_service_goes_on(serve: Serve, tmp_path: Path) -> None:
    """Found by whoever meets it first; told by `status` and the log."""
    proxy = serve()
    assert httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 200
    wait_for(lambda: proxy.status()["pending"] == 0, "delivery")
    os.kill(proxy.process.pid, signal.SIGSTOP)
    proxy.kill()
    lane = tmp_path / "spool" / "lane-0000.db"
    with lane.open("r+b") as opened:
        opened.write(b"rotten" * 1000)
    again = serve(port=proxy.port)
    wait_for(lambda: httpx.get(f"{again.url}/e?_n=b&_p=me").status_code == 200, "service")
    status = wait_for(lambda: (found := again.status())["delivered"] == 1 and found, "delivery")
    assert status["set_aside"][0].startswith("lane-0000.db.corrupt-")
    assert "set aside" in again.log.read_text()
