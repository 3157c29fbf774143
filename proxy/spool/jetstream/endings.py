"""What is recorded of a hit's ending before the hit is acknowledged. An ending that was delivered leaves nothing: it is the rest.

Each record has an id made from the hit's place in its stream, so that one recorded twice (a crash between the record and the
acknowledgement) counts once, within the streams' duplicate window.
"""

import msgspec

from proxy.delivery import Final
from proxy.outcome import Ending, Outcome
from proxy.spool.jetstream.flight import Flight
from proxy.spool.jetstream.names import HIT_ID, REPLAYED, Names
from proxy.spool.jetstream.publisher import Message
from proxy.spool.port import TRIMMED


class DeadRecord(msgspec.Struct, array_like=True, frozen=True):
    """A dead letter as it lies in its stream (msgpack); its site and outcome are its subject."""

    answer: str
    attempts: int
    died_ms: int
    hit: bytes


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(DeadRecord).decode


def counting(names: Names, site: str, name: str, id: str, n: int = 1) -> Message:
    """One more of that count (ADR-49)."""
    return Message(names.count(site, name), b"", {"Nats-Incr": f"{n:+d}", HIT_ID: id})


def records(names: Names, flight: Flight, final: Final, now_ms: int) -> list[Message]:
    """The messages that record that hit's ending."""
    site, place = flight.site, flight.place
    found = []
    if final.outcome.ending is Ending.DEAD:
        letter = encode(DeadRecord(final.answer, flight.attempt, now_ms, flight.content))
        found.append(Message(names.dead_letter(site, final.outcome), letter, {HIT_ID: place}))
    elif final.outcome is not Outcome.DELIVERED:
        found.append(counting(names, site, final.outcome, f"{final.outcome}:{place}"))
    if not flight.reply:  # its stream, which counted it as received, is gone; that of now has to account for its ending
        found.append(counting(names, site, REPLAYED, f"{REPLAYED}:{place}", -1))
    if final.trimmed:
        found.append(counting(names, site, TRIMMED, f"{TRIMMED}:{place}"))
    return found
