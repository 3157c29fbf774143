"""The ledger for eyes and for scripts: what `status` prints and the admin listener answers. The JSON names are fixed."""

import time
from typing import Any

from proxy.outcome import Ending
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Ledger


def summary(ledger: Ledger) -> dict[str, Any]:
    """The ledger as plain data."""
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
        "upstreams": {},
    }


def render(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    dropped = sum(found["dropped"].values())
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in found["dropped"].items())
    oldest = "" if found["oldest_pending_s"] is None else f"   oldest {found['oldest_pending_s']:.1f} s"
    return "\n".join(
        [
            f"received   {found['received']:>12,}   answered 200",
            f"delivered  {found['delivered']:>12,}" + (f"   {found['trimmed']:,} shortened" if found["trimmed"] else ""),
            f"dropped    {dropped:>12,}" + (f"   {reasons}" if reasons else ""),
            f"dead       {found['dead']:>12,}",
            f"pending    {found['pending']:>12,}{oldest}",
            f"refused    {found['refused']:>12,}   answered 503, not in received",
        ]
    )
