"""`/metrics`: the ledger and the forwarder's state as Prometheus metrics.

Both are kept in the spool, whichever process counted, so they are right across processes and restarts without any counting of
their own. Names and units follow Prometheus' practice; no label holds anything of a visitor.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.admin.report import UpstreamReport, report
from proxy.admin.summary import summary
from proxy.outcome import Ending, Outcome
from proxy.spool import forwarder_state, intake_stats, ledger_of, ledger_off, spool_bytes, unready
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, IntakeStats, SpoolConfig

AUDIT_EVERY_S, AUDIT_MOST = 60, 200_000
"""How often the spool's rows are counted, and how many at the most: counting touches each."""
STATES = ("closed", "open", "probing", "no forwarder")


class _Reading(Collector):
    """One look at the spool for each scrape."""

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config

    def describe(self) -> list[Metric]:
        """Nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, from one reading."""
        ledger = ledger_of(self._config)
        state = forwarder_state(self._config)
        found = summary(ledger, state)
        received = CounterMetricFamily(
            "beacon_proxy_received", "Beacons answered 200: stored, or deliberately dropped.", labels=["site"]
        )
        refused = CounterMetricFamily("beacon_proxy_refused", "Beacons answered 503: not stored.", labels=["site"])
        trimmed = CounterMetricFamily("beacon_proxy_trimmed", "Beacons delivered shortened to the API's limits.", labels=["site"])
        ended = CounterMetricFamily(
            "beacon_proxy_outcomes",
            "Beacons that ended, by outcome. Replaying dead letters takes them back.",
            labels=["site", "ending", "outcome"],
        )
        dead = GaugeMetricFamily("beacon_proxy_dead_letters", "Dead letters kept, by reason.", labels=["site", "outcome"])
        pending = GaugeMetricFamily("beacon_proxy_pending", "Beacons stored and not yet delivered.", labels=["site"])
        for site, counts in sorted(ledger.counts.items()):
            received.add_metric([site], counts.get(RECEIVED, 0))
            refused.add_metric([site], counts.get(REFUSED, 0))
            trimmed.add_metric([site], counts.get(TRIMMED, 0))
            pending.add_metric([site], ledger.pending_of(site))
            for outcome in Outcome:
                if n := counts.get(outcome, 0):
                    if outcome.ending is Ending.DEAD:
                        dead.add_metric([site, outcome], n)
                    else:
                        ended.add_metric([site, outcome.ending, outcome], n)
        yield from (received, refused, trimmed, ended, dead, pending)
        oldest = ledger.oldest_pending_ms
        age = 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)
        yield GaugeMetricFamily("beacon_proxy_oldest_pending_seconds", "Age of the oldest pending beacon.", value=age)
        yield GaugeMetricFamily(
            "beacon_proxy_spool_bytes", "Bytes of the spool that hold something.", value=spool_bytes(self._config)
        )
        yield GaugeMetricFamily("beacon_proxy_spool_max_bytes", "Setting max_bytes.", value=self._config.max_bytes)
        yield GaugeMetricFamily("beacon_proxy_lanes_set_aside", "Corrupt lanes set aside.", value=len(ledger.unread))
        yield GaugeMetricFamily(
            "beacon_proxy_forwarder_running", "1 while a forwarder reports.", value=float(report(state).is_running())
        )
        yield InfoMetricFamily("beacon_proxy_build", "The version.", value={"version": __version__})
        yield from _commits(intake_stats(self._config))
        yield from _promise(self._config)
        yield from _upstreams(found["upstreams"])
        yield from _attempts(report(state).upstreams)


def _commits(stats: IntakeStats) -> Iterator[Metric]:
    seconds = HistogramMetricFamily("beacon_proxy_commit_seconds", "Time of a commit: how long a GIF waits for the disk.")
    seconds.add_metric([], stats.commit_seconds.cumulative(), stats.commit_seconds.sum)
    sizes = HistogramMetricFamily("beacon_proxy_commit_beacons", "Beacons that shared a commit.")
    sizes.add_metric([], stats.batch_hits.cumulative(), stats.batch_hits.sum)
    yield from (seconds, sizes)


def _promise(config: SpoolConfig) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "beacon_proxy_ready", "1 while the spool can take beacons, as /readyz says.", value=float(not unready(config))
    )
    off = _ledger_off(config, int(time.monotonic() / AUDIT_EVERY_S))
    if off is not None:
        yield GaugeMetricFamily("beacon_proxy_ledger_off", "Hits by which the ledger and the spool differ; 0.", value=off)


@lru_cache(1)
def _ledger_off(config: SpoolConfig, turn: int) -> int | None:
    return ledger_off(config, AUDIT_MOST)


def _attempts(told: dict[str, UpstreamReport]) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "beacon_proxy_attempts", "Attempts to deliver, by status or failure.", labels=["upstream", "answer"]
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


def _upstreams(found: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    state = GaugeMetricFamily("beacon_proxy_upstream_state", "1 for the breaker's present state.", labels=["upstream", "state"])
    gauges = {
        "limit": GaugeMetricFamily("beacon_proxy_upstream_limit", "Most requests in flight just now.", labels=["upstream"]),
        "in_flight": GaugeMetricFamily("beacon_proxy_upstream_in_flight", "Requests in flight.", labels=["upstream"]),
        "per_second": GaugeMetricFamily(
            "beacon_proxy_upstream_delivered_per_second", "Deliveries a second.", labels=["upstream"]
        ),
    }
    for upstream, told in sorted(found.items()):
        for name in STATES:
            state.add_metric([upstream, name.replace(" ", "_")], float(told["state"] == name))
        for name, gauge in gauges.items():
            gauge.add_metric([upstream], told[name])
    yield state
    yield from gauges.values()


def exposition(config: SpoolConfig) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(_Reading(config))
    return generate_latest(registry)
