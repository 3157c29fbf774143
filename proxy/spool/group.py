"""Group commit: many appends share one transaction. One writer thread; whatever gathers while it commits is the next batch.

Nothing here knows what a commit is. The caller of `append` is woken only after the commit that holds its hit has returned, or
when that took too long. Then it is told that its hit is not stored; should the disk take the batch after all, the hits in it are
delivered like any other. Hits whose commit had not begun are dropped, so that a disk that hangs never gathers a pile.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from proxy.hit import Hit
from proxy.log import log
from proxy.spool.port import IntakeStats, SpoolRefused
from proxy.spool.waiting import Entered, Waiter, wake

MAX_WAITING = 16_384
"""Hits that may wait for the disk at once; one more is refused."""

GATHER_FROM, GATHER_S = 4, 0.0005
"""After a batch of at least so many, others are on their way: a moment's rest makes the next batch worth its commit."""
BATCH_HITS = 1024
"""At most so many share a commit: what waits behind them is the next batch."""
TEND_S = 1.0
"""After so long without a beacon the writer looks after its storage."""
COUNTS_S = 1.0
"""Between two tries to write counts while beacons are refused."""
WATCH_S = 0.25
"""Between two looks of the watch at how long the commit under way has taken."""

T = TypeVar("T")
Counts = Counter[tuple[str, str]]
Commit = Callable[[list[Hit], Counts], None]
"""Store these hits and add these counts, both or neither. Raises SpoolRefused."""


HANGS = "the disk hangs: the commit under way takes longer than commit_timeout"


class GroupCommit(Entered):
    """Gathers appends from an event loop and from threads, and commits them from a thread of its own."""

    def __init__(
        self,
        commit: Commit,
        finish: Callable[[], None],
        patience_s: float = 5.0,
        tell: Callable[[], None] = lambda: None,
        tend: Callable[[], None] = lambda: None,
        hangs: Callable[[], None] = lambda: None,
    ) -> None:
        """`tell` is called a few times a second, from a thread of its own; `tend` by the writer's thread when nothing came for
        TEND_S; `hangs` by the watch when it gives callers up. They must not raise."""
        self.stats = IntakeStats()
        self._commit = commit
        self._finish = finish
        self._tell = tell
        self._tend = tend
        self._hangs = hangs
        self._patience_s = patience_s
        self._committing: list[Waiter] = []
        self._began = 0.0
        """When the commit under way began (monotonic); 0 while there is none."""
        self._hits: list[Hit] = []
        self._waiters: list[Waiter] = []
        self._counts: Counts = Counter()
        self._counted = 0.0
        """When counts were last tried alone while beacons were refused (monotonic)."""
        self._bell = threading.Condition(threading.Lock())
        self._idle = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._ended = threading.Event()
        self._thread.start()
        threading.Thread(target=self._watch, name="spool-watch", daemon=True).start()
        threading.Thread(target=self._tell_now_and_then, name="spool-teller", daemon=True).start()

    @property
    def closing(self) -> bool:
        """Whether what is written now is the last."""
        return self._closing

    def count(self, site: str, *names: str) -> None:
        with self._bell:
            for name in names:
                self._counts[site, name] += 1
            if self._idle:
                self._bell.notify()

    def close(self) -> None:
        with self._bell:
            self._closing = True
            self._bell.notify()
        self._thread.join()

    def enter(self, hit: Hit, waiter: Waiter) -> None:
        """Take the hit, and tell the waiter what became of it. Raises SpoolRefused if it was not even taken."""
        with self._bell:
            if self._closing:
                raise SpoolRefused("the spool is closed")
            if self._overdue():
                raise SpoolRefused(HANGS)
            if len(self._hits) >= MAX_WAITING:
                raise SpoolRefused("the disk is too slow: too many beacons wait for it")
            self._hits.append(hit)
            self._waiters.append(waiter)
            if self._idle:
                self._bell.notify()

    def _run(self) -> None:
        while True:
            with self._bell:
                if not (self._hits or self._counts or self._closing):
                    self._rest(TEND_S)
                hits, self._hits = self._hits[:BATCH_HITS], self._hits[BATCH_HITS:]
                waiters, self._waiters = self._waiters[:BATCH_HITS], self._waiters[BATCH_HITS:]
                counts, self._counts = self._counts, Counter()
                if self._closing and not hits and not counts:
                    break
                self._committing, self._began = waiters, time.monotonic() if hits or counts else 0.0
            if not hits and not counts:
                self._timed(self._look_after)
                continue
            error = self._try(hits, counts)
            with self._bell:
                began = self._began
                waiters, self._committing, self._began = self._committing, [], 0.0  # without those who were told meanwhile
            wake(waiters, error)
            if hits and error is None:
                self.stats.commit_seconds.observe(time.monotonic() - began)
                self.stats.batch_hits.observe(len(hits))
            if len(hits) >= GATHER_FROM:
                time.sleep(GATHER_S)
            if error is not None and not self._keep(counts, alone=not hits):
                break
        self._ended.set()
        self._finish()

    def _try(self, hits: list[Hit], counts: Counts) -> SpoolRefused | None:
        try:
            self._commit(hits, counts)
        except Exception as failure:  # whatever it is: the writer lives on, and every waiter is told
            return failure if isinstance(failure, SpoolRefused) else SpoolRefused(repr(failure))
        return None

    def _keep(self, counts: Counts, alone: bool) -> bool:
        """Counts that are not written yet: while beacons are refused they are tried alone now and then, since there may be room
        for them. False if it is no use to go on, in the end."""
        written = False
        if counts and not alone and time.monotonic() - self._counted >= COUNTS_S:
            self._counted, alone = time.monotonic(), True
            written = self._timed(lambda: self._try([], counts)) is None
        with self._bell:
            if not written:
                self._counts.update(counts)
            if alone and not written:
                if self._closing and not self._hits:
                    return False
                if not self._hits:
                    self._rest(COUNTS_S)
        return True

    def _look_after(self) -> None:
        try:
            self._tend()
        except Exception:  # whatever it is: the writer lives on
            log.exception("the spool's writer cannot look after its storage")

    def _timed(self, call: Callable[[], T]) -> T | None:
        """What it gives. Beacons that come meanwhile wait no longer for it than for a commit."""
        with self._bell:
            self._began = time.monotonic()
        try:
            return call()
        finally:
            with self._bell:
                self._began = 0.0

    def _rest(self, seconds: float) -> None:
        """Until something comes, or for so long. Holding the bell."""
        self._idle = True
        self._bell.wait(seconds)
        self._idle = False

    def _overdue(self) -> bool:
        return self._began > 0 and time.monotonic() - self._began > self._patience_s

    def _tell_now_and_then(self) -> None:
        """Not the watch's work: telling touches the disk, and may hang with it."""
        while not self._ended.wait(WATCH_S):
            self._tell()

    def _watch(self) -> None:
        """Let nobody wait longer than the patience for a disk that hangs."""
        while not self._ended.wait(min(WATCH_S, self._patience_s / 4)):
            with self._bell:
                if not self._overdue():
                    continue
                given_up = self._committing + self._waiters
                self._committing, self._waiters, self._hits = [], [], []
            self._hangs()
            wake(given_up, SpoolRefused(HANGS))
