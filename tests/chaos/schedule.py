"""What happens to a disk and to those that need it, and when: drawn from a seed beforehand, so that a run can be repeated.

Only the order and the times of the schedule are repeated: what the processes are doing at that instant is the machine's affair.
"""

import dataclasses
import random

RECOVER_S = 5.0
"""A 200 must be answered this soon after room came back."""
CALM_S = (RECOVER_S + 1, 3 * RECOVER_S)
"""Between two fillings: long enough to see a recovery that comes too late."""
LONG_S = (30, 75)
"""How long a reader may hold a lane, at its worst."""
HARMLESS_S = 3.0
"""The same, where the log must not grow far."""
VICTIMS = ("tree", "collector", "forwarder")


@dataclasses.dataclass(frozen=True)
class Event:
    """What happens, how many seconds after the beginning, for how many seconds, and which of several (from 0 to 1)."""

    at_s: float
    what: str
    """fill, delete, read, restart, one of VICTIMS; of the vendor: closed, ok."""
    for_s: float = 0.0
    share: float = 0.0


def schedule(seed: int, seconds: float, fillers: bool = True) -> list[Event]:
    """All that happens, in order: the same for the same arguments.

    Without fillers: the rest of it, and no reader for so long that the logs fill the disk.
    """
    draw = random.Random(seed)
    events: list[Event] = []
    at = draw.uniform(1, 3)
    while seconds - at > 1:
        make = _filling if draw.random() < 0.75 or seconds - at < LONG_S[0] else _growing_log
        length_s = make(draw, events, at, seconds - at)
        at += length_s + draw.uniform(*CALM_S)
    if not fillers:
        kept = (event for event in events if event.what not in ("fill", "delete"))
        events = [dataclasses.replace(event, for_s=min(event.for_s, HARMLESS_S)) for event in kept]
    return sorted(events, key=lambda event: event.at_s)


def _filling(draw: random.Random, events: list[Event], at: float, most_s: float) -> float:
    """The disk is full for some seconds, and things happen on it; their number."""
    length_s = min(draw.uniform(8, 30) if draw.random() < 0.2 else draw.uniform(1, 8), most_s)

    def some(*whats: str) -> None:
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            events.append(Event(at + draw.uniform(0, length_s), draw.choice(whats), share=draw.random()))

    events.append(Event(at, "fill", length_s, draw.random()))
    some(*VICTIMS, "restart")
    some("delete")
    for _ in range(draw.choice((0, 1, 1, 2))):
        begin = draw.uniform(0, length_s)
        events.append(Event(at + begin, "read", min(draw.uniform(0.5, 15), most_s - begin), draw.random()))
    away_s = draw.uniform(0, length_s)
    _away(events, at + away_s, at + min(away_s + draw.uniform(0.5, 8), most_s))
    return length_s


def _growing_log(draw: random.Random, events: list[Event], at: float, most_s: float) -> float:
    """A reader on each lane for long: their logs can grow until they themselves fill the disk, the vendor's absence with them,
    and afterwards there must be room to bring them into the lanes. The number of seconds."""
    length_s = min(draw.uniform(*LONG_S), most_s)
    events += [Event(at, "read", length_s, share) for share in (0.0, 0.99)]
    away_s = draw.uniform(0, 5)
    _away(events, at + away_s, at + draw.uniform(0.4, 0.9) * length_s)
    if draw.random() < 0.5:
        begin = draw.uniform(0.5, 0.9) * length_s
        events.append(Event(at + begin, "fill", draw.uniform(1, length_s - begin), draw.random()))
    for _ in range(draw.choice((0, 1, 2))):
        events.append(Event(at + draw.uniform(0, length_s), draw.choice((*VICTIMS, "restart")), share=draw.random()))
    return length_s


def _away(events: list[Event], at: float, until: float) -> None:
    events += [Event(at, "closed"), Event(until, "ok")]
