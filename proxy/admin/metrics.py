"""`/metrics`: the ledger, the commits and the forwarder's state as Prometheus metrics.

All is kept in the spool, whichever process counted, so it is right across processes and restarts without any counting here.
A scrape is one look at the spool (`look`), told as families (`families`, pure). Names and units follow Prometheus' practice;
labels are names of sites and outcomes, upstreams' addresses and answers: nothing of a visitor, and nothing a visitor can choose.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.admin.config import AdminConfig
from proxy.admin.report import Report, UpstreamReport, read_report
from proxy.outcome import Ending, Outcome
from proxy.spool import fallback_pending, intake_stats, ledger_of, ledger_off, spool_bytes, unready
from proxy.spool.jetstream.address import parse
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, IntakeStats, Ledger, SpoolConfig, SpoolError

AUDIT_EVERY_S, AUDIT_MOST = 60, 200_000
"""How often the spool's rows are counted, and how many at the most: counting touches each."""
OWN = frozenset(f"beacon_proxy_{name}" for name in ("ready", "spool_readable", "fallback_pending", "lanes_set_aside", "build"))
"""What each host says of itself. All else is the spool's: over NATS every host tells the same, and it bears the label `spool`, so
that whoever adds up hosts counts it once."""
STATES = ("closed", "open", "probing", "no_forwarder")


class Seen(NamedTuple):
    """What was found in the spool."""

    ledger: Ledger
    told: Report
    intake: IntakeStats
    used_bytes: int
    off: int | None
    """By how many hits ledger and spool differ; None: not counted."""


class Reading(NamedTuple):
    """One look at the spool."""

    config: AdminConfig
    now_s: float
    ready: bool
    seen: Seen | None
    """None: it could not be read."""
    fallback: int = 0
    """Hits that wait in this host's fallback."""


def look(config: AdminConfig) -> Reading:
    """Look at the configured spool. A spool that cannot be read is told of, too. Takes as long as the disk does."""
    spool, ready = config.spool, not unready(config.spool)
    fallback = 0
    try:
        fallback = fallback_pending(spool)
        told = read_report(spool)
        off = _ledger_off(spool, int(time.monotonic() / AUDIT_EVERY_S))
        seen = Seen(ledger_of(spool), told, intake_stats(spool), spool_bytes(spool), off)
    except (OSError, SpoolError):
        seen = None
    return Reading(config, time.time(), ready, seen, fallback)


def no_answer(config: AdminConfig) -> Reading:
    """What to tell when a look takes too long: the disk hangs."""
    return Reading(config, time.time(), False, None)


@lru_cache(1)
def _ledger_off(spool: SpoolConfig, turn: int) -> int | None:
    return ledger_off(spool, AUDIT_MOST)


def families(reading: Reading) -> Iterator[Metric]:
    """All that is told. Counters that cannot be read are left out: a 0 would be taken for a restart."""
    yield GaugeMetricFamily(
        "beacon_proxy_ready",
        "1 while the spool can take beacons, as /readyz says; 0: beacons are answered 503.",
        value=reading.ready,
    )
    yield GaugeMetricFamily(
        "beacon_proxy_spool_readable",
        "1 if this scrape could read the spool; 0: most metrics are missing.",
        value=bool(reading.seen),
    )
    yield GaugeMetricFamily("beacon_proxy_spool_max_bytes", "Setting max_bytes.", value=reading.config.spool.max_bytes)
    yield GaugeMetricFamily(
        "beacon_proxy_fallback_pending",
        "Beacons that wait on this host, since the spool's servers do not take them or did not. In beacon_proxy_pending too, but "
        "for those that the servers may have as well: these are in no other count.",
        value=reading.fallback,
    )
    yield InfoMetricFamily("beacon_proxy_build", "The version.", value={"version": __version__})
    if reading.seen is not None:
        yield from _ledger(reading.seen.ledger, reading.config.sites)
        yield from _spool(reading.seen, reading.now_s)
        yield from _commits(reading.seen.intake)
        yield from _upstreams(reading.seen.told)
        yield from _attempts(reading.seen.told.upstreams)


def _ledger(ledger: Ledger, sites: tuple[str, ...]) -> Iterator[Metric]:
    received = CounterMetricFamily(
        "beacon_proxy_received", "Beacons answered 200: stored, or deliberately dropped.", labels=["site"]
    )
    refused = CounterMetricFamily("beacon_proxy_refused", "Beacons answered 503: not stored.", labels=["site"])
    trimmed = CounterMetricFamily("beacon_proxy_trimmed", "Beacons delivered shortened to the API's limits.", labels=["site"])
    ended = CounterMetricFamily(
        "beacon_proxy_outcomes", "Beacons delivered or dropped, by outcome.", labels=["site", "ending", "outcome"]
    )
    dead = GaugeMetricFamily(
        "beacon_proxy_dead_letters", "Dead letters kept, by reason; fewer after a replay.", labels=["site", "outcome"]
    )
    pending = GaugeMetricFamily("beacon_proxy_pending", "Beacons stored and not yet delivered.", labels=["site"])
    unknown = set(ledger.silent) - ledger.counts.keys()  # a 0 would be taken for a restart
    for site in sorted({*sites, *ledger.counts} - unknown):
        counts = ledger.counts.get(site, {})
        received.add_metric([site], counts.get(RECEIVED, 0))
        refused.add_metric([site], counts.get(REFUSED, 0))
        trimmed.add_metric([site], counts.get(TRIMMED, 0))
        pending.add_metric([site], ledger.pending_of(site))
        for outcome in Outcome:
            if outcome.ending is Ending.DEAD:
                dead.add_metric([site, outcome.value], counts.get(outcome, 0))
            else:
                ended.add_metric([site, outcome.ending.value, outcome.value], counts.get(outcome, 0))
    yield from (received, refused, trimmed, ended, dead, pending)


def _spool(seen: Seen, now_s: float) -> Iterator[Metric]:
    oldest = seen.ledger.oldest_pending_ms
    age = 0.0 if oldest is None else max(0.0, now_s - oldest / 1000)
    yield GaugeMetricFamily("beacon_proxy_oldest_pending_seconds", "Age of the oldest pending beacon; 0: none.", value=age)
    yield GaugeMetricFamily("beacon_proxy_spool_bytes", "Bytes of the spool that hold something.", value=seen.used_bytes)
    yield GaugeMetricFamily(
        "beacon_proxy_lanes_set_aside", "Lanes that cannot be read or were set aside as corrupt.", value=len(seen.ledger.unread)
    )
    yield GaugeMetricFamily(
        "beacon_proxy_sites_silent",
        "Sites whose stream of a nats:// spool does not answer: their counts are the last that were read, or missing.",
        value=len(seen.ledger.silent),
    )
    if seen.off is not None:
        yield GaugeMetricFamily(
            "beacon_proxy_ledger_off",
            f"Hits by which ledger and spool differ, looked at once a minute; 0. Not told above {AUDIT_MOST:,} hits in a lane.",
            value=seen.off,
        )


def _commits(stats: IntakeStats) -> Iterator[Metric]:
    seconds = HistogramMetricFamily("beacon_proxy_commit_seconds", "Time of a commit: how long a GIF waits for the disk.")
    seconds.add_metric([], stats.commit_seconds.cumulative(), stats.commit_seconds.sum)
    sizes = HistogramMetricFamily("beacon_proxy_commit_beacons", "Beacons that shared a commit.")
    sizes.add_metric([], stats.batch_hits.cumulative(), stats.batch_hits.sum)
    yield from (seconds, sizes)


def _upstreams(told: Report) -> Iterator[Metric]:
    running = told.is_running()
    yield GaugeMetricFamily("beacon_proxy_forwarder_running", "1 while a forwarder reports.", value=running)
    yield GaugeMetricFamily("beacon_proxy_forwarders", "Forwarders at work on the spool, on all machines.", value=told.forwarders)
    state = GaugeMetricFamily(
        "beacon_proxy_upstream_state",
        "1 for the circuit breaker's present state; a closed circuit is one that works (for one forwarder at least).",
        labels=["upstream", "state"],
    )
    limit = GaugeMetricFamily(
        "beacon_proxy_upstream_limit", "Most requests in flight just now, of all forwarders.", labels=["upstream"]
    )
    in_flight = GaugeMetricFamily("beacon_proxy_upstream_in_flight", "Requests in flight.", labels=["upstream"])
    for upstream, of in sorted(told.upstreams.items()):
        for name in STATES:
            state.add_metric([upstream, name], name == (of.state if running and of.state else "no_forwarder"))
        limit.add_metric([upstream], of.limit)
        in_flight.add_metric([upstream], of.in_flight if running else 0)
    yield from (state, limit, in_flight)


def _attempts(told: dict[str, UpstreamReport]) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "beacon_proxy_attempts", "Attempts to deliver, by status or kind of failure.", labels=["upstream", "answer"]
    )
    took = HistogramMetricFamily("beacon_proxy_attempt_seconds", "Time of an attempt.", labels=["upstream"])
    ages = HistogramMetricFamily("beacon_proxy_delivery_seconds", "Time from receipt to delivery.", labels=["upstream"])
    for upstream, of in sorted(told.items()):
        for answer, n in sorted(of.stats.answers.items()):
            answers.add_metric([upstream, answer], n)
        for family, histogram in ((took, of.stats.attempt_seconds), (ages, of.stats.delivery_seconds)):
            if histogram is not None:
                family.add_metric([upstream], histogram.cumulative(), histogram.sum)
    yield from (answers, took, ages)


class _Told(Collector):
    """One reading's families."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        url = reading.config.spool.url
        self._shared = {"spool": parse(url).stream} if url.startswith("nats:") else {}

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for family in families(self._reading):
            if self._shared and family.name not in OWN:
                family.samples = [sample._replace(labels={**self._shared, **sample.labels}) for sample in family.samples]
            yield family


def exposition(reading: Reading) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(_Told(reading))
    return generate_latest(registry)
