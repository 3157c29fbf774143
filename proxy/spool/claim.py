"""What a forwarder holds of the spool: a hit given out for delivery, and what became of it."""

from typing import Any, NamedTuple

from proxy.delivery import Verdict
from proxy.hit import Hit


class Claim(NamedTuple):
    """A hit given out for delivery. `ticket` is the adapter's own; `attempt` counts from 1, this one included."""

    ticket: Any
    hit: Hit
    attempt: int


class Settlement(NamedTuple):
    """What became of a claimed hit."""

    claim: Claim
    verdict: Verdict
