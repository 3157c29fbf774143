"""The whole on a small disk: limits that hold, and a spool that drains whoever filled the disk, with real processes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, free_port, need, wait_for
from small_disk import MIB, du, fill, mounted
from test_spool import DELIVERED, hit

from proxy.outcome import Outcome
from proxy.spool.port import RECEIVED, REFUSED, Settlement, SpoolConfig, SpoolRefused
from proxy.spool.sqlite import file
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.disk import RESERVE, Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.survey import read_ledger, why_unready

Serve = Callable[..., ProxyProcess]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with mounted(tmp_path / "disk", "24M") as place:
        yield place


@contextlib.contextmanager
def a_reader(lane: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program that reads the lane and does not stop."""
    code = (
        "import apsw, sys, time; db = apsw.Connection(sys.argv[1], apsw.SQLITE_OPEN_READONLY); db.execute('BEGIN'); "
        "print(db.execute('SELECT count(*) FROM fresh').fetchone(), flush=True); time.sleep(120)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lane)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        try:
            yield reader
        finally:
            reader.kill()


def store(lane: Lane, most: int, size: int = 2_000) -> int:
    """How many were stored before the first was refused."""
    for n in range(most):
        try:
            lane.append_blocking(hit("x" * size + str(n)))
        except SpoolRefused:
            return n
    return most


def deliver_all(outlet: SqliteOutlet) -> int:
    n = 0
    while claims := outlet.claim(200, 10):
        outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
        n += len(claims)
    return n


@pytest.mark.parametrize("max_bytes", [2 * MIB, 4 * MIB])
def test_max_bytes_holds_while_refusals_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int) -> None:
    """Counts that were written cleared the refusal once: the spool grew without end, and said so each time."""
    monkeypatch.setattr("proxy.spool.group.COUNTS_S", 0.0)
    lane = Lane(tmp_path, SpoolConfig("", "os", max_bytes=max_bytes))
    outcomes = []
    for n in range(9_000):
        try:
            lane.append_blocking(hit("x" * 600 + str(n)))
            outcomes.append(True)
        except SpoolRefused:
            outcomes.append(False)
            lane.refuse("default")
    assert not any(outcomes[-1_000:])
    assert du(tmp_path) <= max_bytes + 256 * 1024
    wait_for(lambda: read_ledger(tmp_path).total(REFUSED) == outcomes.count(False), "the refusals to be counted")
    lane.close()


def test_spool_bytes_is_what_du_says_with_the_log_that_a_reader_holds(tmp_path: Path) -> None:
    """A log of 299 MB was left out once, while 28 KB were told."""
    lane = Lane(tmp_path, SpoolConfig("", "os"))
    lane.append_blocking(hit("first"))
    with a_reader(lane.path):
        store(lane, 3_000)
        (tmp_path / "lane-0007.db.corrupt-1").write_bytes(b"x" * MIB)
        told, found = Disk(tmp_path).used_bytes(), du(tmp_path)
        assert file.log_size(lane.path) > 10 * MIB
        assert abs(told - found) <= 0.05 * found
    lane.close()


def test_a_reader_that_holds_the_log_back_is_named_and_its_end_ends_it(tmp_path: Path) -> None:
    """A back-up tool or a shell left open: the limit holds, the operator learns which process it is; its end is all it needs."""
    config = SpoolConfig("", "os", max_bytes=4 * MIB)
    lane, outlet = Lane(tmp_path, config), SqliteOutlet(tmp_path, config)
    lane.append_blocking(hit("first"))
    with a_reader(lane.path) as reader:
        stored = 1 + store(lane, 10_000)
        with pytest.raises(SpoolRefused, match=rf"a reader holds the log back since .*process {reader.pid}\b.*max_bytes"):
            lane.append_blocking(hit("one more"))
        assert str(reader.pid) in why_unready(tmp_path, config.max_bytes)
        assert du(tmp_path) <= config.max_bytes + 256 * 1024
    assert deliver_all(outlet) == stored
    wait_for(lambda: not why_unready(tmp_path, config.max_bytes), "readiness, with no beacon sent")
    lane.append_blocking(hit("again"))
    assert file.log_size(lane.path) <= 4 * Disk(tmp_path, config.max_bytes).log_bytes()
    lane.close()
    outlet.close()


def test_collectors_leave_the_reserve_and_room_for_it_while_the_vendor_is_away(small_disk: Path) -> None:
    """They filled the disk to the last byte once, the reserve included."""
    spool = small_disk / "spool"
    lanes = [Lane(spool, SpoolConfig("", "os")) for _ in range(3)]
    while sum(store(lane, 50, 4_000) for lane in lanes):
        for lane in lanes:
            lane.refuse("default")
    assert (spool / RESERVE).exists()
    assert os.statvfs(spool).f_bavail * os.statvfs(spool).f_frsize >= Disk(spool).reserve_bytes()
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize("size", [100, 2_000, 30_000], ids=["small", "2 kB", "30 kB"])
def test_a_disk_that_is_full_to_the_last_byte_drains(small_disk: Path, size: int) -> None:
    """Whatever filled it, and whatever the size of the beacons: delivery needs no operator."""
    spool = small_disk / "spool"
    lane, outlet = Lane(spool, SpoolConfig("", "os")), SqliteOutlet(spool)
    stored = store(lane, 3_000, size)
    fill(small_disk)
    assert deliver_all(outlet) == stored
    assert outlet.ledger().pending == 0
    lane.close()
    outlet.close()


def test_a_filler_that_eats_every_block_that_becomes_free_stops_no_delivery(small_disk: Path) -> None:
    """What is given back to the disk in order to write is gone before it is written: the room must be the spool's own."""
    spool = small_disk / "spool"
    lane, outlet = Lane(spool, SpoolConfig("", "os")), SqliteOutlet(spool)
    stored = store(lane, 2_000)
    code = (
        "import sys, time; opened = open(sys.argv[1], 'ab', buffering=0); print('.', flush=True); end = time.time() + 30\n"
        "while time.time() < end:\n try: opened.write(b'0' * 4096)\n except OSError: pass"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(small_disk / "eater")], stdout=subprocess.PIPE) as eater:
        try:
            wait_for(lambda: os.statvfs(small_disk).f_bavail == 0, "the disk to be full")
            assert deliver_all(outlet) == stored
            assert outlet.ledger().pending == 0
        finally:
            eater.kill()
    lane.close()
    outlet.close()


def test_dead_letters_are_replayed_and_discarded_on_a_full_disk(small_disk: Path) -> None:
    """An operator's settlements use the room that is kept for settlements, too."""
    from proxy.delivery import Final
    from proxy.spool.port import DeadFilter

    spool = small_disk / "spool"
    lane, outlet = Lane(spool, SpoolConfig("", "os")), SqliteOutlet(spool)
    stored = store(lane, 600, 4_000)
    while claims := outlet.claim(200, 10):
        outlet.settle([Settlement(claim, Final(Outcome.REJECTED, "404")) for claim in claims])
    fill(small_disk)
    letters = SqliteDeadLetters(spool)
    half = letters.list(DeadFilter(), stored // 2)
    assert letters.replay(DeadFilter(ids=tuple(letter.id for letter in half)), 5, lambda n: None) == stored // 2
    assert letters.discard(DeadFilter(), lambda n: None) == stored - stored // 2
    assert deliver_all(outlet) == stored // 2
    assert outlet.ledger().total(Outcome.DISCARDED) == stored - stored // 2
    lane.close()
    outlet.close()


def test_a_restart_on_a_full_disk_delivers_what_was_stored(small_disk: Path, serve: Serve, sandbox: SandboxProcess) -> None:
    """No room even for SQLite's shared memory: 1,508 of 1,508 waited for ever once."""
    spool, port = small_disk / "spool", free_port()
    proxy = serve(spool=spool, upstream=f"http://127.0.0.1:{port}", durability="os")
    with httpx.Client() as client:
        answers = [client.post(f"{proxy.url}/e?_n=n{n}&_p=p", content=b"x=" + b"y" * 9_000).status_code for n in range(700)]
    stored = answers.count(200)
    assert stored > 100
    proxy.stop()
    fill(small_disk)
    proxy = serve(spool=spool, upstream=sandbox.url, durability="os")
    assert len(sandbox.wait(stored)) == stored
    wait_for(lambda: proxy.status()["pending"] == 0, "the ledger")
    (small_disk / "ballast").unlink()
    wait_for(lambda: httpx.get(f"{proxy.url}/e?_n=again&_p=p").status_code == 200, "service to resume", 5)


def test_where_no_byte_can_be_written_the_one_thing_to_do_is_said_and_it_then_drains(small_disk: Path) -> None:
    """The reserve was used up by what a reader held back, and another program has the rest."""
    from proxy.delivery import Retry

    spool = small_disk / "spool"
    lane, outlet = Lane(spool, SpoolConfig("", "os")), SqliteOutlet(spool)
    stored = store(lane, 1_000, 4_000)
    claims = outlet.claim(10_000, 10)
    with a_reader(lane.path):
        fill(small_disk)
        for first in range(0, len(claims), 50):
            outlet.settle([Settlement(claim, Retry(0)) for claim in claims[first : first + 50]])
        fill(small_disk, "more")
        wait_for(lambda: not (spool / RESERVE).exists(), "the reserve to be used up", 5)
        reason = why_unready(spool, 10**10)
        assert "reserve used up: free" in reason
        assert "MiB there" in reason
    (small_disk / "ballast").unlink()
    time_limit = time.monotonic() + 10
    while outlet.ledger().pending and time.monotonic() < time_limit:
        outlet.publish(b"")
        deliver_all(outlet)
    ledger = outlet.ledger()
    assert (ledger.total(RECEIVED), ledger.total(Outcome.DELIVERED)) == (stored, stored)
    wait_for(lambda: outlet.claim(1, 0) == [] and (spool / RESERVE).exists(), "the reserve to be kept again")
    lane.append_blocking(hit("again"))
    lane.close()
    outlet.close()


def test_the_forwarders_state_is_published_on_a_full_disk(small_disk: Path) -> None:
    """An operator who asks on the worst day must not read that no forwarder is running."""
    spool = small_disk / "spool"
    Lane(spool).close()
    outlet = SqliteOutlet(spool)
    outlet.publish(b'{"n": 1}')
    fill(small_disk)
    outlet.publish(b'{"n": 2}')
    assert outlet.recall() == b'{"n": 2}'
    outlet.close()


def test_lanes_without_a_collector_give_their_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After four collectors became one, the emptied lanes kept their room: the same disk took half as much."""
    monkeypatch.setattr("proxy.spool.sqlite.outlet.SHRINK_S", 0.0)
    lanes = [Lane(tmp_path, SpoolConfig("", "os")) for _ in range(4)]
    for lane in lanes:
        store(lane, 1_500)
    outlet = SqliteOutlet(tmp_path)
    for lane in lanes[1:]:
        lane.close()
    deliver_all(outlet)
    outlet.claim(1, 0)
    for lane in lanes[1:]:
        assert sum(path.stat().st_blocks * 512 for path in tmp_path.glob(f"{lane.path.name}*")) < 256 * 1024
    assert outlet.ledger().total(Outcome.DELIVERED) == 6_000
    lanes[0].append_blocking(hit("goes on"))
    again = Lane(tmp_path)
    again.append_blocking(hit("adopted"))
    assert deliver_all(outlet) == 2
    for opened in (lanes[0], again, outlet):
        opened.close()


def test_a_large_file_that_was_drained_is_shrunk_while_its_collector_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `du` says of a spool that has drained is what it holds, or every outage would end in an alarm."""
    monkeypatch.setattr("proxy.spool.sqlite.outlet.SHRINK_S", 0.0)
    monkeypatch.setattr("proxy.spool.sqlite.reader.SHRINK_BYTES", 2 * MIB)
    lane, outlet = Lane(tmp_path, SpoolConfig("", "os")), SqliteOutlet(tmp_path)
    for _ in range(3):
        store(lane, 2_000)
        deliver_all(outlet)
        outlet.claim(1, 0)
        lane.append_blocking(hit("between"))
    assert lane.path.stat().st_size < 3 * MIB
    ids = [claim.ticket.id for claim in outlet.claim(10, 0)]
    assert ids == [6_003], "ids go on after the file was written anew"
    lane.close()
    outlet.close()


@pytest.fixture
def quota(tmp_path: Path) -> Iterator[Path]:
    """A btrfs subvolume with a quota of 96 MiB, on a file system that has more room."""
    need("mkfs.btrfs", "btrfs-progs")
    image, place = tmp_path / "btrfs.img", tmp_path / "btrfs"
    with image.open("wb") as opened:
        opened.truncate(300 * MIB)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount btrfs here: run as root, on a kernel with btrfs, to test a quota for real")
    try:
        for command in (
            ["quota", "enable", str(place)],
            ["subvolume", "create", str(place / "of-ours")],
            ["qgroup", "limit", "96M", str(place / "of-ours")],
        ):
            subprocess.run(["btrfs", *command], check=True, capture_output=True)
        yield place / "of-ours"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_quota_that_is_used_up_refuses_drains_and_kills_nobody(quota: Path) -> None:
    """The file system says that there is room, and who touches SQLite's shared memory then ends with SIGBUS: so in a process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_full_disk import *\n"
        "from pathlib import Path\n"
        "spool = Path(sys.argv[1]); lane, outlet = Lane(spool, SpoolConfig('', 'os')), SqliteOutlet(spool)\n"
        "stored = store(lane, 20_000, 20_000)\n"
        "reason = why_unready(spool, 10**10)\n"
        "delivered = deliver_all(outlet)\n"
        "print(stored, delivered, outlet.ledger().pending, reason, flush=True); import os; os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(quota / "spool"), str(Path(__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    stored, delivered, pending, reason = ran.stdout.split(maxsplit=3)
    assert 100 < int(stored) < 20_000
    assert (delivered, pending) == (stored, "0")
    assert "full" in reason
