"""The spool's port: what a collector may ask of it (Intake) and what a forwarder may (Outlet). No storage lives here.

The promise every adapter keeps: `append` returns only once the hit is stored as durably as configured; a claimed hit is given
out again after a crash until it is settled; the ledger is counted together with what it counts.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from proxy.histogram import SECONDS, SIZES, Histogram
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.claim import Claim as Claim
from proxy.spool.claim import Settlement as Settlement
from proxy.spool.claim import Wanted as Wanted
from proxy.spool.peers import Peers

RECEIVED, REFUSED, TRIMMED = "received", "refused", "trimmed"
"""The ledger's counts that are no outcome: answered 200; answered 503; delivered, but shortened to the API's limits."""


class SpoolRefused(Exception):
    """The hit was not stored; the message says why. The visitor is answered 503, still with the GIF."""

    hits: tuple[Hit, ...] = ()
    """Of several that were given together, those that were not stored."""


class SpoolError(Exception):
    """The spool cannot be used as it is; the message says what to do. For the operator."""


class ForwarderRunning(SpoolError):
    """Another forwarder holds this spool."""


class SpoolConfig(msgspec.Struct, frozen=True):
    """Which spool, and how durable."""

    url: str
    """`sqlite:DIR`, `nats://…` or `memory:`."""
    durability: str = "disk"
    """"disk": fsync before the answer; "os": written to the kernel before the answer."""
    max_bytes: int = 10 * 1024**3
    commit_timeout_s: float = 5.0
    """A beacon that the disk has not taken by then is answered 503."""
    fallback: str = ""
    """`sqlite:DIR`, where hits wait while a `nats://` spool does not take them; "" for none."""


class Ledger(msgspec.Struct):
    """One consistent reading: received = delivered + dropped + dead + pending, per site and in all."""

    counts: dict[str, dict[str, int]]
    """site → count name → n; the names are RECEIVED, REFUSED, TRIMMED and every Outcome."""
    pending: int
    oldest_pending_ms: int | None
    """Receipt time of the oldest pending hit, milliseconds since the epoch."""
    unread: tuple[str, ...] = ()
    """Files that are not in the sum, since they cannot be read or were set aside as corrupt."""
    fallback: int = 0
    """Hits that wait in this host's fallback, and are to be moved into the spool."""
    silent: tuple[str, ...] = ()
    """Sites whose stream does not answer: what this reader read of them last, or nothing if it never did."""
    doubtful: int = 0
    """Hits of the fallback that the spool may have as well: they are in `fallback` and in no count."""

    def total(self, name: str) -> int:
        """The count of that name over all sites."""
        return sum(counts.get(name, 0) for counts in self.counts.values())

    def pending_of(self, site: str) -> int:
        """Hits of that site that wait."""
        counts = self.counts.get(site, {})
        return counts.get(RECEIVED, 0) - sum(counts.get(outcome, 0) for outcome in Outcome)

    def ending(self, ending: Ending) -> dict[Outcome, int]:
        """The outcomes of that ending that occurred, over all sites."""
        totals = {outcome: self.total(outcome) for outcome in Outcome if outcome.ending is ending}
        return {outcome: n for outcome, n in totals.items() if n}


def beacons_wait(n: int) -> str:
    """So many, for the operator."""
    return f"{n:,} beacons wait" if n != 1 else "1 beacon waits"


class IntakeStats(msgspec.Struct):
    """How the commits of one or more collectors went."""

    commit_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    batch_hits: Histogram = msgspec.field(default_factory=lambda: Histogram(SIZES))

    def add(self, other: "IntakeStats") -> None:
        """Count those of another collector in."""
        self.commit_seconds.add(other.commit_seconds)
        self.batch_hits.add(other.batch_hits)


class Caller(Protocol):
    """Somebody on an event loop who waits to be told: cheaper than a future and a task for each beacon."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Where to be called."""

    def told(self, error: SpoolRefused | None) -> None:
        """Stored, or why not; once for each append."""


class Tapped(msgspec.Struct, omit_defaults=True):
    """What is told of a beacon: once for each attempt to deliver it, and when it is dropped or refused."""

    at_ms: int
    site: str
    outcome: str
    """An Outcome, "refused", or "retry"."""
    kind: str = ""
    name: str = ""
    """The event's name. Empty, like all below, for a beacon that the collector dropped or refused: nothing of it is kept."""
    person: str = ""
    properties: dict[str, str] = {}
    answer: str = ""
    attempt: int = 0
    age_ms: int = 0
    """Since its receipt."""
    missed: int = 0
    """How many before this one a watcher who did not keep up was not told."""


class Intake(Protocol):
    """The collector's half."""

    async def append(self, hit: Hit) -> None:
        """Return once the hit is stored. Raises SpoolRefused."""

    def append_then(self, hit: Hit, caller: Caller) -> None:
        """The same for a caller who is told, from its event loop, and not before this returns. Raises SpoolRefused at once if
        the hit was not even taken."""

    def append_blocking(self, *hits: Hit) -> None:
        """The same for a thread without an event loop (WSGI), of one or more. Raises SpoolRefused with those that are not stored,
        if there are any."""

    def drop(self, site: str, outcome: Outcome) -> None:
        """Count a hit that is deliberately not stored (and answered 200). Written with the next commit, or soon."""

    def refuse(self, site: str) -> None:
        """Count a hit that could not be stored (and was answered 503). Written with the next commit that succeeds, or soon."""

    def close(self) -> None:
        """Store what was accepted and let go."""


class Outlet(Protocol):
    """The forwarder's half. One at a time for a spool, unless its adapter allows more. It does not raise for what may pass
    (a lock, a full disk)."""

    @property
    def peers(self) -> Peers | None:
        """The others at work on the spool; None where there can be none."""

    def claim(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted] = {}) -> list[Claim]:
        """Up to `limit` hits that have not failed, oldest first, and besides them retries that are due; none that is in flight.

        Of a site in `wanted` no more retries than it says, and no others if it says 0; more than it says only if they lie between
        those of other sites. Of all together up to `limit` of each kind. So no site and no retry keeps another from its attempt.
        """

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Record the verdicts; what cannot be recorded just now is kept and recorded later, and its hits are not given out
        meanwhile. Settling a claim twice has no second effect."""

    def ledger(self) -> Ledger:
        """The counts."""

    def publish(self, state: bytes) -> None:
        """Leave the forwarder's state where `status` finds it."""

    def recall(self) -> bytes:
        """What forwarders before this one left: the state that the last one published or, with peers, what they keep together;
        b"" if nothing."""

    def watched(self) -> bool:
        """Whether somebody wants to be shown what becomes of each hit (`beacon-proxy tail`)."""

    def show(self, event: Tapped) -> None:
        """Show it to them. Never waits."""

    def close(self) -> None:
        """Let go; what is in flight is given out again to the next."""


class Told(NamedTuple):
    """What a forwarder published last, and how long ago that was, by the spool's own clock."""

    age_ms: int
    state: bytes


class DeadLetter(msgspec.Struct, frozen=True):
    """A hit that ended undelivered, kept for the operator."""

    id: str
    """Unique in the spool, and accepted by DeadFilter."""
    site: str
    outcome: str
    answer: str
    """The last answer: a status, or the failure that prevented one."""
    attempts: int
    died_ms: int
    hit: Hit | None
    """None if the record cannot be read."""


class DeadFilter(msgspec.Struct, frozen=True):
    """Which dead letters; an empty field does not restrict."""

    ids: tuple[str, ...] = ()
    outcome: str = ""
    site: str = ""
    died_before_ms: int | None = None
    died_after_ms: int | None = None


Progress = Callable[[int], None]
"""Told how many more are done."""


class DeadLetters(Protocol):
    """The operator's half: may be used while collectors and forwarder run."""

    def count(self, wanted: DeadFilter) -> int:
        """How many there are."""

    def list(self, wanted: DeadFilter, limit: int) -> "list[DeadLetter]":
        """The latest first."""

    def replay(self, wanted: DeadFilter, now_ms: int, progress: Progress) -> int:
        """Make them pending again, due now, with no attempt counted. How many; one replayed twice moves once."""

    def discard(self, wanted: DeadFilter, progress: Progress) -> int:
        """Throw them away; the ledger has them as dropped (`discarded`). How many."""
