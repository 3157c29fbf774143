"""The stamp: what a trusted proxy says of a beacon's arrival there, in `X-Beacon-Stamp`: the time, and a number of its own.

A proxy that gets no answer cannot know whether the collector stored the beacon. Offered to a second collector, or kept in a log
and ingested later, it would be another beacon, with another time and another anonymous identity, and count twice. Both come from
the stamp, so all copies of one request are identical to the byte, and the vendor's duplicate rule absorbs them.
"""

import base64
import hashlib
import re
from typing import NamedTuple

STAMP = b"x-beacon-stamp"
FARTHEST_MS = 300_000
"""A stamp farther from our own clock is not believed: no request waits so long in a proxy."""

_STAMP = re.compile(rb"([0-9]{10})\.([0-9]{3}) ([0-9a-f]{32})")


class Stamp(NamedTuple):
    """When the request arrived at the proxy, milliseconds since the epoch, and its number there."""

    at_ms: int
    number: bytes

    def identity(self) -> str:
        """What `new_identity` would draw, made from the number; the number, which other logs may hold, cannot be told from it."""
        digest = hashlib.blake2b(self.number, digest_size=18, person=b"beacon identity").digest()
        return base64.urlsafe_b64encode(digest).decode("ascii")


def read_stamp(value: bytes) -> Stamp | None:
    """Seconds with three decimals, a space, 32 hexadecimal digits, as nginx writes it; None for anything else."""
    match = _STAMP.fullmatch(value)
    return Stamp(int(match[1] + match[2]), match[3]) if match else None
