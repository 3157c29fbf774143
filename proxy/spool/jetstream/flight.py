"""Hits that are with this forwarder: given out, waiting here for another try, or ended and not yet acknowledged. No I/O.

Shared by the forwarder's thread and the link's loop, so everything happens under one lock.
"""

import heapq
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from proxy.delivery import Retry
from proxy.spool.claim import Wanted
from proxy.spool.jetstream.pull import Pulled

MOST_WAITING, LONGEST_WAIT_MS = 4096, 120_000
"""What waits here: so many, and none for longer. The others wait with the server."""
MOST_REMEMBERED = 100_000
"""Hits of which is remembered that the server's count of deliveries is not the count of attempts."""


class Source(NamedTuple):
    """A stream of hits. `born` tells it from a later one of the same name, "" where that is not known."""

    site: str
    born: str


Key = tuple[str, int, str]
"""A stream, a hit's sequence in it, and when it was stored: sequences begin anew with a stream that was lost and made again."""


class Flight:
    """One hit. `attempt` counts from 1, the one under way included."""

    __slots__ = ("attempt", "born", "content", "delivered", "failed", "heard", "key", "out", "place", "reply", "site")

    def __init__(self, pulled: Pulled, source: Source, attempt: int) -> None:
        self.key: Key = (pulled.stream, pulled.sequence, pulled.stored)
        self.site, self.born = source.site, source.born
        self.place = f"{pulled.stored}:{pulled.stream}:{pulled.sequence}"
        """Unique among all hits that ever were."""
        self.content = pulled.content
        self.attempt = attempt
        self.failed = attempt > 1
        """It had an attempt before, or lay with a forwarder that is gone."""
        self.delivered, self.reply = pulled.delivered, pulled.reply
        """`reply` is "" once its stream is gone: there, it would be said of the message that now has its sequence."""
        self.heard = time.monotonic()
        """When the server last heard of it, or gave it out."""
        self.out = False
        """Given out, and not settled."""


class Flights:
    """All of them, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[Key, Flight] = {}
        self._latest: dict[tuple[str, int], Flight] = {}
        """By stream and sequence."""
        self._fresh: list[Flight] = []
        """Those that have not failed and are not given out."""
        self._waiting: list[tuple[int, Key]] = []
        """Those that have, a heap of due times."""
        self._more: OrderedDict[Key, int] = OrderedDict()
        """How many more attempts than deliveries a hit that was handed back has had; often negative."""

    def take_off(self, pulled: Iterable[Pulled], sources: Callable[[str], Source], closed: Collection[str]) -> int:
        """Add them; how many fresh ones of open sites are here now. One that was here already has a new reply from now on."""
        with self._lock:
            for one in pulled:
                key = (one.stream, one.sequence, one.stored)
                source = sources(one.stream)
                if (known := self._all.get(key)) is not None:
                    known.delivered, known.reply, known.heard = one.delivered, one.reply, time.monotonic()
                    known.born = source.born
                    continue
                attempt = max(1, one.delivered + self._more.get(key, 0))
                if (before := self._latest.get(key[:2])) is not None:
                    before.reply = ""
                self._all[key] = self._latest[key[:2]] = flight = Flight(one, source, attempt)
                if flight.failed:
                    heapq.heappush(self._waiting, (0, key))
                else:
                    self._fresh.append(flight)
            return sum(flight.site not in closed for flight in self._fresh)

    def orphan(self, sources: Mapping[str, Source]) -> None:
        """Those of earlier streams of these names are nobody's but ours from now on."""
        with self._lock:
            for flight in self._all.values():
                source = sources.get(flight.key[0])
                if source is not None and flight.born and flight.born != source.born:
                    flight.reply = ""

    def fresh(self, limit: int, closed: Collection[str]) -> list[Flight]:
        """Up to `limit` of those that have not failed, as they came; they are given out with this."""
        with self._lock:
            found = [flight for flight in self._fresh if flight.site not in closed][:limit]
            taken = set(map(id, found))
            self._fresh = [flight for flight in self._fresh if id(flight) not in taken]
            for flight in found:
                flight.out = True
            return found

    def is_out(self, flight: Flight) -> bool:
        """Whether that claim was not settled yet."""
        with self._lock:
            return flight.out and self._all.get(flight.key) is flight

    def wait(self, flight: Flight, verdict: Retry, now_ms: int) -> bool:
        """Count the attempt, and let it wait here for the next; False if it must wait with the server."""
        with self._lock:
            if not verdict.due_ms:
                flight.out = False
                self._fresh.append(flight)
                return True
            flight.attempt += verdict.counted
            flight.failed = True
            if flight.reply and (verdict.due_ms - now_ms > LONGEST_WAIT_MS or len(self._waiting) >= MOST_WAITING):
                return False
            flight.out = False
            heapq.heappush(self._waiting, (verdict.due_ms, flight.key))
            return True

    def due(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted]) -> list[Flight]:
        """Up to `limit` retries that are due, and of each site no more than are wanted, the longest due first; they are given out
        with this.
        """
        found: list[Flight] = []
        of_site = Counter[str]()
        passed_over: list[tuple[int, Key]] = []
        with self._lock:
            while self._waiting and len(found) < limit and self._waiting[0][0] <= now_ms:
                due = heapq.heappop(self._waiting)
                flight = self._all[due[1]]
                if flight.site in wanted and of_site[flight.site] >= wanted[flight.site].retries:
                    passed_over.append(due)
                    continue
                of_site[flight.site] += 1
                flight.out = True
                found.append(flight)
            for due in passed_over:
                heapq.heappush(self._waiting, due)
        return found

    def ended(self, flight: Flight) -> None:
        """Its ending is decided: it is given out no more, and forgotten when that is recorded."""
        with self._lock:
            flight.out = False

    def forget(self, flight: Flight) -> None:
        """It is no longer ours, and will not come back."""
        with self._lock:
            self._remove(flight)
            self._more.pop(flight.key, None)

    def hand_back(self, flight: Flight) -> str:
        """Where to tell the server that it has it again. It will count a delivery more; what it cannot know is remembered.
        "" if there is nobody to have it: then it is to be given out here again.
        """
        with self._lock:
            if not flight.reply:
                flight.out = False
                if flight.failed:
                    heapq.heappush(self._waiting, (0, flight.key))
                else:
                    self._fresh.append(flight)
                return ""
            self._remove(flight)
            if more := flight.attempt - (flight.delivered + 1):
                self._more[flight.key] = more
                if len(self._more) > MOST_REMEMBERED:
                    self._more.popitem(last=False)
            else:
                self._more.pop(flight.key, None)
            return flight.reply

    def _remove(self, flight: Flight) -> None:
        self._all.pop(flight.key, None)
        if self._latest.get(flight.key[:2]) is flight:
            del self._latest[flight.key[:2]]

    def waiting_of(self, sites: Collection[str]) -> list[tuple[Flight, int]]:
        """Those that are not given out, and when they are due (0: at once); to be handed back."""
        with self._lock:

            def theirs(flight: Flight) -> bool:
                return flight.site in sites and bool(flight.reply)

            mine = [(flight, 0) for flight in self._fresh if theirs(flight)]
            mine += [(flight, due) for due, key in self._waiting if theirs(flight := self._all[key])]
            self._fresh = [flight for flight in self._fresh if not theirs(flight)]
            self._waiting = [(due, key) for due, key in self._waiting if not theirs(self._all[key])]
            heapq.heapify(self._waiting)
            return mine

    def unheard(self, since: float) -> list[Flight]:
        """Those of which the server has heard nothing since then (monotonic). Set `heard` once it has."""
        with self._lock:
            return [flight for flight in self._all.values() if flight.reply and flight.heard < since]

    def clear(self) -> list[str]:
        """Hand all of them back."""
        with self._lock:
            replies = [flight.reply for flight in self._all.values()]
            self._all.clear()
            self._latest.clear()
            self._fresh.clear()
            self._waiting.clear()
            return replies
