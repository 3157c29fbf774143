"""What several forwarders tell, as one report."""

from typing import Any

import msgspec

from proxy.admin.config import AdminConfig
from proxy.admin.metrics import Reading, Seen, exposition
from proxy.admin.page import look
from proxy.admin.page.words import verdict
from proxy.admin.report import MOST_LAST, STALE_MS, Report, report
from proxy.admin.summary import render, summary
from proxy.spool.port import IntakeStats, Ledger, SpoolConfig, Tapped, Told

VENDOR = "http://vendor.example"
LEDGER = Ledger({}, 0, None)


def told(age_ms: int = 100, last: tuple[Tapped, ...] = (), **of: Any) -> Told:
    state = {"state": "closed", "limit": 8, "in_flight": 2, "per_second": 1.5, "sites": ["default"], **of}
    return Told(age_ms, msgspec.json.encode({"upstreams": {VENDOR: state}, "last": last}))


def figures(n: int) -> bytes:
    return msgspec.json.encode({"upstreams": {VENDOR: {"sites": ["default"], "stats": {"answers": {"200": n}}}}})


def text(found: Report) -> str:
    seen = Seen(LEDGER, found, IntakeStats(), 0, 0)
    return exposition(Reading(AdminConfig(SpoolConfig("memory:")), 0.0, True, seen)).decode()


def test_limits_requests_in_flight_and_rates_are_sums() -> None:
    """Of those at work; one that has been silent for long is not."""
    found = report([told(), told(in_flight=3), told(STALE_MS + 1)], figures(7))
    of = found.upstreams[VENDOR]
    assert (found.forwarders, of.limit, of.in_flight, of.per_second) == (2, 16, 5, 3.0)
    assert of.stats.answers == {"200": 7}
    assert "beacon_proxy_forwarders 2.0" in text(found)
    assert f'beacon_proxy_attempts_total{{answer="200",upstream="{VENDOR}"}} 7.0' in text(found)


def test_an_upstream_takes_beacons_if_one_of_them_finds_that_it_does() -> None:
    """Each has a breaker of its own; how many agree is told."""
    some = [told(), told(state="open", since_ms=5, last_failure="503", failed_ago_ms=10)]
    found = report([*some, told(last_failure="404", failed_ago_ms=50)])
    of = found.upstreams[VENDOR]
    assert (of.state, of.working, of.forwarders, of.last_failure) == ("closed", 2, 3, "503")
    assert "takes beacons (from 2 of 3 forwarders)" in render(summary(LEDGER, found))
    found = report([told(state="open", since_ms=5), told(state="open", since_ms=9), told(state="probing", since_ms=7)])
    assert (found.upstreams[VENDOR].state, found.upstreams[VENDOR].since_ms) == ("probing", 7)
    found = report([told(state="open", since_ms=5), told(state="open", since_ms=9)])
    assert (found.upstreams[VENDOR].state, found.upstreams[VENDOR].since_ms) == ("open", 9)


def test_an_upstream_of_earlier_settings_has_no_forwarder() -> None:
    """Its figures are kept; that nobody delivers there is alarming only while something waits for it."""
    found = report([told()], b'{"upstreams":{"http://old":{"sites":["shop"]}}}')
    assert "http://old: no forwarder, 0 in flight" in render(summary(LEDGER, found))
    assert 'state{state="no_forwarder",upstream="http://old"} 1.0' in text(found)
    for ledger, level in ((LEDGER, "ok"), (Ledger({"shop": {"received": 1}}, 1, None), "warn")):
        reading = look.Reading(at_ms=0, ledger=ledger, told=found, max_bytes=1)
        assert verdict(reading, summary(ledger, found), 0).level == level


def test_of_one_forwarder_is_told_what_it_told() -> None:
    """The usual case has no word more."""
    found = summary(LEDGER, report([told()], figures(1)))
    assert found["forwarders"] == 1
    assert "forwarders" not in render(found)
    assert "takes beacons, 2 in flight" in render(found)


def test_the_last_beacons_of_all_are_the_latest() -> None:
    """Whoever delivered them."""
    one = tuple(Tapped(at_ms, "default", "delivered") for at_ms in range(40, 0, -2))
    two = tuple(Tapped(at_ms, "default", "delivered") for at_ms in range(39, 0, -2))
    assert [event.at_ms for event in report([told(last=one), told(last=two)]).last] == list(range(40, 40 - MOST_LAST, -1))


def test_without_a_forwarder_the_upstreams_and_their_backlog_are_known() -> None:
    """From what they keep together. One that ended said so; of one that died is known since when."""
    ledger = Ledger({"default": {"received": 5}}, 5, None)
    for states, silent_ms in (([], None), ([told(9_000)], 9_000)):
        found = report(states, figures(3))
        assert (found.is_running(), found.silent_ms) == (False, silent_ms)
        of = summary(ledger, found)["upstreams"][VENDOR]
        assert (of["state"], of["pending"], of["forwarders"]) == ("no forwarder", 5, 0)
        assert "beacon_proxy_forwarder_running 0.0" in text(found)
    assert report([Told(0, b'{"stopped":true}'), Told(0, b"rotten")]) == Report()
