"""How much an upstream is sent at once: a circuit breaker and an adaptive limit, per upstream. Pure; time is passed in.

An upstream that fails everything is in a state of its own, and no hit's fault: the breaker opens, nothing is attempted but a
probe, and no attempt is counted. While it works, the limit of requests in flight is found by additive increase and
multiplicative decrease (AIMD; RFC 5681 for TCP), starting low, so that a backlog drains without a storm.
"""

from enum import StrEnum

import msgspec

START_LIMIT = 8.0
OPEN_AFTER = 8
"""Failures in a row that open the breaker."""
PROBE_BASE_MS = 500
"""Wait for the first probe; doubles with each that fails."""
PROBE_CAP_MS = 5_000
DECREASE = 0.5
DECREASE_EVERY_MS = 1_000
"""One decrease for one burst of failures: those in flight when it began say nothing new."""
SLOW_FACTOR = 4.0
SLOW_LEAST_MS = 200.0
"""An answer counts as slow when it takes both this long and SLOW_FACTOR times the best seen lately."""
SLOW_DECREASE = 0.8
BEST_WINDOW_MS = 30_000
"""The best latency is forgotten after one to two windows: an upstream may become slower for good."""
HEALTHY = 0.5
"""Share of recent successes above which a failing hit is taken to fail alone."""


class State(StrEnum):
    """What the breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Pace(msgspec.Struct):
    """One upstream's state. `now_ms` is a monotonic clock: the wall clock may jump."""

    ceiling: int
    """Most in flight whatever the limit; where forwarders share the upstream it changes, and may be 0."""
    limit: float = START_LIMIT
    in_flight: int = 0
    state: State = State.CLOSED
    proven: bool = False
    """It has taken something since we started."""
    health: float = 1.0
    """Moving share of successes, 0 to 1."""
    best_ms: float = 0.0
    """The quickest answer of this window; `best_before_ms` that of the window before. 0 while there is none."""
    best_before_ms: float = 0.0
    window_ms: int = 0
    last_failure: str = ""
    """The latest one, for the operator."""
    failed_ms: int | None = None
    """When that was."""
    failures: int = 0
    """In a row."""
    probe_at_ms: int = 0
    probe_wait_ms: int = PROBE_BASE_MS
    decreased_ms: int = -DECREASE_EVERY_MS
    growing: bool = True
    """Slow start: the limit doubles each round until the first sign of trouble."""

    def room(self, now_ms: int) -> int:
        """How many more requests may start now."""
        if self.state is State.CLOSED:
            return max(0, int(min(self.limit, self.ceiling)) - self.in_flight)
        if self.state is State.OPEN and now_ms >= self.probe_at_ms:
            return max(0, min(1, self.ceiling) - self.in_flight)
        return 0

    def began(self) -> None:
        """A request starts. The first one while the breaker is open is the probe."""
        self.in_flight += 1
        if self.state is State.OPEN:
            self.state = State.PROBING

    def succeeded(self, took_ms: float, now_ms: int) -> None:
        """An answer that says the upstream works, whatever it says of the hit. The first one closes an open breaker."""
        self.in_flight -= 1
        self.failures, self.proven = 0, True
        if self.state is not State.CLOSED:
            self.state, self.limit, self.growing = State.CLOSED, min(START_LIMIT, max(1, self.ceiling)), True
            self.health, self.probe_wait_ms = 1.0, PROBE_BASE_MS
        self.health += (1.0 - self.health) * 0.05
        if now_ms - self.window_ms > BEST_WINDOW_MS:
            self.window_ms, self.best_before_ms, self.best_ms = now_ms, self.best_ms, 0.0
        self.best_ms = min(self.best_ms or took_ms, took_ms)
        if took_ms > max(SLOW_LEAST_MS, SLOW_FACTOR * min(self.best_ms, self.best_before_ms or self.best_ms)):
            self._decrease(now_ms, SLOW_DECREASE, START_LIMIT)
        elif self.in_flight + 1 >= self.limit * 0.5:  # a limit that is not used says nothing about a higher one
            higher = min(float(self.ceiling), self.limit + (1.0 if self.growing else 1.0 / self.limit))
            self.limit = max(self.limit, higher)

    def failed(self, failure: str, now_ms: int) -> None:
        """An answer, or the lack of one, that says the upstream does not work just now."""
        self.in_flight -= 1
        self.failures += 1
        self.last_failure, self.failed_ms = failure, now_ms
        self.health -= self.health * 0.05
        self._decrease(now_ms, DECREASE)
        if self.state is State.PROBING:
            self.probe_wait_ms = min(PROBE_CAP_MS, self.probe_wait_ms * 2)
            self._open(now_ms)
        elif self.state is State.CLOSED and self.failures >= OPEN_AFTER:
            self._open(now_ms)

    def abandoned(self) -> None:
        """A request that was begun had no answer of its own (it was cancelled)."""
        self.in_flight -= 1
        if self.state is State.PROBING:
            self.state = State.OPEN

    def blames_hit(self) -> bool:
        """Whether a failure now would be the hit's own: others pass, and the last one did."""
        return self.proven and self.state is State.CLOSED and self.health > HEALTHY and self.failures == 0

    def _open(self, now_ms: int) -> None:
        self.state = State.OPEN
        self.probe_at_ms = now_ms + self.probe_wait_ms

    def _decrease(self, now_ms: int, factor: float, least: float = 1.0) -> None:
        self.growing = False
        if now_ms - self.decreased_ms >= DECREASE_EVERY_MS and self.limit > least:
            self.decreased_ms = now_ms
            used = min(self.limit, self.ceiling) if self.ceiling else self.limit
            self.limit = max(least, used * factor)
