"""The lane as a state machine, on a real disk that fills up, against a model: whatever happens in whatever order, it never takes
beacons while it is not ready, always takes them when it is, keeps within its limit, and what it took is delivered once.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import wait_for
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from small_disk import du, fill, mounted

from proxy.delivery import Final
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.port import RECEIVED, REFUSED, Settlement, SpoolConfig, SpoolRefused
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.survey import audit, read_ledger, why_unready

MAX_BYTES = 1024**2
SMALL_BYTES = 20_000
"""A batch that fits wherever there is room at all."""
DELIVERED = Final(Outcome.DELIVERED, "200")


class LaneMachine(RuleBasedStateMachine):
    """The model: names that were answered 200, counts, and what is wrong just now."""

    disk: Path
    clock: SimpleNamespace

    @initialize()
    def start(self) -> None:
        self.place = Path(tempfile.mkdtemp(dir=self.disk))
        self.spool, self.away = self.place / "spool", self.place / "away"
        self.config = SpoolConfig("", "os", max_bytes=MAX_BYTES, commit_timeout_s=0.2)
        self.lane = Lane(self.spool, self.config)
        self.outlet = SqliteOutlet(self.spool, self.config)
        self.number = 0
        self.taken: set[str] = set()
        self.unsure: set[str] = set()
        """Answered 503, and stored all the same: a commit that took too long, or a file that lost its name just then."""
        self.delivered: set[str] = set()
        self.dropped = 0
        self.ballast: Path | None = None
        self.locked = False
        self.holder: database.Connection | None = None
        self.largest_batch = 0

    def teardown(self) -> None:
        if hasattr(self, "lane"):
            self.heal()
            self.drain()
            self.lane.close()
            self.outlet.close()
            shutil.rmtree(self.place)

    @property
    def is_here(self) -> bool:
        return self.spool.exists()

    @rule(n=st.integers(1, 30), size=st.sampled_from([10, 600, 4_000, 60_000]))
    def append(self, n: int, size: int) -> None:
        """Ready means taken, not ready means refused: there is nothing between."""
        self.outlet.claim(0, 10)  # what the forwarder looks after each second
        unready = why_unready(self.spool, MAX_BYTES)
        lost = "no collector" in unready  # the lane is taken again by this beacon, or by itself a moment later
        batch = []
        for _ in range(n):
            self.number += 1
            batch.append(Hit("e", f"_n={self.number}&x={'x' * size}".encode(), b"", "default", "", "", "", "", "", 1))
        names = {str(self.number - i) for i in range(n)}
        refused: set[str] = set()
        reason = ""
        try:
            self.lane.append_blocking(*batch)
        except SpoolRefused as error:
            reason = str(error)
            refused = {hit.query.decode().split("&")[0][3:] for hit in error.hits}
        assert not unready or lost or refused == names, f"taken although {unready}"
        assert unready or not refused or n * size > SMALL_BYTES, "refused although it is ready"
        if refused != names or ("max_bytes" not in reason and "full" not in reason):  # what finds no room takes none
            self.largest_batch = max(self.largest_batch, n * (size + 200))
        self.taken |= names - refused
        self.unsure |= refused

    @rule(n=st.integers(1, 3))
    def count(self, n: int) -> None:
        """Counts alone must change nothing of what is refused."""
        for _ in range(n):
            self.lane.drop("default", Outcome.TOO_LARGE)
            self.dropped += 1

    @precondition(lambda self: self.ballast is None)
    @rule()
    def another_program_fills_the_disk(self) -> None:
        self.ballast = fill(self.disk)

    @precondition(lambda self: self.ballast is not None)
    @rule()
    def it_makes_room(self) -> None:
        assert self.ballast is not None
        self.ballast.unlink()
        self.ballast = None

    @precondition(lambda self: not self.locked and self.is_here)
    @rule()
    def a_tool_locks_the_lane(self) -> None:
        self.locked = True
        if self.lane.path.exists():
            with contextlib.suppress(database.Error):  # it is in use for longer, or there is no room to open it
                self.holder = file.open_file(self.lane.path, busy_s=1)
                self.holder.execute("BEGIN IMMEDIATE")

    @precondition(lambda self: self.locked)
    @rule()
    def it_lets_go(self) -> None:
        self.locked = False
        if self.holder is not None:
            self.holder.close()
            self.holder = None
        wait_for(lambda: not self.lane._group._overdue(), "the commit that waited for the lock", 5)

    @precondition(lambda self: self.is_here and not self.locked)
    @rule()
    def the_volume_is_unmounted(self) -> None:
        self.spool.rename(self.away)

    @precondition(lambda self: not self.is_here)
    @rule()
    def it_is_mounted_again(self) -> None:
        self.away.rename(self.spool)

    @rule(seconds=st.sampled_from([-86_400.0, 0.5, 2.0, 3_600.0]))
    def the_clock_moves(self, seconds: float) -> None:
        self.clock.wall += seconds
        self.clock.steady += max(0.0, seconds)

    @rule(limit=st.integers(1, 200))
    def deliver(self, limit: int) -> None:
        claims = self.outlet.claim(limit, 10)
        names = [claim.hit.query.decode().split("&")[0][3:] for claim in claims]
        self.outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
        assert not self.delivered & set(names), "given out again after it was delivered"
        self.delivered |= set(names)

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "lane") and self.is_here:
            batch = 2 * self.largest_batch + 64 * 4096
            assert du(self.spool) <= MAX_BYTES + batch + Disk(self.spool, MAX_BYTES).ahead_bytes()

    def heal(self) -> None:
        """The causes go; nothing else is done about it."""
        self.it_lets_go()
        if not self.is_here:
            self.it_is_mounted_again()
        if self.ballast is not None:
            self.it_makes_room()

    def drain(self) -> None:
        """By itself well again: all is delivered, once, the ledger is exact, and beacons are taken."""

        def is_drained() -> bool:
            self.deliver(1000)
            return read_ledger(self.spool).pending == 0

        wait_for(is_drained, "the spool to drain", 5)
        wait_for(lambda: not why_unready(self.spool, MAX_BYTES), "readiness", 5)
        self.append(1, 10)
        wait_for(is_drained, "the last one", 5)
        assert self.taken <= self.delivered <= self.taken | self.unsure
        wait_for(lambda: read_ledger(self.spool).total(Outcome.TOO_LARGE) == self.dropped, "the counts", 5)
        ledger = read_ledger(self.spool)
        assert ledger.total(RECEIVED) == ledger.total(Outcome.DELIVERED) + self.dropped == len(self.delivered) + self.dropped
        assert ledger.total(REFUSED) == 0
        assert audit(self.spool, 10**6) == 0


def test_whatever_happens_to_the_disk_in_whatever_order_the_promise_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk stopped delivery for good once, since counts that were written cleared what only room may clear."""
    clock = SimpleNamespace(wall=0.0, steady=0.0)
    moved = SimpleNamespace(
        monotonic=lambda: time.monotonic() + clock.steady,
        time=lambda: time.time() + clock.wall,
        time_ns=lambda: time.time_ns() + int(clock.wall * 1e9),
        sleep=time.sleep,
        strftime=time.strftime,
        gmtime=time.gmtime,
    )
    for module in ("lane", "outlet", "reader", "holders"):
        monkeypatch.setattr(f"proxy.spool.sqlite.{module}.time", moved)
    for name in ("lane.LOOK_S", "lane.REOPEN_S", "outlet.LOOK_S", "outlet.REST_S", "outlet.SHRINK_S"):
        monkeypatch.setattr(f"proxy.spool.sqlite.{name}", 0.0)
    monkeypatch.setattr("proxy.spool.group.COUNTS_S", 0.01)
    monkeypatch.setattr("proxy.spool.group.TEND_S", 0.05)
    monkeypatch.setattr("proxy.spool.sqlite.survey.LOCKED_S", 0.01)
    with mounted(tmp_path / "disk") as disk:
        machine = type("Machine", (LaneMachine,), {"disk": disk, "clock": clock})
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
        )
    assert subprocess.run(["mountpoint", "-q", str(disk)]).returncode
