"""The spool's port: what a collector may ask of it (Intake) and what a forwarder may (Outlet). No storage lives here.

The promise every adapter keeps: `append` returns only once the hit is stored as durably as configured; a claimed hit is given
out again after a crash until it is settled; the ledger is counted together with what it counts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from proxy.delivery import Verdict
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome

RECEIVED, REFUSED, TRIMMED = "received", "refused", "trimmed"
"""The ledger's counts that are no outcome: answered 200; answered 503; delivered, but shortened to the API's limits."""


class SpoolRefused(Exception):
    """The hit was not stored; the message says why. The visitor is answered 503, still with the GIF."""


class SpoolConfig(msgspec.Struct, frozen=True):
    """Which spool, and how durable."""

    url: str
    """`sqlite:DIR` or `memory:`."""
    durability: str = "disk"
    """"disk": fsync before the answer; "os": written to the kernel before the answer."""
    max_bytes: int = 10 * 1024**3


class Claim(NamedTuple):
    """A hit given out for delivery. `ticket` is the adapter's own; `attempt` counts from 1, this one included."""

    ticket: Any
    hit: Hit
    attempt: int


class Settlement(NamedTuple):
    """What became of a claimed hit."""

    claim: Claim
    verdict: Verdict


class Ledger(msgspec.Struct):
    """One consistent reading: received = delivered + dropped + dead + pending, per site and in all."""

    counts: dict[str, dict[str, int]]
    """site → count name → n; the names are RECEIVED, REFUSED, TRIMMED and every Outcome."""
    pending: int
    oldest_pending_ms: int | None
    """Receipt time of the oldest pending hit, milliseconds since the epoch."""

    def total(self, name: str) -> int:
        """The count of that name over all sites."""
        return sum(counts.get(name, 0) for counts in self.counts.values())

    def ending(self, ending: Ending) -> dict[Outcome, int]:
        """The outcomes of that ending that occurred, over all sites."""
        totals = {outcome: self.total(outcome) for outcome in Outcome if outcome.ending is ending}
        return {outcome: n for outcome, n in totals.items() if n}


class Intake(Protocol):
    """The collector's half."""

    async def append(self, hit: Hit) -> None:
        """Return once the hit is stored. Raises SpoolRefused."""

    def append_blocking(self, hit: Hit) -> None:
        """The same for a thread without an event loop (WSGI). Raises SpoolRefused."""

    def drop(self, site: str, outcome: Outcome) -> None:
        """Count a hit that is deliberately not stored (and answered 200). Written with the next commit."""

    def refuse(self, site: str) -> None:
        """Count a hit that could not be stored (and was answered 503). Written with the next commit that succeeds."""

    def close(self) -> None:
        """Store what was accepted and let go."""


class Outlet(Protocol):
    """The forwarder's half. One at a time for a spool."""

    def claim(self, limit: int, now_ms: int) -> list[Claim]:
        """Up to `limit` hits, oldest first, that are due and not in flight."""

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Record the verdicts, all or none. Settling a claim twice has no second effect."""

    def ledger(self) -> Ledger:
        """The counts."""

    def close(self) -> None:
        """Let go; what is in flight is given out again to the next."""
