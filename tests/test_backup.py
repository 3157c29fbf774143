"""`backup`: a copy of a spool at work is whole, whatever is written meanwhile, and all that waited then is delivered from it."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from conftest import ProxyProcess, SandboxProcess, clean_environment, wait_for
from nats_server import NatsServer
from small_disk import MIB, fill, mounted

from proxy.hit import Hit
from proxy.spool import prepare
from proxy.spool.port import SpoolConfig, SpoolError
from proxy.spool.sqlite import file
from proxy.spool.sqlite.backup import STEP_PAGES, UNFINISHED, BackUp, back_up
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.survey import audit, read_ledger
from tests.chaos.driver import Driver

Serve = Callable[..., ProxyProcess]
NOWHERE = "http://127.0.0.1:9"


def hit(name: str, size: int = 0) -> Hit:
    query = f"_n={name}&_p=me&x={'x' * size}".encode()
    return Hit("e", query, b"", "default", "shop.example", "192.0.2.1", "Browser/1", "", "", 1_700_000_000_000)


def fill_lane(directory: Path, n: int, size: int = 900) -> None:
    """A lane with so many beacons, and no process on it."""
    lane = Lane(directory, SpoolConfig("", "os"))
    for first in range(0, n, 500):
        lane.append_blocking(*(hit(f"old{number}", size) for number in range(first, min(n, first + 500))))
    lane.close()


def backup(proxy: ProxyProcess | Path, target: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = (
        clean_environment(**{"BEACON_PROXY_SPOOL": f"sqlite:{proxy}", **settings})
        if isinstance(proxy, Path)
        else proxy.environment
    )
    return subprocess.run(
        [sys.executable, "-m", "proxy", "backup", str(target), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def copy(source: Path, target: Path, begin: Callable[[int], object] = id, progress: Callable[[int], object] = id) -> BackUp:
    """The same in this process."""
    return back_up(source, target, Disk(source), begin, progress)


@contextlib.contextmanager
def load(proxy: ProxyProcess, rate: float) -> Iterator[Driver]:
    """Beacons at that rate meanwhile."""
    driver, loop = Driver(proxy.port, rate), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.call_soon_threadsafe(driver.start)
    try:
        wait_for(lambda: len(driver.answered) > 200, "the load")
        yield driver
    finally:
        asyncio.run_coroutine_threadsafe(driver.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_backup_of_a_busy_spool_ends_and_delivers_all_that_waited_then(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """The day on which the disk dies: each beacon that was answered before the back-up is in it, and the ledger is exact."""
    fill_lane(tmp_path / "spool", 4000)
    proxy = serve(upstream=NOWHERE, workers="2", durability="os")
    with load(proxy, 500) as driver:
        before = list(driver.answered)
        done = backup(proxy, tmp_path / "backup", "--json")
        after = list(driver.answered)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    waiting = sum(lane["pending"] for lane in report["lanes"])
    assert 4000 + len(before) <= waiting <= 4000 + len(after) < proxy.status()["pending"] + 1
    assert len(after) > len(before), "beacons came in meanwhile"
    assert {path.name for path in (tmp_path / "backup").glob("*.db*")} == {"lane-0000.db", "lane-0001.db"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "backup").iterdir())
    proxy.kill()

    shutil.copytree(tmp_path / "backup", tmp_path / "restored")
    again = serve(spool=tmp_path / "restored")
    status = wait_for(lambda: (found := again.status())["delivered"] == waiting and found, "delivery", 60)
    assert (status["received"], status["pending"], status["dead"], status["dropped"]) == (waiting, 0, 0, {})
    arrived = {beacon["params"]["_n"] for beacon in sandbox.beacons()}
    assert set(before) | {f"old{number}" for number in range(4000)} <= arrived
    assert len(arrived) == waiting
    assert audit(tmp_path / "restored", 10**9) == 0


def test_what_was_delivered_since_the_backup_is_sent_again_and_absorbed(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """As docs/upgrade.md has it: stop, move the old directory away, copy the back-up to its place, start."""
    proxy = serve(upstream=NOWHERE)
    with load(proxy, 500):
        pass
    assert backup(proxy, tmp_path / "backup").returncode == 0
    waiting = proxy.status()["pending"]
    assert proxy.stop() == 0
    again = serve()
    wait_for(lambda: again.status()["pending"] == 0, "delivery")
    assert again.stop() == 0
    (tmp_path / "spool").rename(tmp_path / "old")
    shutil.copytree(tmp_path / "backup", tmp_path / "spool")
    restored = serve()
    wait_for(lambda: restored.status()["delivered"] == waiting, "delivery")
    found = sandbox.report()
    assert (found["counted"], found["duplicates"]) == (waiting, waiting)


def test_the_copy_is_of_one_moment_and_never_begins_again(tmp_path: Path) -> None:
    """SQLite's own back-up begins again with each commit of another: at 50 a second it never ended."""
    spool, steps = tmp_path / "spool", 0
    fill_lane(spool, 4000)
    lane = Lane(spool, SpoolConfig("", "os"))

    def write(size: int) -> None:
        nonlocal steps
        steps += 1
        assert steps < 1000, "it begins again and again"
        lane.append_blocking(hit("meanwhile"))

    report = copy(spool, tmp_path / "backup", progress=write)
    lane.close()
    pages = report.lanes[0].bytes // 4096
    others = len(report.other_files)
    assert steps == -(-pages // STEP_PAGES) + others
    assert report.lanes[0].pending == read_ledger(tmp_path / "backup").pending == 4000
    assert read_ledger(spool).pending == 4000 + steps
    with contextlib.closing(apsw.Connection(str(tmp_path / "backup" / "lane-0000.db"))) as db:
        assert db.execute("SELECT count(*) FROM fresh WHERE instr(hit, 'meanwhile')").fetchone() == (0,)


def test_lanes_set_aside_figures_and_a_fallbacks_stream_are_copied_too(tmp_path: Path) -> None:
    """What a lane set aside holds may still be saved, on the new machine as well; locks and the reserve are made at the start."""
    spool = tmp_path / "spool"
    fill_lane(spool, 10)
    aside = file.set_aside(spool / "lane-0000.db", file.inode(spool / "lane-0000.db"))
    assert aside is not None
    fill_lane(spool, 10)
    (spool / "forwarder.json").write_text("{}")
    (spool / "stream").write_text("BEACONS\n")
    report = json.loads(backup(spool, tmp_path / "backup", "--json").stdout)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    expected = [aside.name, f"{aside.name}-wal", "forwarder.json", "stream", "lane-0000.json"]
    assert {name: copied.pop(name) for name in expected} == {name: (spool / name).read_bytes() for name in expected}
    assert set(copied) - {f"{aside.name}-shm"} == {"lane-0000.db"}
    assert report["lanes"][0] | {"name": "lane-0000.db", "pending": 10, "dead": 0} == report["lanes"][0]


def test_a_kill_in_the_middle_leaves_a_working_spool_and_the_next_run_succeeds(serve: Serve, tmp_path: Path) -> None:
    """The same command again, with the same directory: there is nothing to clean up."""
    fill_lane(tmp_path / "spool", 12_000, 4000)
    proxy, target = serve(upstream=NOWHERE), tmp_path / "backup"
    begun = target / UNFINISHED / "lane-0000.db"
    for most in (0, 4 * MIB):
        process = subprocess.Popen([sys.executable, "-m", "proxy", "backup", str(target)], env=proxy.environment)
        wait_for(lambda at=most: begun.exists() and begun.stat().st_size >= at, "the copy")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [path.name for path in target.iterdir()] == [UNFINISHED], "it was killed in the middle"
        with load(proxy, 500) as driver:
            pass
        assert driver.refused == driver.broken == 0
    done = backup(proxy, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (target / UNFINISHED).exists()
    assert read_ledger(target).pending == proxy.status()["pending"]


def test_a_copy_that_was_killed_while_its_files_got_their_names_is_begun_again(tmp_path: Path) -> None:
    """Until `unfinished` is gone the directory is no back-up, whatever is in it."""
    spool, target = tmp_path / "spool", tmp_path / "backup"
    fill_lane(spool, 10)
    assert backup(spool, target).returncode == 0
    (target / UNFINISHED).mkdir()
    (target / "lane-0001.db").write_bytes(b"half a lane")
    done = backup(spool, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert (read_ledger(target).pending, [path.name for path in file.lane_files(target)]) == (10, ["lane-0000.db"])


def test_directories_that_are_not_for_a_backup_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    """A back-up that mixes with another, or with anything else, is none."""
    spool, file_, full, busy = tmp_path / "spool", tmp_path / "file", tmp_path / "full", tmp_path / "busy"
    fill_lane(spool, 10)
    file_.write_text("mine")
    (full / UNFINISHED).mkdir(parents=True)
    (full / "mine").write_text("mine")
    (busy / UNFINISHED).mkdir(parents=True)
    held = os.open(busy / UNFINISHED, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert backup(spool, tmp_path / "earlier").returncode == 0
    for target, expected in (
        (spool, "lies in the spool"),
        (spool / "backup", "lies in the spool"),
        (file_, "is no directory"),
        (full, "holds mine"),
        (tmp_path / "earlier", "is not empty"),
        (busy, "another back-up"),
        (file_ / "x", "Not a directory"),
    ):
        done = backup(spool, target)
        assert (done.returncode, done.stdout) == (2, "")
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    os.close(held)
    assert (full / "mine").read_text() == file_.read_text() == "mine"
    assert not (spool / "backup").exists()


def test_spools_without_files_say_what_to_do_instead(tmp_path: Path, nats_server: NatsServer) -> None:
    """Of a nats:// spool this host has the fallback; the rest is the servers', and a back-up must not pass for one of it."""
    nats = nats_server.spool("BACKUP").url
    for spool, fallback, expected in (
        ("memory:", "", "expected sqlite:DIR"),
        (f"sqlite:{tmp_path}/none", "", "no directory"),
        (nats, "", "on its servers"),
        (nats, f"sqlite:{tmp_path}/none", "fallback: there is no directory"),
    ):
        done = backup(tmp_path, tmp_path / "backup", BEACON_PROXY_SPOOL=spool, BEACON_PROXY_FALLBACK=fallback)
        assert (done.returncode, expected in done.stderr) == (2, True), done.stderr
    prepare(SpoolConfig(nats, fallback=f"sqlite:{tmp_path}/fallback"))
    fill_lane(tmp_path / "fallback", 10)
    fallback = f"sqlite:{tmp_path}/fallback"
    done = backup(tmp_path, tmp_path / "backup", "--json", BEACON_PROXY_SPOOL=nats, BEACON_PROXY_FALLBACK=fallback)
    report = json.loads(done.stdout)
    assert (done.returncode, report["lanes"][0]["pending"]) == (0, 10)
    assert "streams" in report["not_covered"]
    assert "stream" in report["other_files"]


def test_a_damaged_lane_is_named_and_the_others_are_copied(tmp_path: Path) -> None:
    """One file's damage is not the spool's, and success must not be said of it."""
    spool = tmp_path / "spool"
    lanes = [Lane(spool, SpoolConfig("", "os")) for _ in range(3)]
    for lane in lanes:
        lane.append_blocking(*(hit(f"b{number}", 900) for number in range(200)))
        assert lane._db is not None
        lane._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        lane.close()
    lanes[0].path.write_bytes(b"rotten" * 1000)
    with lanes[1].path.open("r+b") as opened:
        opened.seek(20 * 4096 + 8)  # behind how many rows the page has: a count finds nothing
        opened.write(b"rotten" * 600)
    done = backup(spool, tmp_path / "backup", "--json")
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, sorted(report["damaged"])) == (1, ["lane-0000.db", "lane-0001.db"])
    assert [lane["pending"] for lane in report["lanes"] if lane["name"] == "lane-0002.db"] == [200]
    assert "lanes recover" in backup(spool, tmp_path / "again").stdout


def test_a_target_without_room_is_refused_before_and_named_in_between(tmp_path: Path) -> None:
    """Both times in MiB, and with nothing of the copy left on the full disk."""
    spool = tmp_path / "spool"
    fill_lane(spool, 5000)
    with mounted(tmp_path / "small", "4M") as small:
        done = backup(spool, small / "backup")
        assert (done.returncode, done.stdout) == (2, "")
        assert "MiB free; expected" in done.stderr
        assert list(small.iterdir()) == []
    with mounted(tmp_path / "small", "16M") as small:
        with pytest.raises(SpoolError, match=r"is full; free \d+\.\d MiB there"):
            copy(spool, small / "backup", begin=lambda size: fill(small))
        assert [path.name for path in small.iterdir()] == ["ballast"]


def test_a_log_that_grows_too_long_meanwhile_ends_the_copy_and_not_the_collector(tmp_path: Path) -> None:
    """A slow target must not fill the spool, whose log is held as long as its picture is read."""
    spool, config = tmp_path / "spool", SpoolConfig("", "os", max_bytes=48 * MIB)
    fill_lane(spool, 12_000)
    lane = Lane(spool, config)

    def write(size: int) -> None:
        lane.append_blocking(*(hit(f"n{number}", 4000) for number in range(200)))

    with pytest.raises(SpoolError, match="its log grew"):
        back_up(spool, tmp_path / "backup", Disk(spool, config.max_bytes), id, write)
    assert not (tmp_path / "backup").exists()
    lane.append_blocking(hit("after"))
    lane.close()
