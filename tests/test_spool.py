"""The spool's contract, for every adapter; then what only SQLite promises."""

import asyncio
import contextlib
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_for
from msgspec.structs import replace

from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.fallback.intake import FallbackIntake
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.memory import MemorySpool
from proxy.spool.port import (
    RECEIVED,
    REFUSED,
    TRIMMED,
    Claim,
    ForwarderRunning,
    Intake,
    Outlet,
    Settlement,
    SpoolConfig,
    SpoolError,
    SpoolRefused,
    Wanted,
)
from proxy.spool.sqlite.file import open_file
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.survey import read_ledger


def hit(name: str, received_ms: int = 1_700_000_000_000, site: str = "default") -> Hit:
    return Hit("e", f"_n={name}&_p=p".encode(), b"", site, "shop.example", "192.0.2.1", "UA", "", "", received_ms)


def names(claims: list[Claim]) -> list[str]:
    return [claim.hit.query.decode().split("&")[0].removeprefix("_n=") for claim in claims]


DELIVERED = Final(Outcome.DELIVERED, "200")

Halves = tuple[Intake, Callable[[], Outlet]]


@pytest.fixture(params=["memory", "sqlite-disk", "sqlite-os", "jetstream", "fallback"])
def spool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Halves]:
    """An intake, and a way to open the outlet."""
    if request.param in ("jetstream", "fallback"):
        monkeypatch.setattr("proxy.spool.jetstream.outlet.LOOK_S", 0.0)
        config = request.getfixturevalue("nats_server").spool(secrets.token_hex(4))
        wrapped = FallbackIntake(replace(config, fallback=f"sqlite:{tmp_path}")) if request.param == "fallback" else None
        halves = wrapped or JetStreamIntake(config), JetStreamOutlet(config)
        yield halves[0], lambda: halves[1]
        for half in halves:
            half.close()
        return
    if request.param == "memory":
        memory = MemorySpool()
        yield memory, lambda: memory
        return
    lane = Lane(tmp_path, SpoolConfig("", request.param.removeprefix("sqlite-")))
    outlets: list[SqliteOutlet] = []

    def outlet() -> Outlet:
        if not outlets:
            outlets.append(SqliteOutlet(tmp_path))
        return outlets[0]

    yield lane, outlet
    lane.close()
    for opened in outlets:
        opened.close()


def test_hits_come_back_whole_and_oldest_first(spool: Halves) -> None:
    """Order and bytes are kept: interpretation comes later."""
    intake, outlet = spool
    stored = [hit(str(n)) for n in range(10)]
    for one in stored:
        intake.append_blocking(one)
    claims = outlet().claim(100, 0)
    assert [claim.hit for claim in claims] == stored
    assert {claim.attempt for claim in claims} == {1}


def test_a_claimed_hit_is_not_given_out_twice(spool: Halves) -> None:
    """In flight means in flight."""
    intake, outlet = spool
    for n in range(5):
        intake.append_blocking(hit(str(n)))
    assert names(outlet().claim(2, 0)) + names(outlet().claim(10, 0)) == ["0", "1", "2", "3", "4"]
    assert outlet().claim(10, 0) == []


def test_a_delivered_hit_is_gone_and_counted(spool: Halves) -> None:
    """The ledger follows the rows."""
    intake, outlet = spool
    intake.append_blocking(hit("a"))
    claims = outlet().claim(10, 0)
    outlet().settle([Settlement(claims[0], Final(Outcome.DELIVERED, "200", trimmed=True))])
    ledger = outlet().ledger()
    assert (ledger.total(RECEIVED), ledger.total(Outcome.DELIVERED), ledger.total(TRIMMED), ledger.pending) == (1, 1, 1, 0)


def test_settling_twice_counts_once(spool: Halves) -> None:
    """A settlement repeated after a fault must not unbalance the ledger."""
    intake, outlet = spool
    intake.append_blocking(hit("a"))
    [claim] = outlet().claim(10, 0)
    outlet().settle([Settlement(claim, DELIVERED)])
    outlet().settle([Settlement(claim, DELIVERED)])
    assert outlet().ledger().total(Outcome.DELIVERED) == 1


def test_a_retry_is_due_at_its_time_with_the_attempt_counted(spool: Halves) -> None:
    """Not before, and not forgotten."""
    intake, outlet = spool
    intake.append_blocking(hit("a"))
    [claim] = outlet().claim(10, 1000)
    outlet().settle([Settlement(claim, Retry(2000, "503"))])
    assert outlet().claim(10, 1999) == []
    [again] = outlet().claim(10, 2000)
    assert again.attempt == 2
    outlet().settle([Settlement(again, Retry(3000, "503"))])
    assert outlet().claim(10, 2999) == []
    [third] = outlet().claim(10, 3000)
    assert third.attempt == 3
    outlet().settle([Settlement(third, DELIVERED)])
    assert outlet().ledger().pending == 0


def test_retries_take_no_more_than_their_part_and_no_hit_from_its_first_attempt(spool: Halves) -> None:
    """Beacons that fail alone, however many, must not be all that is given out."""
    intake, outlet = spool
    for n in range(6):
        intake.append_blocking(hit(f"bad{n}", site="one"))
    intake.append_blocking(hit("other", site="two"))
    claims = outlet().claim(10, 0)
    assert not any(claim.failed for claim in claims)
    outlet().settle([Settlement(claim, Retry(1000, "500")) for claim in claims])
    intake.append_blocking(hit("good", site="one"))
    wanted = {"one": Wanted(5, 2)}
    first = outlet().claim(5, 2000, wanted)
    assert sorted(name.rstrip("012345") for name in names(first)) == ["bad", "bad", "good", "other"]
    assert {claim.hit.query: claim.failed for claim in first}[b"_n=good&_p=p"] is False
    assert sum(claim.failed for claim in first) == 3
    assert names(outlet().claim(5, 2000, {"one": Wanted(5, 0)})) == []
    rest = outlet().claim(5, 2000)
    assert len(rest) == 4
    assert all(claim.failed for claim in rest)


def test_retries_of_many_sites_are_no_more_in_all_than_was_asked_for(spool: Halves) -> None:
    """What a forwarder holds must not grow with the number of sites."""
    intake, outlet = spool
    for n in range(12):
        intake.append_blocking(hit(f"{n}", site=f"site{n % 6}"))
    outlet().settle([Settlement(claim, Retry(1000, "500")) for claim in outlet().claim(12, 0)])
    found = outlet().claim(4, 2000)
    assert (len(found), {claim.failed for claim in found}) == (4, {True})


def test_a_hit_that_was_only_set_aside_has_not_failed_and_keeps_its_place(spool: Halves) -> None:
    """It is due at once, whatever any clock says, and before those that came later."""
    intake, outlet = spool
    for name in "abc":
        intake.append_blocking(hit(name))
    claims = outlet().claim(2, 0)
    outlet().settle([Settlement(claim, Retry(0, counted=False)) for claim in claims])
    again = outlet().claim(10, 0)
    assert sorted(names(again)) == ["a", "b", "c"]
    assert {(claim.attempt, claim.failed) for claim in again} == {(1, False)}


def test_a_hit_that_waits_does_not_hold_up_the_others(spool: Halves) -> None:
    """One bad hit is not an outage."""
    intake, outlet = spool
    intake.append_blocking(hit("waits"))
    [claim] = outlet().claim(1, 0)
    outlet().settle([Settlement(claim, Retry(9000, "503"))])
    intake.append_blocking(hit("passes"))
    assert names(outlet().claim(10, 0)) == ["passes"]


def test_the_ledger_balances_by_site_and_outcome(spool: Halves) -> None:
    """received = delivered + dropped + dead + pending, and 503s are counted apart."""
    intake, outlet = spool
    for n in range(6):
        intake.append_blocking(hit(str(n), site="shop" if n % 2 else "default"))
    intake.drop("shop", Outcome.TOO_LARGE)
    intake.refuse("shop")
    claims = outlet().claim(5, 0)
    verdicts = [DELIVERED, Final(Outcome.REJECTED, "404"), Final(Outcome.NO_NAME), Retry(10**15, "500")]
    outlet().settle([Settlement(claim, verdict) for claim, verdict in zip(claims, verdicts, strict=False)])
    intake.append_blocking(hit("last"))
    wait_for(lambda: (found := outlet().ledger()).total(REFUSED) and found.total(RECEIVED) == 8, "what was counted to be written")
    ledger = outlet().ledger()
    ended = sum(sum(ledger.ending(ending).values()) for ending in Ending)
    assert ledger.total(RECEIVED) == 8 == ended + ledger.pending
    assert ledger.pending == 4
    assert ledger.total(REFUSED) == 1
    assert ledger.counts["shop"]["too_large"] == 1


def test_the_oldest_pending_hit_is_known(spool: Halves) -> None:
    """The age of the backlog is what an operator looks at first."""
    intake, outlet = spool
    assert outlet().ledger().oldest_pending_ms is None
    intake.append_blocking(hit("old", 1000))
    intake.append_blocking(hit("new", 2000))
    [claim] = outlet().claim(1, 0)
    outlet().settle([Settlement(claim, Retry(10**15, "500"))])
    assert outlet().ledger().oldest_pending_ms == 1000


def test_threads_and_tasks_may_append_at_once(spool: Halves) -> None:
    """Many appends share a commit; none is lost and none is doubled."""
    intake, outlet = spool

    async def tasks() -> None:
        await asyncio.gather(*(intake.append(hit(f"task{n}")) for n in range(200)))

    threads = [threading.Thread(target=lambda n=n: intake.append_blocking(hit(f"thread{n}"))) for n in range(50)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    assert len(set(names(outlet().claim(1000, 0)))) == 250
    assert outlet().ledger().total(RECEIVED) == 250


def test_what_was_claimed_but_not_settled_is_given_out_again_after_a_restart(tmp_path: Path) -> None:
    """A crash between send and settle leads to a resend, never to a loss; waiting hits keep their attempts."""
    lane = Lane(tmp_path)
    for n in range(3):
        lane.append_blocking(hit(str(n)))
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(10, 0)
    outlet.settle([Settlement(claims[0], DELIVERED), Settlement(claims[1], Retry(5, "503"))])
    outlet.close()
    again = SqliteOutlet(tmp_path)
    assert [(*names([claim]), claim.attempt) for claim in again.claim(10, 10)] == [("1", 2), ("2", 1)]
    again.close()
    lane.close()


def test_ids_are_never_reused_after_the_table_was_emptied(tmp_path: Path) -> None:
    """Without AUTOINCREMENT a reader that remembers the last id would never see the new rows."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    for n in range(50):
        lane.append_blocking(hit(str(n)))
        claims = outlet.claim(10, 0)
        assert names(claims) == [str(n)]
        outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    lane.close()
    outlet.close()


def test_a_lane_belongs_to_one_process_and_is_adopted_when_it_is_gone(tmp_path: Path) -> None:
    """Writers never wait for each other, and lanes don't pile up."""
    first = Lane(tmp_path)
    second = Lane(tmp_path)
    assert first.path != second.path
    first.close()
    adopted = Lane(tmp_path)
    assert adopted.path == first.path
    adopted.close()
    second.close()


def test_one_forwarder_at_a_time_holds_a_spool(tmp_path: Path) -> None:
    """Two would send everything twice."""
    outlet = SqliteOutlet(tmp_path)
    with pytest.raises(ForwarderRunning):
        SqliteOutlet(tmp_path)
    outlet.close()
    SqliteOutlet(tmp_path).close()


def test_a_lane_that_appears_later_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector added while the forwarder runs."""
    monkeypatch.setattr("proxy.spool.sqlite.outlet.LOOK_S", 0.0)
    first, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    first.append_blocking(hit("one"))
    assert names(outlet.claim(10, 0)) == ["one"]
    second = Lane(tmp_path)
    second.append_blocking(hit("two"))
    assert names(outlet.claim(10, 0)) == ["two"]
    for opened in (first, second, outlet):
        opened.close()


def test_a_newer_schema_is_refused_in_plain_words(tmp_path: Path) -> None:
    """A downgrade must not damage what it does not understand."""
    Lane(tmp_path).close()
    db = open_file(tmp_path / "lane-0000.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    for attempt in (lambda: Lane(tmp_path), lambda: read_ledger(tmp_path)):
        with pytest.raises(SpoolError, match=r"schema 99.*newer version"):
            attempt()


def test_an_unreadable_record_becomes_a_dead_letter_and_holds_up_nothing(tmp_path: Path) -> None:
    """Bytes that rotted, or a record of a version that we don't know."""
    lane = Lane(tmp_path)
    lane.append_blocking(hit("before"))
    db = open_file(lane.path, durability="os")
    db.execute("INSERT INTO fresh (hit) VALUES (?)", (b"\xff\xffrotten",))
    db.execute("UPDATE ledger SET n = n + 1 WHERE name = 'received'")
    lane.append_blocking(hit("after"))
    outlet = SqliteOutlet(tmp_path)
    assert names(outlet.claim(10, 0)) == ["before", "after"]
    assert outlet.ledger().ending(Ending.DEAD) == {Outcome.UNREADABLE: 1}
    assert outlet.ledger().pending == 2
    db.close()
    lane.close()
    outlet.close()


def test_a_full_spool_refuses_the_new_and_keeps_the_old(tmp_path: Path) -> None:
    """The refusal is counted once there is room to count it."""
    lane = Lane(tmp_path, SpoolConfig("", max_bytes=200_000))
    stored = 0
    big = Hit("e", b"x" * 20_000, b"", "default", "", "", "", "", "", 0)
    with contextlib.suppress(SpoolRefused):
        while stored < 100:
            lane.append_blocking(big)
            stored += 1
    with pytest.raises(SpoolRefused, match="max_bytes"):
        lane.append_blocking(big)
    lane.refuse("default")
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(100, 0)
    assert len(claims) == stored < 100
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    lane.append_blocking(big)
    lane.close()
    assert outlet.ledger().total(REFUSED) == 1
    outlet.close()


def test_what_was_appended_survives_kill_9_of_the_process(tmp_path: Path) -> None:
    """The append that returned is in the file, whatever happens to the process in the next instant."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from test_spool import Lane, SpoolConfig, hit\n"
        "lane = Lane(sys.argv[1], SpoolConfig('', 'os'))\n"
        "for n in range(100): lane.append_blocking(hit(str(n)))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], timeout=60)
    assert killed.returncode == -9
    assert read_ledger(tmp_path).pending == 100


def test_the_spool_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """Visitors' data: not for every account on the machine."""
    Lane(tmp_path / "spool").close()
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


def test_an_absent_directory_is_an_empty_spool(tmp_path: Path) -> None:
    """`status` before the first start creates nothing."""
    assert read_ledger(tmp_path / "none").pending == 0
    assert not (tmp_path / "none").exists()
