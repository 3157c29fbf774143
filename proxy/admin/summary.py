"""The ledger for eyes and for scripts: what `status` prints and the admin listener answers. The JSON names are fixed."""

import time
from typing import Any

from proxy.admin.report import Report, read_report
from proxy.outcome import Ending
from proxy.spool import ledger_of, unready
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Ledger, SpoolConfig

STATES = {"closed": "takes beacons", "open": "takes nothing", "probing": "takes nothing, being probed"}
"""The breaker's states (a closed circuit is one that works) in plain words."""
NOBODY = "no forwarder"
"""The state of an upstream that none delivers to."""


def in_words(told: dict[str, Any]) -> str:
    """What an upstream does just now."""
    if told["state"] == "closed" and told["refusal"]:
        return f"refuses every beacon ({told['refusal']})"
    if told["state"] == "closed" and not told["limit"] and told["forwarders"]:
        return "has no share yet (that of forwarders that died is free after attempt_timeout + 10 s)"
    words = STATES.get(told["state"], str(told["state"]))
    return (
        f"{words} (from {told['working']} of {told['forwarders']} forwarders)"
        if 0 < told["working"] < told["forwarders"]
        else words
    )


def read(config: SpoolConfig) -> dict[str, Any]:
    """The summary of the configured spool, whether or not anything runs."""
    return summary(ledger_of(config), read_report(config))


def status(config: SpoolConfig) -> dict[str, Any]:
    """What `status` prints: the summary, and why the spool takes no beacons ("" if it does)."""
    return {**read(config), "unready": unready(config)}


def summary(ledger: Ledger, told: Report) -> dict[str, Any]:
    """The ledger and the forwarders' last reports as plain data."""
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
        "fallback": ledger.fallback,
        "doubtful": ledger.doubtful,
        "set_aside": list(ledger.unread),
        "silent_sites": list(ledger.silent),
        "forwarders": told.forwarders,
        "upstreams": _upstreams(ledger, told),
    }


def _upstreams(ledger: Ledger, told: Report) -> dict[str, dict[str, Any]]:
    """Each upstream's state, limit, rate, and the seconds its backlog will take at that rate (None if it does not drain)."""
    running = told.is_running()
    found: dict[str, dict[str, Any]] = {}
    for upstream, of in told.upstreams.items():
        pending = sum(ledger.pending_of(site) for site in of.sites)
        rate = of.per_second if running else 0.0
        found[upstream] = {
            "state": of.state if running and of.state else NOBODY,
            "forwarders": of.forwarders if running else 0,
            "working": of.working if running else 0,
            "limit": of.limit,
            "in_flight": of.in_flight if running else 0,
            "per_second": rate,
            "last_failure": of.last_failure,
            "refusal": of.refusal if running else "",
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
    if found.get("unready"):  # of `status`
        lines.append(f"not ready  {found['unready']}")
    if found["fallback"]:
        lines.append(f"fallback   {found['fallback']:>12,}   on this host, to be moved to the spool's servers")
    if found["doubtful"]:
        lines.append(f"doubtful   {found['doubtful']:>12,}   of these: the servers may have them, so no other line counts them")
    lines += [
        f"set aside  {name}: not in the sums, nor delivered; save it with `beacon-proxy lanes recover`"
        for name in found["set_aside"]
    ]
    lines += [
        f"no answer  site {site}: its stream does not answer; its figures are the last that were read, or missing"
        for site in found["silent_sites"]
    ]
    if found["forwarders"] != 1:
        lines.append(f"forwarders {found['forwarders'] or 'none':>12}   at work")
    for upstream, told in found["upstreams"].items():
        takes = "" if not told["eta_s"] else f", {told['pending']:,} waiting: about {told['eta_s']:,} s"
        failure = f", last failure {told['last_failure']}" if told["last_failure"] and told["state"] != "closed" else ""
        lines.append(
            f"upstream   {upstream}: {in_words(told)}, {told['in_flight']} in flight of at most "
            f"{told['limit']}, {told['per_second']:,} delivered a second{takes}{failure}"
        )
    return "\n".join(lines)
