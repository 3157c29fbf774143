"""A route: one upstream, the sites that go there, the hits claimed for it, and its pace."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from proxy.delivery import Answer, delivered, refused
from proxy.forward.pacing import Pace, State
from proxy.histogram import SECONDS, Histogram
from proxy.log import Trouble
from proxy.spool.port import Claim

PROBE_CHOICE = 8
"""Hits held ready while the breaker is open: each failing probe is followed by another hit, so that a bad one blocks nothing."""
REFUSES_AFTER = 8
"""Refusals of a site in a row, with no delivery between them, after which it is the upstream that refuses."""
RATE_SHARE = 0.3
"""Weight of the last second in the moving delivery rate."""


AGES = (*SECONDS, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 172800.0, 604800.0)
"""Bounds of the time from receipt to delivery: an outage may last."""


class RouteStats(msgspec.Struct):
    """What went through a route, this forwarder's predecessors included."""

    answers: dict[str, int] = {}
    """Attempts by what came of them: a status, or the name of a failure."""
    attempt_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    delivery_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(AGES))
    """From receipt to delivery."""

    def add(self, other: "RouteStats") -> None:
        """Count those of an earlier forwarder in."""
        for answer, n in other.answers.items():
            self.answers[answer] = self.answers.get(answer, 0) + n
        self.attempt_seconds.add(other.attempt_seconds)
        self.delivery_seconds.add(other.delivery_seconds)


def monotonic_ms() -> int:
    """The pace's clock: it goes on while the machine is suspended."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000


class Route:
    """Hits wait here between claim and attempt, a few moments' worth."""

    def __init__(self, upstream: str, share: Callable[[int], int], stats: RouteStats) -> None:
        """`share`: most requests in flight at that time (monotonic_ms). `stats` are counted on from."""
        self.upstream = upstream
        self.sites: set[str] = set()
        self._share = share
        self.pace = Pace(share(monotonic_ms()))
        self.queue: deque[Claim] = deque()
        self.delivered = 0
        self._closed = True
        self.since_ms = 0
        """When the breaker opened or closed last, milliseconds since the epoch."""
        self.stats = RouteStats()
        self.stats.add(stats)
        self.trouble = Trouble()
        self.refusing = Trouble()
        self._refused: dict[str, tuple[int, str]] = {}
        """Site → refusals in a row, and the last answer. Each site has a key of its own: only its own delivery ends that."""
        self._rated = (0, monotonic_ms())
        self._rate = 0.0

    def note_state(self, now_ms: int) -> None:
        """Remember when the breaker last opened or closed; a probe is no change."""
        closed = self.pace.state is State.CLOSED
        if closed != self._closed:
            self._closed, self.since_ms = closed, now_ms

    @property
    def refusal(self) -> str:
        """The answer, while it refuses every beacon of a site, and of which if not of all: it works, and each becomes a dead
        letter. A withdrawn key, perhaps.
        """
        refusing = sorted(site for site, (n, _) in self._refused.items() if n >= REFUSES_AFTER)
        if not refusing:
            return ""
        _, answer = self._refused[refusing[0]]
        return answer if len(refusing) == len(self.sites) else f"{answer} for {', '.join(refusing)}"

    def attempted(self, site: str, answer: Answer, took_ms: float) -> None:
        """Count an attempt."""
        name = str(answer)
        self.stats.answers[name] = self.stats.answers.get(name, 0) + 1
        self.stats.attempt_seconds.observe(took_ms / 1000)
        if refused(answer):
            self._refused[site] = (self._refused.get(site, (0, ""))[0] + 1, name)
        elif delivered(answer):
            self._refused.pop(site, None)

    def wanted(self) -> int:
        """How many more hits to claim for it now."""
        room = self._room()
        if self.pace.state is State.CLOSED:
            return 4 * int(min(self.pace.limit, self.pace.ceiling)) - len(self.queue) - self.pace.in_flight
        return PROBE_CHOICE - len(self.queue) if room else 0

    def may_send(self) -> bool:
        """There is a hit, and room for it upstream."""
        return bool(self.queue) and self._room() > 0

    def take_stats(self) -> RouteStats:
        """What was counted, to be counted by somebody else from now on."""
        taken, self.stats = self.stats, RouteStats()
        return taken

    def _room(self) -> int:
        now_ms = monotonic_ms()
        self.pace.ceiling = self._share(now_ms)
        return self.pace.room(now_ms)

    def state(self) -> dict[str, Any]:
        """For `status`; call it about once a second."""
        now, (delivered, then) = monotonic_ms(), self._rated
        if now - then >= 500:
            self._rated = (self.delivered, now)
            self._rate += RATE_SHARE * ((self.delivered - delivered) * 1000 / (now - then) - self._rate)
        return {
            "state": str(self.pace.state),
            "limit": int(min(self.pace.limit, self.pace.ceiling)),
            "in_flight": self.pace.in_flight,
            "per_second": round(self._rate, 1),
            "last_failure": self.pace.last_failure,
            "failed_ago_ms": None if self.pace.failed_ms is None else now - self.pace.failed_ms,
            "since_ms": self.since_ms,
            "refusal": self.refusal,
            "sites": sorted(self.sites),
        }
