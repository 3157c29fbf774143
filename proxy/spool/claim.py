"""What a forwarder holds of the spool: a hit given out for delivery, and what became of it."""

from typing import Any, NamedTuple

from proxy.delivery import Verdict
from proxy.hit import Hit


class Claim(NamedTuple):
    """A hit given out for delivery. `ticket` is the adapter's own; `attempt` counts from 1, this one included."""

    ticket: Any
    hit: Hit
    attempt: int
    failed: bool = False
    """It has failed before, whether or not that was counted: this is a retry."""


class Wanted(NamedTuple):
    """How many hits of a site a forwarder has room for."""

    fresh: int
    """Of those that have not failed."""
    retries: int
    """Of those that have."""


class Settlement(NamedTuple):
    """What became of a claimed hit."""

    claim: Claim
    verdict: Verdict
