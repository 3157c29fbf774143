"""One reader of the spool for all open pages. A page is answered from what was read last, so pages cost the spool nothing.

The counts are read once a second while the process lives, so that a page shows the last minutes as soon as it opens. All else is
read only while a page is open. What takes long is read more rarely, and a disk that hangs makes the reading old, not the page.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, TypeVar, cast

import msgspec

from proxy.admin.report import Report, StatsReport, read_report
from proxy.beacon import MAX_NAME, parameters
from proxy.outcome import Ending
from proxy.spool import intake_stats, ledger_of, ledger_off, open_dead_letters, spool_bytes, unready
from proxy.spool.port import RECEIVED, REFUSED, DeadFilter, DeadLetter, IntakeStats, Ledger, SpoolConfig, SpoolError

T = TypeVar("T")

EVERY_S = 1.0
KEPT = 300
"""Samples: five minutes."""
WINDOW = 60
"""Latencies are those of the last minute."""
LOOKED_S = 10.0
"""A page that has not asked for so long is closed."""
FRESH_S = 2.5
PATIENCE_S = 2.0
"""A page that opens waits this long for its first reading."""
READY_EVERY_S = 2.0
"""Asking whether the spool is ready costs a synced write."""
COUNT_EVERY_S, COUNT_MOST = 60.0, 200_000
"""Rows are counted this often, and so many at most, as for /metrics."""
REST = 20
"""A reading that took long is followed by so many times the rest."""
LETTERS = 10


class Sample(NamedTuple):
    """The counts at a moment; rates are their differences."""

    at_ms: int
    received: int
    delivered: int
    refused: int
    pending: int


class Letter(msgspec.Struct, frozen=True):
    """What is kept of a dead letter to show it."""

    id: str
    died_ms: int
    site: str
    reason: str
    answer: str
    attempts: int
    kind: str
    name: str


class Reading(msgspec.Struct):
    """What was read last."""

    at_ms: int
    ledger: Ledger
    told: Report
    max_bytes: int
    used_bytes: int = 0
    unready: str = ""
    commits: IntakeStats = msgspec.field(default_factory=IntakeStats)
    refused_lately: int = 0
    """Within the last minute."""
    off: int | None = None
    """By how many rows ledger and spool differ; None if there are too many to count."""
    letters: list[Letter] = []
    before: tuple[IntakeStats, dict[str, StatsReport]] | None = None
    """The latencies' histograms of a minute ago, or of the first look."""


class Look:
    """Reads while `kept()` is entered."""

    def __init__(self, config: SpoolConfig) -> None:
        self.config = config
        self.failure = ""
        """Why the last reading failed; "" if it did not."""
        self.unready: str | None = None
        """Where it did: why beacons are not taken meanwhile; "" if they are, None before that was checked."""
        self._reading: Reading | None = None
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._numbered = 0
        self._stats: deque[tuple[IntakeStats, dict[str, StatsReport]]] = deque(maxlen=WINDOW)
        self._looked = float("-inf")
        self._wake, self._was_read = asyncio.Event(), asyncio.Event()
        self._slow: dict[str, tuple[float, object]] = {}

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Read meanwhile."""
        task = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            task.cancel()

    async def latest(self) -> Reading | None:
        """What was read last; None if nothing could be. Being asked keeps it reading."""
        self._looked = time.monotonic()
        if self._reading is None or time.time() * 1000 - self._reading.at_ms > FRESH_S * 1000:
            self._was_read.clear()
            self._wake.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._was_read.wait(), PATIENCE_S)
        return self._reading

    def history(self, after: int) -> dict[str, object]:
        """The samples that are numbered higher, and the number of the last."""
        missing = max(0, min(self._numbered - max(after, 0), len(self._samples))) if after <= self._numbered else KEPT
        return {"last": self._numbered, "samples": list(self._samples)[len(self._samples) - missing :] if missing else []}

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            began = time.monotonic()
            looked_at = began - self._looked < LOOKED_S
            try:
                await asyncio.to_thread(self._read, looked_at)
                self.failure = ""
            except (SpoolError, OSError) as error:
                self.unready = await asyncio.to_thread(self._unready) if looked_at else None
                self.failure = str(error)
            if looked_at:
                self._was_read.set()
            took = time.monotonic() - began
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(EVERY_S - took, min(took, 10.0)))

    def _read(self, looked_at: bool) -> None:
        """In a thread: it touches the disk."""
        ledger, at_ms = ledger_of(self.config), int(time.time() * 1000)
        self._sample(ledger, at_ms)
        if not looked_at:
            self._stats.clear()
            return
        told, commits = read_report(self.config), intake_stats(self.config)
        self._stats.append((commits, {upstream: of.stats for upstream, of in told.upstreams.items()}))
        off = self._rarely("count", COUNT_EVERY_S, lambda: ledger_off(self.config, COUNT_MOST))
        died = sum(ledger.ending(Ending.DEAD).values())
        self._reading = Reading(
            at_ms=at_ms,
            ledger=ledger,
            told=told,
            max_bytes=self.config.max_bytes,
            used_bytes=self._rarely("bytes", EVERY_S, lambda: spool_bytes(self.config)),
            unready=self._unready(),
            commits=commits,
            refused_lately=max(0, ledger.total(REFUSED) - self._samples[-min(len(self._samples), WINDOW)].refused),
            off=off,
            letters=self._rarely("letters", EVERY_S, self._letters) if died else [],
            before=self._stats[0],
        )

    def _unready(self) -> str:
        return self._rarely("ready", READY_EVERY_S, lambda: unready(self.config))

    def _sample(self, ledger: Ledger, at_ms: int) -> None:
        if self._samples and 0 <= at_ms - self._samples[-1].at_ms < EVERY_S * 500:
            return  # a page that opens is not waited for; its rate over an instant would say nothing
        delivered = sum(ledger.ending(Ending.DELIVERED).values())
        self._samples.append(Sample(at_ms, ledger.total(RECEIVED), delivered, ledger.total(REFUSED), ledger.pending))
        self._numbered += 1

    def _letters(self) -> list[Letter]:
        try:
            return [_kept(letter) for letter in open_dead_letters(self.config).list(DeadFilter(), LETTERS)]
        except SpoolError:
            return []

    def _rarely(self, name: str, every_s: float, read: Callable[[], T]) -> T:
        """What was read before, until it is due again."""
        due, found = self._slow.get(name, (float("-inf"), None))
        began = time.monotonic()
        if began < due:
            return cast(T, found)
        found = read()
        self._slow[name] = (began + max(every_s - EVERY_S / 2, REST * (time.monotonic() - began)), found)
        return found


def _kept(letter: DeadLetter) -> Letter:
    hit = letter.hit
    name = next((value for name, value in parameters(hit) if name == "_n"), "") if hit is not None else ""
    return Letter(
        letter.id,
        letter.died_ms,
        letter.site,
        letter.outcome,
        letter.answer,
        letter.attempts,
        hit.kind if hit is not None else "",
        name[:MAX_NAME],
    )
