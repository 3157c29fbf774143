"""The ledger for eyes and for scripts: what `status` prints and the admin listener answers. The JSON names are fixed."""

import time
from typing import Any

import msgspec

from proxy.outcome import Ending
from proxy.spool import forwarder_state, ledger_of
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Ledger, SpoolConfig

STALE_S = 5.0
"""A forwarder reports each second; one that has not for so long is not running."""


STATES = {"closed": "takes beacons", "open": "takes nothing", "probing": "takes nothing, being probed"}
"""The breaker's states (a closed circuit is one that works) in plain words."""


class _State(msgspec.Struct):
    written_ms: int = 0
    upstreams: dict[str, dict[str, Any]] = {}


PUBLISHED = ("sites", "stats")
"""What a forwarder reports of an upstream beyond what the summary shows."""


def read(config: SpoolConfig) -> dict[str, Any]:
    """The summary of the configured spool, whether or not anything runs."""
    return summary(ledger_of(config), forwarder_state(config))


def summary(ledger: Ledger, state: bytes = b"") -> dict[str, Any]:
    """The ledger and the forwarder's last report as plain data."""
    oldest = ledger.oldest_pending_ms
    return {
        "received": ledger.total(RECEIVED),
        "delivered": sum(ledger.ending(Ending.DELIVERED).values()),
        "dropped": {str(outcome): n for outcome, n in ledger.ending(Ending.DROPPED).items()},
        "dead": sum(ledger.ending(Ending.DEAD).values()),
        "pending": ledger.pending,
        "oldest_pending_s": None if oldest is None else max(0.0, round(time.time() - oldest / 1000, 3)),
        "refused": ledger.total(REFUSED),
        "trimmed": ledger.total(TRIMMED),
        "set_aside": list(ledger.unread),
        "upstreams": _upstreams(ledger, state),
    }


def _upstreams(ledger: Ledger, state: bytes) -> dict[str, dict[str, Any]]:
    """Each upstream's state, limit, rate, and the seconds its backlog will take at that rate (None if it does not drain)."""
    try:
        report = msgspec.json.decode(state, type=_State)
    except msgspec.DecodeError:
        return {}
    running = abs(time.time() - report.written_ms / 1000) <= STALE_S
    found: dict[str, dict[str, Any]] = {}
    for upstream, told in report.upstreams.items():
        pending = sum(ledger.pending_of(site) for site in told.get("sites", []))
        told = {name: value for name, value in told.items() if name not in PUBLISHED}
        if not running:
            told.update(state="no forwarder", in_flight=0, per_second=0.0)
        rate = told["per_second"]
        found[upstream] = {
            **told,
            "pending": pending,
            "eta_s": 0 if not pending else round(pending / rate) if rate >= 0.1 else None,
        }
    return found


def render(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    dropped = sum(found["dropped"].values())
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in found["dropped"].items())
    oldest = "" if found["oldest_pending_s"] is None else f"   oldest {found['oldest_pending_s']:.1f} s"
    lines = [
        f"received   {found['received']:>12,}   answered 200",
        f"delivered  {found['delivered']:>12,}" + (f"   {found['trimmed']:,} shortened" if found["trimmed"] else ""),
        f"dropped    {dropped:>12,}" + (f"   {reasons}" if reasons else ""),
        f"dead       {found['dead']:>12,}",
        f"pending    {found['pending']:>12,}{oldest}",
        f"refused    {found['refused']:>12,}   answered 503, not in received",
    ]
    lines += [f"set aside  {name}: corrupt, not in the sums; see docs/reliability.md" for name in found["set_aside"]]
    for upstream, told in found["upstreams"].items():
        takes = "" if not told["eta_s"] else f", {told['pending']:,} waiting: about {told['eta_s']:,} s"
        failure = f", last failure {told['last_failure']}" if told["last_failure"] and told["state"] != "closed" else ""
        lines.append(
            f"upstream   {upstream}: {STATES.get(told['state'], told['state'])}, {told['in_flight']} in flight of at most "
            f"{told['limit']}, {told['per_second']:,} delivered a second{takes}{failure}"
        )
    return "\n".join(lines)
