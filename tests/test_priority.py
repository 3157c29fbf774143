"""Who waits for whom: a backlog that drains must not be felt by a visitor."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from conftest import ProxyProcess, SandboxProcess, children, wait_for
from test_spool import DELIVERED, hit

from proxy.delivery import Final, Retry
from proxy.outcome import Ending, Outcome
from proxy.spool.port import DeadFilter, Settlement, SpoolConfig
from proxy.spool.sqlite import database
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.reader import LaneReader
from proxy.spool.sqlite.survey import read_ledger


def _policies(pid: int) -> list[int]:
    return [os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has SCHED_IDLE")
def test_the_forwarder_takes_only_processor_time_that_nobody_else_wants(
    serve: Callable[..., ProxyProcess], sandbox: SandboxProcess
) -> None:
    """But not its thread that writes to the spool: it may hold the lock that a collector waits for."""
    proxy = serve()

    def forwarder() -> list[int]:
        for pid in children(proxy.process.pid):
            if b"forwarder" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.SCHED_IDLE in _policies(pid):
                return _policies(pid)
        return []

    policies = wait_for(forwarder, "a forwarder that has stepped back")
    assert policies[0] == os.SCHED_IDLE
    assert policies.count(os.SCHED_OTHER) == 1
    for pid in children(proxy.process.pid):
        if b"forwarder" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            assert set(_policies(pid)) == {os.SCHED_OTHER}


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    """With a hundred hits."""
    lane = Lane(tmp_path, SpoolConfig("", "os"))
    for n in range(100):
        lane.append_blocking(hit(f"n{n}"))
    return lane


def test_a_batch_is_settled_by_one_statement(lane: Lane, tmp_path: Path) -> None:
    """Between two statements Python's own lock is given away and waited for: with the lane locked, and visitors waiting."""
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(100, 1)
    statements = traced(outlet)
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    assert len(statements) == 1
    assert read_ledger(tmp_path).total("delivered") == 100
    outlet.close()
    lane.close()


def test_settlements_of_many_are_written_in_pieces(lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is held for a fraction of a millisecond, however much has gathered."""
    monkeypatch.setattr("proxy.spool.sqlite.reader.TOGETHER", 30)
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(100, 1)
    statements = traced(outlet)
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    assert len(statements) == 4
    assert read_ledger(tmp_path).pending == 0
    outlet.close()
    lane.close()


def traced(outlet: SqliteOutlet) -> list[str]:
    """The statements that its one reader executes from now on, without the steps of triggers."""
    statements: list[str] = []
    [reader] = outlet._readers.values()

    def note(event: dict[str, Any]) -> None:
        if not event["trigger"]:
            statements.append(event["sql"])

    reader.db.trace_v2(apsw.SQLITE_TRACE_STMT, note)
    return statements


def _fails_at(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """That write of the forwarder's fails, once."""
    write, calls = database.write, 0

    def failing(db: database.Connection, statement: str, parameters: Sequence[object] = ()) -> None:
        nonlocal calls
        calls += 1
        if calls == which:
            raise apsw.BusyError("database is locked")
        write(db, statement, parameters)

    monkeypatch.setattr("proxy.spool.sqlite.reader.database.write", failing)
    monkeypatch.setattr("proxy.spool.sqlite.outlet.REST_S", 0.0)


def test_what_was_half_written_when_the_lane_failed_is_not_counted_twice(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of several kinds is several transactions; the whole batch is written again after a failure between them."""
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(100, 1)
    kinds = [DELIVERED, Final(Outcome.DELIVERED, "200", trimmed=True), Final(Outcome.REJECTED, "404"), Retry(1)]
    _fails_at(monkeypatch, 3)
    outlet.settle([Settlement(claim, kinds[n % 4]) for n, claim in enumerate(claims)])
    half = read_ledger(tmp_path)
    assert (half.total("delivered"), half.ending(Ending.DEAD)) == (50, {})
    outlet.settle([])
    outlet.publish(b"")  # which writes what is left
    whole = read_ledger(tmp_path)
    assert (whole.total("delivered"), whole.total("trimmed"), whole.pending) == (50, 25, 25)
    assert whole.ending(Ending.DEAD) == {Outcome.REJECTED: 25}
    assert len(outlet.claim(100, 2)) == 25
    outlet.close()
    lane.close()


def test_what_is_written_is_forgotten_at_once(lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters that an operator replays between a failure and the next try must not die again by the old verdict."""
    outlet = SqliteOutlet(tmp_path)
    outlet.settle([Settlement(claim, Retry(0)) for claim in outlet.claim(100, 1)])
    claims = outlet.claim(100, 1)
    _fails_at(monkeypatch, 2)
    dies = Final(Outcome.REJECTED, "404")
    outlet.settle([Settlement(claim, DELIVERED if n % 2 else dies) for n, claim in enumerate(claims)])
    monkeypatch.undo()
    letters = SqliteDeadLetters(tmp_path)
    assert letters.replay(DeadFilter(), 1, lambda more: None) == 50
    monkeypatch.setattr("proxy.spool.sqlite.outlet.REST_S", 0.0)
    outlet.publish(b"")
    wait_for(lambda: outlet.publish(b"") or read_ledger(tmp_path).total("delivered") == 50, "the rest to be written")
    assert letters.count(DeadFilter()) == 0
    assert read_ledger(tmp_path).pending == 50
    outlet.close()
    lane.close()


def test_the_forwarder_brings_the_log_into_the_file_before_a_visitors_commit_has_to(lane: Lane, tmp_path: Path) -> None:
    """A checkpoint takes milliseconds, and whoever makes it waits for it."""
    reader = LaneReader(lane.path)
    lanes, readers = (db.pragma("wal_autocheckpoint") for db in (lane._db, reader.db) if db is not None)
    assert 0 < readers < lanes
    reader.close()
    lane.close()
