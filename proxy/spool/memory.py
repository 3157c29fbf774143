"""The memory spool: same contract, nothing on disk. For tests and for embedding in a single process that may forget."""

import contextlib
import heapq
import itertools
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

from proxy.delivery import Final
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.peers import Peers
from proxy.spool.port import (
    RECEIVED,
    REFUSED,
    TRIMMED,
    Caller,
    Claim,
    DeadLetters,
    Intake,
    IntakeStats,
    Ledger,
    Outlet,
    Settlement,
    SpoolConfig,
    SpoolError,
    Tapped,
    Told,
    Wanted,
)


class MemorySpool:
    """Both halves of the port over one dictionary."""

    peers: Peers | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: OrderedDict[int, Hit] = OrderedDict()
        self._attempts: dict[int, int] = {}
        self._fresh: dict[int, None] = {}
        """Those that have not failed, in order."""
        self._due: list[tuple[int, int]] = []
        """A heap of those that have, by due time."""
        self._in_flight: set[int] = set()
        self._dead: dict[int, tuple[Hit, Final]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._next = 0
        self._state = b""

    async def append(self, hit: Hit) -> None:
        self.append_blocking(hit)

    def append_then(self, hit: Hit, caller: Caller) -> None:
        self.append_blocking(hit)
        caller.get_loop().call_soon(caller.told, None)

    def append_blocking(self, *hits: Hit) -> None:
        with self._lock:
            for hit in hits:
                self._next += 1
                self._hits[self._next] = hit
                self._fresh[self._next] = None
                self._tally(hit.site, RECEIVED)

    def drop(self, site: str, outcome: Outcome) -> None:
        with self._lock:
            self._tally(site, outcome)
            self._tally(site, RECEIVED)

    def refuse(self, site: str) -> None:
        with self._lock:
            self._tally(site, REFUSED)

    def claim(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted] = {}) -> list[Claim]:
        any_site, retries = Wanted(limit, limit), Counter[str]()
        passed_over: list[tuple[int, int]] = []
        with self._lock:
            open_to = (key for key in self._fresh if wanted.get(self._hits[key].site, any_site).fresh)
            fresh, again = list(itertools.islice(open_to, limit)), list[int]()
            while self._due and len(again) < limit and self._due[0][0] <= now_ms:
                due = heapq.heappop(self._due)
                site = self._hits[due[1]].site
                if retries[site] >= wanted.get(site, any_site).retries:
                    passed_over.append(due)
                    continue
                retries[site] += 1
                again.append(due[1])
            for due in passed_over:
                heapq.heappush(self._due, due)
            for key in fresh:
                del self._fresh[key]
            self._in_flight.update(fresh, again)
            return [
                Claim(key, self._hits[key], self._attempts.get(key, 0) + 1, failed)
                for keys, failed in ((again, True), (fresh, False))
                for key in keys
            ]

    def settle(self, settlements: Sequence[Settlement]) -> None:
        with self._lock:
            for claim, verdict in settlements:
                if claim.ticket not in self._in_flight:
                    continue
                self._in_flight.discard(claim.ticket)
                if not isinstance(verdict, Final):
                    self._attempts[claim.ticket] = claim.attempt if verdict.counted else claim.attempt - 1
                    if verdict.due_ms:
                        heapq.heappush(self._due, (verdict.due_ms, claim.ticket))
                    else:
                        self._fresh[claim.ticket] = None
                    continue
                hit = self._hits.pop(claim.ticket)
                self._attempts.pop(claim.ticket, None)
                self._tally(hit.site, verdict.outcome)
                if verdict.trimmed:
                    self._tally(hit.site, TRIMMED)
                if verdict.outcome.ending is Ending.DEAD:
                    self._dead[claim.ticket] = (hit, verdict)

    def ledger(self) -> Ledger:
        with self._lock:
            oldest = min((hit.received_ms for hit in self._hits.values()), default=None)
            return Ledger({site: dict(counts) for site, counts in self._counts.items()}, len(self._hits), oldest)

    def publish(self, state: bytes) -> None:
        self._state = state

    def recall(self) -> bytes:
        return self._state

    def watched(self) -> bool:
        return False

    def show(self, event: Tapped) -> None:
        """Nobody can watch."""

    def close(self) -> None:
        """Nothing to let go."""

    def _tally(self, site: str, name: str) -> None:
        self._counts.setdefault(site, Counter())[str(name)] += 1


_SPOOLS: dict[str, MemorySpool] = {}


class MemoryPlace:
    """See Place. Within one process, the same URL is the same spool."""

    def __init__(self, config: SpoolConfig) -> None:
        self._spool = _SPOOLS.setdefault(config.url, MemorySpool())

    def prepare(self) -> None:
        """Nothing to make."""

    def begun(self) -> bool:
        return True

    def look_into(self) -> None:
        """Whoever has the process may see it."""

    def look_at(self) -> None:
        """It can always be used."""

    def intake(self) -> Intake:
        return self._spool

    def outlet(self) -> Outlet:
        return self._spool

    def dead_letters(self) -> DeadLetters:
        raise SpoolError("a memory spool keeps no dead letters beyond its process")

    def ledger(self) -> Ledger:
        return self._spool.ledger()

    def some_hits(self, most: int) -> list[Hit]:
        return []

    def forwarder_states(self) -> list[Told]:
        return [Told(0, state)] if (state := self._spool.recall()) else []

    def forwarder_figures(self) -> bytes:
        return self._spool.recall()

    def intake_stats(self) -> IntakeStats:
        return IntakeStats()

    def ledger_off(self, most: int) -> int | None:
        return 0

    def watching(self) -> contextlib.AbstractContextManager[socket.socket]:
        raise SpoolError("a memory spool shows nothing beyond its process")

    def bytes(self) -> int:
        return 0

    def unready(self) -> str:
        return ""

    def fallback_pending(self) -> int:
        return 0
