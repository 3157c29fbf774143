"""Why a beacon ended as it did, and whose it was taken for, for the debug token; nobody else can tell outcomes apart."""

from proxy.beacon import parse
from proxy.collector.address import parse_address
from proxy.hit import Hit
from proxy.outcome import Outcome

DEBUG_HEADER = b"x-beacon-debug"


def told(hit: Hit | Outcome, stored: bool) -> str:
    """The outcome as far as it can be known at receipt: a dropped beacon's reason, `refused`, or `stored`; for what was to be
    stored also the client's address as it stands in the spool: `stored; address=192.0.2.7`, or `address=none`."""
    if isinstance(hit, Outcome):
        return str(hit)
    beacon = parse(hit)
    outcome = "refused" if not stored else str(beacon) if isinstance(beacon, Outcome) else "stored"
    return f"{outcome}; address={parse_address(hit.address) or 'none'}"
