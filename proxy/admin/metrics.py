"""`/metrics`: the ledger and the forwarder's state as Prometheus metrics.

Both are kept in the spool, whichever process counted, so they are right across processes and restarts without any counting of
their own. Names and units follow Prometheus' practice; no label holds anything of a visitor.
"""

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.admin.summary import summary
from proxy.outcome import Ending, Outcome
from proxy.spool import forwarder_state, ledger_of, spool_bytes
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, SpoolConfig

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
        found = summary(ledger, forwarder_state(self._config))
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
        yield InfoMetricFamily("beacon_proxy_build", "The version.", value={"version": __version__})
        yield from _upstreams(found["upstreams"])


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
