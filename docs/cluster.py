"""The tables of scale-out.md: made from measured/cluster.json, which `make chaos-cluster` and `python -m tests.cluster` write."""

import json
import math
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parent / "measured" / "cluster.json"
BEACONS_A_DAY, PEAK, OUTAGE_H, BROKERS_AWAY_H, FULL = 1_000_000_000, 3, 8, 1, 0.5
"""The worked example; a core is planned to be half full at the peak."""
DAY_S, DUPLICATES_S, ID_BYTES = 86_400, 60, 150
Row = tuple[str, ...]


def cluster_tables() -> str:
    """All of them."""
    found = json.loads(MEASURED.read_text("utf-8"))
    parts = [_machine(found["machine"])]
    if "throughput" in found:
        parts += [_sizes(found["throughput"]), _example(found["throughput"])]
    return "\n\n".join([*parts, _promises(found)])


def _table(*rows: Row) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], tuple("---" for _ in rows[0]), *rows[1:]))


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"Measured on {machine['processor']}, {machine['cores']} hardware threads of a shared virtual machine, "
        f"Linux {machine['kernel']}, Python {machine['python']}; "
        "three brokers, collectors, forwarders, the load and the vendor's stand-in all on it."
    )


def _spread(of: dict[str, float], form: str = "{:,.0f}") -> str:
    return f"{form.format(of['median'])} ({form.format(of['min'])}–{form.format(of['max'])})"


def _sizes(throughput: dict[str, Any]) -> str:
    found = throughput["found"]

    def row(what: str, name: str, ratio: str = "") -> Row:
        one, two = found[name]["1"], found[name]["2"]
        return what, _spread(one), _spread(two), _spread(throughput["ratio_two_over_one"][ratio], "{:.2f}") if ratio else ""

    head = ("median (least–greatest) of rounds, in turn", "one collector, one forwarder", "two of each", "ratio in a round")
    return _table(
        head,
        row("answered a second, by the clock", "answered_per_s", "answered_per_s"),
        row("delivered a second, by the clock, backlog and all", "delivered_per_s", "delivered_per_s"),
        row("collector, µs of processor time a beacon", "collector_us", "collector_us"),
        row("all three brokers, µs a beacon", "broker_us", "broker_us"),
        row("the busiest broker, µs a beacon", "busiest_broker_us"),
        row("forwarder, µs a beacon", "forwarder_us", "forwarder_us"),
        row("bytes a waiting beacon, on each broker's disk", "bytes_per_beacon"),
        ("bytes a waiting beacon, in a collector's fallback", f"{throughput['fallback']['bytes_per_beacon']:,.0f}", "", ""),
        row("memory of a collector, MB", "collector_rss_mb"),
        row("memory of a broker, MB", "broker_rss_mb"),
        row("memory of a forwarder, MB", "forwarder_rss_mb"),
    )


def _example(throughput: dict[str, Any]) -> str:
    of = {name: found["2"]["median"] for name, found in throughput["found"].items()}
    peak = BEACONS_A_DAY / DAY_S * PEAK

    def cores(name: str) -> tuple[float, int]:
        busy = peak * of[name] / 1e6
        return busy, math.ceil(busy / FULL)

    collector, broker, forwarder = cores("collector_us"), cores("busiest_broker_us"), cores("forwarder_us")
    an_hour = BEACONS_A_DAY / DAY_S * 3600 / 1e9
    backlog = an_hour * of["bytes_per_beacon"]
    fallback = an_hour * throughput["fallback"]["bytes_per_beacon"] * BROKERS_AWAY_H
    ids = peak * DUPLICATES_S * ID_BYTES / 1e6
    return _table(
        (f"for {BEACONS_A_DAY:,} beacons a day", "figure", "how"),
        ("on average, at the peak", f"{peak / PEAK:,.0f}/s, {peak:,.0f}/s", f"a peak of {PEAK} times the average"),
        ("collector processes", f"{collector[1]}", f"{collector[0]:.1f} cores busy at the peak, planned half full"),
        ("forwarders", f"{forwarder[1]}", f"{forwarder[0]:.1f} cores busy at the peak; a forwarder is one process"),
        (
            "cores of each of three brokers",
            f"{broker[1]}",
            f"{broker[0]:.1f} cores busy at the peak, were all streams led by one",
        ),
        ("disk of each broker", f"{backlog * OUTAGE_H:,.0f} GB", f"the vendor away for {OUTAGE_H} h: {backlog:,.1f} GB an hour"),
        (
            "fallback disk of all collectors' hosts together",
            f"{fallback:,.0f} GB",
            f"all brokers away for {BROKERS_AWAY_H} h",
        ),
        ("memory of a broker for ids", f"{ids:,.0f} MB", f"the last {DUPLICATES_S} s at {ID_BYTES} bytes each, at the peak"),
    )


def _promises(found: dict[str, Any]) -> str:
    names = {
        "kills": lambda of: f"{of['kills']} × `kill -9`: " + ", ".join(f"{n} of a {who}" for who, n in of["victims"].items()),
        "outage": lambda of: f"all three brokers gone for {of['seconds']:g} s",
        "mishaps": lambda of: ", ".join(name.replace("_", " ") for name in of["mishaps"]),
    }
    rows = [
        (
            told(found[name]),
            f"{found[name]['answered_200']:,}",
            f"{found[name]['missing_upstream']}",
            f"{found[name]['differing_copies']} of {found[name]['extra_copies']:,}",
            f"{found[name]['ledger_off_by']}",
            f"{found[name]['answered_503']:,}",
        )
        for name, told in names.items()
        if name in found
    ]
    head = ("experiment", "answered 200", "missing at the vendor", "copies that differ", "ledger off by", "answered 503")
    tables = [_table(head, *rows)]
    if "mishaps" in found:
        mishaps = found["mishaps"]["mishaps"].items()
        told = [
            (name.replace("_", " "), f"{of['longest_time_without_a_200_s']:.1f}", f"{of['answered_503']:,}")
            for name, of in mishaps
        ]
        tables.append(_table(("mishap, of 8 s", "longest time in which nobody was answered 200, s", "answered 503"), *told))
    return "\n\n".join(tables)
