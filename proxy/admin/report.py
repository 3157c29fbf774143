"""What the forwarders last reported through the spool, as one report, for whoever shows it."""

from collections.abc import Iterable, Sequence

import msgspec

from proxy.histogram import Histogram
from proxy.spool import forwarder_figures, forwarder_states
from proxy.spool.port import SpoolConfig, Tapped, Told

STALE_MS = 5_000
"""A forwarder reports each second; one that has not for so long is not running."""
MOST_LAST = 20
"""Beacons, of all forwarders together."""


class StatsReport(msgspec.Struct):
    """What went through a route."""

    answers: dict[str, int] = {}
    attempt_seconds: Histogram | None = None
    delivery_seconds: Histogram | None = None


class UpstreamReport(msgspec.Struct):
    """One upstream's state, as Route.state() gives it; or of several forwarders together."""

    state: str = ""
    limit: int = 0
    in_flight: int = 0
    per_second: float = 0.0
    last_failure: str = ""
    failed_ago_ms: int | None = None
    since_ms: int = 0
    """When the breaker opened or closed last; 0 if it has not since the forwarder started."""
    refusal: str = ""
    sites: list[str] = []
    stats: StatsReport = msgspec.field(default_factory=StatsReport)
    forwarders: int = 1
    """Those at work on it, whose sum this is."""
    working: int = 1
    """Those of them whose breaker is closed."""


class Report(msgspec.Struct):
    """All of it."""

    forwarders: int = 0
    """Those at work."""
    upstreams: dict[str, UpstreamReport] = {}
    last: list[Tapped] = []
    """The latest beacons, the latest first."""
    silent_ms: int | None = None
    """Where none is at work: since when, as far as it is known; None: the last one was stopped, or there was none."""

    def is_running(self) -> bool:
        """Whether a forwarder is at work."""
        return self.forwarders > 0


class _State(msgspec.Struct):
    """Of one forwarder. One that ended says so, or leaves none."""

    stopped: bool = False
    upstreams: dict[str, UpstreamReport] = {}
    last: list[Tapped] = []


def read_report(spool: SpoolConfig) -> Report:
    """Of the configured spool. Raises SpoolError where it cannot be read."""
    return report(forwarder_states(spool), forwarder_figures(spool))


def report(told: Iterable[Told], figures: bytes = b"") -> Report:
    """All that is told as one. What cannot be read is as if it were not there."""
    states = [(one.age_ms, state) for one in told if not (state := _read(one.state)).stopped]
    living = [state for age_ms, state in states if abs(age_ms) <= STALE_MS]
    kept = _read(figures).upstreams
    by_upstream: dict[str, list[UpstreamReport]] = {upstream: [] for upstream in kept}
    for state in living:
        for upstream, of in state.upstreams.items():
            by_upstream.setdefault(upstream, []).append(of)
    upstreams = {}
    for upstream, some in by_upstream.items():
        known = kept.get(upstream, UpstreamReport())
        upstreams[upstream] = msgspec.structs.replace(_together(some), stats=known.stats) if some else known
    last = sorted((event for state in living for event in state.last), key=lambda event: -event.at_ms)
    silent_ms = min((age_ms for age_ms, _ in states), default=None) if not living else None
    return Report(len(living), upstreams, last[:MOST_LAST], silent_ms)


def _together(some: Sequence[UpstreamReport]) -> UpstreamReport:
    """It takes beacons if one of them finds that it does."""
    state = next(state for state in ("closed", "probing", "open", some[0].state) if any(of.state == state for of in some))
    alike = [of.since_ms for of in some if of.state == state]
    failed = min((of for of in some if of.failed_ago_ms is not None), key=lambda of: of.failed_ago_ms or 0, default=some[0])
    return UpstreamReport(
        state=state,
        limit=sum(of.limit for of in some),
        in_flight=sum(of.in_flight for of in some),
        per_second=round(sum(of.per_second for of in some), 1),
        last_failure=failed.last_failure,
        failed_ago_ms=failed.failed_ago_ms,
        since_ms=min(alike) if state == "closed" else max(alike),
        refusal=next((of.refusal for of in some if of.refusal), ""),
        sites=sorted({site for of in some for site in of.sites}),
        forwarders=len(some),
        working=sum(of.state == "closed" for of in some),
    )


def _read(state: bytes) -> _State:
    try:
        return msgspec.json.decode(state, type=_State)
    except msgspec.DecodeError:
        return _State(stopped=True)
