"""One ledger of both places: the spool's, and what this host's lanes hold of it.

The spool is read before the lanes. A hit on its way is counted by one of them or by neither, never by both, so a sum is too small
at times; and since what was received never gets less, a reader who saw more before knows better, as far as there is anything on
its way.
"""

import os
import threading
from collections.abc import Callable

from proxy.outcome import Outcome
from proxy.spool.fallback.transfer import APART, COUNTED
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Ledger

KNOWN = frozenset((RECEIVED, REFUSED, TRIMMED, *(outcome.value for outcome in Outcome)))
"""The port's names: a lane has some that are its own."""

Counts = dict[str, dict[str, int]]


class Book:
    """What one process read last of one spool."""

    def __init__(self) -> None:
        self._before: Counts = {}
        self._lock = threading.Lock()

    def read(self, spool: Callable[[], Ledger], lanes: Callable[[], Ledger]) -> Ledger:
        """Of each a reading. Raises what they raise."""
        with self._lock:
            before = lanes()
            there = spool()
            here = lanes()
            on_its_way = max(_to_move(before), _to_move(here))
            counts = _sum(there.counts, here.counts)
            for site, of_site in counts.items():
                _mend(of_site, self._before.get(site, {}) if on_its_way else {}, on_its_way)
            self._before = counts
        pending = sum(map(_pending, counts.values()))
        oldest = [ms for ms in (there.oldest_pending_ms, here.oldest_pending_ms) if ms is not None]
        unread, doubtful = (*there.unread, *here.unread), max(0, there.pending + here.pending - pending)
        return Ledger(counts, pending, min(oldest, default=None), unread, here.pending, there.silent, doubtful)


def _sum(*ledgers: Counts) -> Counts:
    total: Counts = {}
    for ledger in ledgers:
        for site, counts in ledger.items():
            of_site = total.setdefault(site, {})
            for name in KNOWN & counts.keys():
                of_site[name] = of_site.get(name, 0) + counts[name]
    return total


def _to_move(lanes: Ledger) -> int:
    """What is there that the spool will count: hits, and counts."""
    counted = (n for counts in lanes.counts.values() for name, n in counts.items() if name in COUNTED or name.startswith(APART))
    return lanes.pending + sum(counted)


def _mend(counts: dict[str, int], before: dict[str, int], most: int) -> None:
    """Not less than before, by so many at most; and not less received than ended."""
    for name in COUNTED:
        if (was := before.get(name, 0)) > (now := counts.get(name, 0)):
            counts[name] = was if name == REFUSED else min(was, now + most)
    received = counts.get(RECEIVED, 0)
    if (was := before.get(RECEIVED, 0)) > received:
        received = min(was, received + most)
    counts[RECEIVED] = max(received, sum(counts.get(outcome, 0) for outcome in Outcome))


def _pending(counts: dict[str, int]) -> int:
    return counts[RECEIVED] - sum(counts.get(outcome, 0) for outcome in Outcome)


_BOOKS: dict[tuple[int, str, str], Book] = {}


def book_of(url: str, directory: str) -> Book:
    """This process's."""
    return _BOOKS.setdefault((os.getpid(), url, directory), Book())
