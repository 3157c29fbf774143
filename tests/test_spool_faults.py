"""The worst day of the embedded spool: locked, corrupt, gone, full, hanging. Refused, never lost; and by itself well again."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_for
from test_spool import DELIVERED, hit, names

from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.group import Counts, GroupCommit
from proxy.spool.port import RECEIVED, DeadFilter, Intake, Settlement, SpoolConfig, SpoolRefused, Wanted
from proxy.spool.sqlite import file
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.recovery import recover
from proxy.spool.sqlite.survey import read_ledger, why_unready


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks that come each second in service come at once."""
    for name in ("lane.LOOK_S", "lane.REOPEN_S", "outlet.LOOK_S", "outlet.REST_S"):
        monkeypatch.setattr(f"proxy.spool.sqlite.{name}", 0.0)


def refuses(lane: Intake) -> bool:
    try:
        lane.append_blocking(hit("refused?"))
    except SpoolRefused:
        return True
    return False


def damage(path: Path) -> None:
    """Overwrite all pages, so that whoever reads finds it."""
    with path.open("r+b") as opened:
        opened.write(b"rotten" * 700)


def test_a_locked_lane_is_refused_in_time_and_taken_up_again(tmp_path: Path) -> None:
    """Somebody's backup tool holds the file. Nobody waits for longer than commit_timeout."""
    lane = Lane(tmp_path, SpoolConfig("", commit_timeout_s=0.3))
    lane.append_blocking(hit("before"))
    holder = file.open_file(lane.path)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert refuses(lane)
    assert refuses(lane), "while it hangs, a beacon is refused at once"
    assert time.monotonic() - began < 3
    assert "locked" in why_unready(tmp_path, 10**9)
    holder.execute("ROLLBACK")
    wait_for(lambda: not refuses(lane), "the lane to be taken up again")
    assert why_unready(tmp_path, 10**9) == ""
    lane.close()


def test_a_disk_that_hangs_gathers_no_pile_and_drops_nothing_it_may_still_store() -> None:
    """Those whose commit has not begun are told no and are not stored later; the commit under way may still succeed."""
    hanging, going_on = threading.Event(), threading.Event()
    stored: list[str] = []

    def commit(batch: list[Hit], counts: Counts) -> None:
        if not stored and batch:
            hanging.set()
            going_on.wait(20)
        stored.extend(one.query.decode().split("&")[0][3:] for one in batch)

    group = GroupCommit(commit, lambda: None, patience_s=0.2)
    told: list[str] = []

    def append(name: str) -> None:
        try:
            group.append_blocking(hit(name))
            told.append(f"{name} stored")
        except SpoolRefused as refused:
            told.append(f"{name} {refused}")

    threads = [threading.Thread(target=append, args=("first",))]
    threads[0].start()
    assert hanging.wait(5)
    threads += [threading.Thread(target=append, args=(f"later{n}",)) for n in range(5)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(told) == 6
    assert all("hangs" in line for line in told)
    going_on.set()
    wait_for(lambda: stored == ["first"], "the hanging commit's end")
    group.append_blocking(hit("well again"))
    assert stored == ["first", "well again"]
    group.close()


def test_a_caller_is_told_once_even_when_the_hanging_commit_returns_after_all() -> None:
    """The second word could be taken for the answer to the caller's next beacon."""
    going_on = threading.Event()
    group = GroupCommit(lambda batch, counts: going_on.wait(20) and None, lambda: None, patience_s=0.2)
    told: list[SpoolRefused | None] = []

    class Connection:
        def __init__(self) -> None:
            self.answered = asyncio.Event()

        def get_loop(self) -> asyncio.AbstractEventLoop:
            return loop

        def told(self, error: SpoolRefused | None) -> None:
            told.append(error)
            self.answered.set()

    async def converse() -> None:
        first, second = Connection(), Connection()
        group.append_then(hit("a"), first)
        await first.answered.wait()
        going_on.set()
        await asyncio.sleep(0.3)
        group.append_then(hit("b"), second)
        await second.answered.wait()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.wait_for(converse(), 10))
    loop.close()
    assert [error is None for error in told] == [False, True]
    group.close()


def test_a_directory_that_vanishes_is_refused_and_found_again_when_it_is_back(tmp_path: Path) -> None:
    """A volume is unmounted. A file without a name would swallow beacons that nobody reads."""
    place, away = tmp_path / "spool", tmp_path / "away"
    lane, outlet = Lane(place), SqliteOutlet(place)
    lane.append_blocking(hit("before"))
    place.rename(away)
    assert refuses(lane)
    assert refuses(lane)
    assert why_unready(place, 10**9) != ""
    assert not place.exists(), "it is not made anew: the real one may come back"
    away.rename(place)
    wait_for(lambda: not refuses(lane), "the directory to be found again")
    assert "before" in names(outlet.claim(10, 0))
    assert why_unready(place, 10**9) == ""
    lane.close()
    outlet.close()


def test_a_directory_that_was_replaced_is_used_from_its_beginning(tmp_path: Path) -> None:
    """Ids start again in a new file; what was in flight from the old one must not touch the new."""
    place = tmp_path / "spool"
    lane, outlet = Lane(place), SqliteOutlet(place)
    for n in range(5):
        lane.append_blocking(hit(f"old{n}"))
    old = outlet.claim(10, 0)
    shutil.rmtree(place)
    assert refuses(lane)
    place.mkdir()
    wait_for(lambda: not refuses(lane), "the new directory to be used")
    lane.append_blocking(hit("new"))
    assert names(outlet.claim(10, 0))[-1] == "new"
    outlet.settle([Settlement(claim, DELIVERED) for claim in old])
    assert outlet.ledger().total(Outcome.DELIVERED) == 0
    assert outlet.ledger().pending == 2
    lane.close()
    outlet.close()


def test_a_corrupt_lane_is_set_aside_and_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """One file's damage is not the spool's."""
    lane, other, outlet = Lane(tmp_path), Lane(tmp_path), SqliteOutlet(tmp_path)
    lane.append_blocking(hit("rotten"))
    other.append_blocking(hit("sound"))
    lane.close()
    damage(tmp_path / "lane-0000.db")
    outlet.close()
    outlet = SqliteOutlet(tmp_path)
    assert names(outlet.claim(10, 0)) == ["sound"]
    ledger = read_ledger(tmp_path)
    assert [name.startswith("lane-0000.db.corrupt-") for name in ledger.unread] == [True]
    assert (ledger.total(RECEIVED), ledger.pending) == (1, 1)
    again = Lane(tmp_path)
    again.append_blocking(hit("after"))
    assert names(outlet.claim(10, 0)) == ["after"]
    for opened in (again, other, outlet):
        opened.close()


def test_a_lane_that_rots_under_a_collector_is_left_for_a_new_one(tmp_path: Path) -> None:
    """Service resumes with the next beacon or the one after it; the damaged file is kept for whoever can save it."""
    lane = Lane(tmp_path)
    for n in range(200):
        lane.append_blocking(hit(f"{n}" + "x" * 500))
    lane._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    damage(lane.path)
    lane._db.execute("PRAGMA shrink_memory")  # type: ignore[union-attr]
    lane._close()
    wait_for(lambda: not refuses(lane), "a new lane")
    assert read_ledger(tmp_path).pending >= 1
    assert len(file.set_aside_files(tmp_path)) == 1
    assert why_unready(tmp_path, 10**9) == ""
    lane.close()


def test_an_idle_collector_lets_go_of_a_lane_that_another_set_aside(tmp_path: Path) -> None:
    """What it holds can be saved then, and the next beacon finds a lane: it must not be the one that is refused."""
    lane = Lane(tmp_path)
    lane.append_blocking(hit("rotten"))
    aside = file.set_aside(lane.path, file.inode(lane.path))
    assert aside is not None
    wait_for(lambda: (tmp_path / "lane-0000.db").exists(), "a new lane")
    lane.append_blocking(hit("after"))
    assert recover(aside, tmp_path, Disk(tmp_path), False, False, id, id).is_whole
    assert read_ledger(tmp_path).pending == 2
    lane.close()


def test_what_cannot_be_settled_is_kept_and_settled_later(tmp_path: Path) -> None:
    """A lock at the wrong moment must not send everything twice, or unbalance the ledger."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    for n in range(3):
        lane.append_blocking(hit(str(n)))
    claims = outlet.claim(10, 0)
    holder = file.open_file(lane.path)
    holder.execute("BEGIN IMMEDIATE")
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    assert outlet.claim(10, 0) == []
    assert outlet.ledger().pending == 3
    holder.execute("ROLLBACK")
    holder.close()
    assert outlet.claim(10, 0) == []
    assert (outlet.ledger().pending, outlet.ledger().total(Outcome.DELIVERED)) == (0, 3)
    lane.close()
    outlet.close()


CLOSED = {"shop": Wanted(0, 0)}


def test_hits_of_closed_sites_are_set_aside_and_do_not_hold_up_the_others(tmp_path: Path) -> None:
    """One vendor's outage is not the other's."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    for n in range(40):
        lane.append_blocking(hit(f"{n}", site="shop" if n % 4 else "blog"))
    passed = names(outlet.claim(10, 1000, CLOSED)) + names(outlet.claim(10, 1500, CLOSED))
    assert passed == [str(n) for n in range(0, 40, 4)]
    assert outlet.claim(10, 2000, CLOSED) == []
    back = outlet.claim(100, 3000)
    assert {claim.hit.site for claim in back} == {"shop"}
    assert len(back) == 30
    assert {(claim.attempt, claim.failed) for claim in back} == {(1, False)}, "to wait for a breaker is no attempt"
    assert outlet.ledger().pending == 40
    lane.close()
    outlet.close()


def test_what_was_set_aside_of_one_site_keeps_no_other_site_waiting(tmp_path: Path) -> None:
    """The backlog of an outage may be a million: the new beacons of others do not wait for its end, nor does their backlog."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    away = {"first": Wanted(0, 0), "second": Wanted(0, 0)}
    for n in range(60):
        lane.append_blocking(hit(f"{n}", site="first" if n % 2 else "second"))
    assert outlet.claim(60, 0, away) == []
    for n in range(4):
        lane.append_blocking(hit(f"new{n}", site="third"))
    given = [claim.hit.site for _ in range(2) for claim in outlet.claim(8, 0)]
    assert Counter(given)["third"] == 4
    assert set(given) == {"first", "second", "third"}
    assert len(outlet.claim(8, 0)) == 8, "where nothing else waits, all the room is theirs"
    lane.close()
    outlet.close()


def test_retries_of_several_lanes_are_no_more_in_all_than_was_asked_for(tmp_path: Path) -> None:
    """Each lane has its share, and what one leaves is for the next."""
    lanes = [Lane(tmp_path) for _ in range(4)]
    outlet = SqliteOutlet(tmp_path)
    for lane in lanes:
        for n in range(12):
            lane.append_blocking(hit(f"{n}"))
    outlet.settle([Settlement(claim, Retry(5, "500")) for claim in outlet.claim(48, 0)])
    assert len(outlet.claim(12, 10)) == 12
    for lane in lanes:
        lane.close()
    outlet.close()


def test_hits_that_had_an_attempt_leave_room_for_fresh_ones(tmp_path: Path) -> None:
    """Else a few bad ones could keep all others from their first attempt."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    for n in range(20):
        lane.append_blocking(hit(f"bad{n}"))
    outlet.settle([Settlement(claim, Retry(5, counted=False)) for claim in outlet.claim(20, 0)])
    for n in range(20):
        lane.append_blocking(hit(f"good{n}"))
    kinds = Counter(name[:3] for name in names(outlet.claim(8, 10, {"default": Wanted(8, 3)})))
    assert kinds == {"goo": 8, "bad": 3}
    lane.close()
    outlet.close()


def test_a_clock_that_jumped_back_puts_nothing_off_for_good(tmp_path: Path) -> None:
    """A due time a year ahead is a clock's mistake: no verdict puts a hit off for so long."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    lane.append_blocking(hit("waits"))
    now = 1_700_000_000_000
    outlet.settle([Settlement(claim, Retry(now + 365 * 86_400_000, "503")) for claim in outlet.claim(10, now)])
    assert outlet.claim(10, now) == []
    outlet.close()
    outlet = SqliteOutlet(tmp_path)
    wait_for(lambda: names(outlet.claim(10, time.time_ns() // 1_000_000)) == ["waits"], "the hit to be due")
    lane.close()
    outlet.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs here: run as root to test the full disk for real")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _fill_to_the_last_byte(small_disk: Path, lane: Lane) -> int:
    """The hits that were stored before the lane refused; then something else takes what is left."""
    stored = 0
    with contextlib.suppress(SpoolRefused):
        while stored < 5000:
            lane.append_blocking(hit("x" * 4000 + str(stored)))
            stored += 1
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"0" * 4096):
            pass
    assert os.statvfs(small_disk).f_bavail == 0
    assert refuses(lane)
    return stored


def test_a_full_disk_refuses_the_new_and_lets_settlements_through(small_disk: Path) -> None:
    """All of it is full, to the last byte. What settlements empty may be filled again, as long as the reserve is there."""
    spool = small_disk / "spool"
    lane, outlet = Lane(spool), SqliteOutlet(spool)
    stored = _fill_to_the_last_byte(small_disk, lane)
    claims = outlet.claim(10_000, 0)
    assert len(claims) == stored
    more = 0
    for first in range(0, len(claims), 50):
        outlet.settle([Settlement(claim, DELIVERED) for claim in claims[first : first + 50]])
        if not refuses(lane):
            more += 1
            assert (spool / "reserve").exists(), "what the reserve gave is not the collectors'"
    assert more, "what was emptied is not used again"
    ledger = outlet.ledger()
    assert (ledger.pending, ledger.total(Outcome.DELIVERED)) == (more, stored)
    (small_disk / "ballast").unlink(missing_ok=True)
    wait_for(lambda: not refuses(lane), "service to resume")
    assert why_unready(spool, 10**9) == ""
    lane.close()
    outlet.close()


def test_the_reserve_is_for_what_was_promised(small_disk: Path) -> None:
    """Somebody reads the lane, so its log must grow to settle anything: the reserve gives the room, and new beacons wait."""
    spool = small_disk / "spool"
    lane, outlet = Lane(spool), SqliteOutlet(spool)
    stored = _fill_to_the_last_byte(small_disk, lane)
    claims = outlet.claim(10_000, 0)
    with contextlib.closing(file.open_file(lane.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ledger").fetchone()
        for first in range(0, 300, 50):  # each is written once more, which its deletion would not take
            outlet.settle([Settlement(claim, Retry(0)) for claim in claims[first : first + 50]])
        assert not (spool / "reserve").exists()
        assert refuses(lane), "what the reserve gave is not the collectors'"
        assert why_unready(spool, 10**9)
    claims = claims[300:] + outlet.claim(10_000, 10)
    assert len(claims) == stored
    for first in range(0, len(claims), 50):
        outlet.settle([Settlement(claim, DELIVERED) for claim in claims[first : first + 50]])
        assert refuses(lane), "what the reserve gave is not the collectors'"
    ledger = outlet.ledger()
    assert (ledger.pending, ledger.total(Outcome.DELIVERED)) == (0, stored)
    assert "full" in why_unready(spool, 10**9)
    (small_disk / "ballast").unlink(missing_ok=True)
    wait_for(lambda: not refuses(lane), "service to resume")
    assert why_unready(spool, 10**9) == ""
    lane.close()
    outlet.close()


def test_a_disk_that_hangs_also_where_figures_are_told_is_answered_in_time() -> None:
    """What is only told for looking at must not keep the watch from answering those who wait."""
    hangs = threading.Event()

    def commit(batch: list[Hit], counts: Counts) -> None:
        hangs.wait(20)

    group = GroupCommit(commit, lambda: None, 0.2, tell=lambda: hangs.wait(20) and None)
    began = time.monotonic()
    with pytest.raises(SpoolRefused):
        group.append_blocking(hit("waits"))
    assert time.monotonic() - began < 10
    hangs.set()
    group.close()


def dead_spool(place: Path, n: int = 6) -> tuple[Lane, SqliteOutlet]:
    lane, outlet = Lane(place), SqliteOutlet(place)
    for i in range(n):
        lane.append_blocking(hit(str(i), site="shop" if i % 2 else "default"))
    verdicts = [Final(Outcome.REJECTED if i % 3 else Outcome.EXHAUSTED, "404") for i in range(n)]
    outlet.settle([Settlement(claim, verdict) for claim, verdict in zip(outlet.claim(n, 0), verdicts, strict=True)])
    return lane, outlet


def test_dead_letters_are_kept_with_reason_attempts_and_last_answer(tmp_path: Path) -> None:
    """Enough to understand what went wrong, and to try again."""
    lane, outlet = dead_spool(tmp_path)
    letters = SqliteDeadLetters(tmp_path)
    found = letters.list(DeadFilter(), 10)
    assert {(letter.outcome, letter.answer, letter.attempts) for letter in found} == {
        ("rejected", "404", 1),
        ("exhausted", "404", 1),
    }
    assert letters.count(DeadFilter()) == len(found) == 6
    assert letters.count(DeadFilter(outcome="exhausted")) == 2
    assert letters.count(DeadFilter(site="shop", outcome="rejected")) == 2
    assert letters.count(DeadFilter(died_before_ms=1)) == 0
    assert letters.count(DeadFilter(died_after_ms=1)) == 6
    assert letters.count(DeadFilter(ids=(found[0].id, "lane-0009:1"))) == 1
    assert len(letters.list(DeadFilter(), 2)) == 2
    lane.close()
    outlet.close()


def test_replayed_letters_are_pending_again_once_and_keep_their_time(tmp_path: Path) -> None:
    """Twice is the same as once; the ledger balances at each step."""
    lane, outlet = dead_spool(tmp_path)
    letters, told = SqliteDeadLetters(tmp_path), []
    assert letters.replay(DeadFilter(outcome="rejected"), 5, told.append) == 4
    assert letters.replay(DeadFilter(outcome="rejected"), 5, told.append) == 0
    assert sum(told) == 4
    ledger = outlet.ledger()
    assert (ledger.total(RECEIVED), ledger.pending, sum(ledger.ending(Ending.DEAD).values())) == (6, 4, 2)
    again = outlet.claim(10, 10)
    assert [(claim.attempt, claim.hit.received_ms) for claim in again] == [(1, 1_700_000_000_000)] * 4
    outlet.settle([Settlement(claim, DELIVERED) for claim in again])
    ledger = outlet.ledger()
    assert (ledger.pending, ledger.total(Outcome.DELIVERED), sum(ledger.ending(Ending.DEAD).values())) == (0, 4, 2)
    lane.close()
    outlet.close()


def test_discarded_letters_are_gone_and_counted_as_dropped(tmp_path: Path) -> None:
    """The ledger must say where they went."""
    lane, outlet = dead_spool(tmp_path)
    assert SqliteDeadLetters(tmp_path).discard(DeadFilter(site="shop"), lambda n: None) == 3
    ledger = outlet.ledger()
    assert (ledger.total(RECEIVED), ledger.pending, sum(ledger.ending(Ending.DEAD).values())) == (6, 0, 3)
    assert ledger.ending(Ending.DROPPED) == {Outcome.DISCARDED: 3}
    lane.close()
    outlet.close()
