"""What the forwarder last reported through the spool, read by whoever shows it."""

import time

import msgspec

from proxy.histogram import Histogram
from proxy.spool.port import Tapped

STALE_S = 5.0
"""A forwarder reports each second; one that has not for so long is not running."""


class StatsReport(msgspec.Struct):
    """What went through a route."""

    answers: dict[str, int] = {}
    attempt_seconds: Histogram | None = None
    delivery_seconds: Histogram | None = None


class UpstreamReport(msgspec.Struct):
    """One upstream's state, as Route.state() gives it."""

    state: str = ""
    limit: int = 0
    in_flight: int = 0
    per_second: float = 0.0
    last_failure: str = ""
    since_ms: int = 0
    refusal: str = ""
    """When the breaker opened or closed last; 0 if it has not since the forwarder started."""
    sites: list[str] = []
    stats: StatsReport = msgspec.field(default_factory=StatsReport)


class Report(msgspec.Struct):
    """All of it."""

    written_ms: int = 0
    upstreams: dict[str, UpstreamReport] = {}
    last: list[Tapped] = []
    """The latest beacons, the latest first."""

    def is_running(self) -> bool:
        """Whether a forwarder is at work."""
        return abs(time.time() - self.written_ms / 1000) <= STALE_S


def report(state: bytes) -> Report:
    """Read it; an empty one if there is none that can be read."""
    try:
        return msgspec.json.decode(state, type=Report)
    except msgspec.DecodeError:
        return Report()
