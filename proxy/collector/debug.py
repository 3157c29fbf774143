"""Why a beacon ended as it did, for whoever has the debug token; nobody else can tell outcomes apart."""

from proxy.beacon import parse
from proxy.hit import Hit
from proxy.outcome import Outcome

DEBUG_HEADER = b"x-beacon-debug"


def told(hit: Hit | Outcome, stored: bool) -> str:
    """The outcome as far as it can be known at receipt: a dropped beacon's reason, `refused`, or `stored`."""
    if isinstance(hit, Outcome):
        return str(hit)
    if not stored:
        return "refused"
    beacon = parse(hit)
    return str(beacon) if isinstance(beacon, Outcome) else "stored"
