"""What can be asked of a configured spool before it is opened, and from outside: one such place for each kind of URL."""

import contextlib
import socket
from typing import Protocol

from proxy.hit import Hit
from proxy.spool.port import DeadLetters, Intake, IntakeStats, Ledger, Outlet, Told


class Place(Protocol):
    """Where hits wait. Each raises SpoolError where that cannot be done, and says what to do."""

    def prepare(self) -> None:
        """Make it, if need be."""

    def begun(self) -> bool:
        """Whether anything was ever stored there."""

    def look_into(self) -> None:
        """Raises SpoolError where there is a spool, and this user may not see what is in it."""

    def look_at(self) -> None:
        """Raises SpoolError if it is plain already that it cannot be used. Creates nothing."""

    def intake(self) -> Intake:
        """The collector's half."""

    def outlet(self) -> Outlet:
        """The forwarder's half."""

    def dead_letters(self) -> DeadLetters:
        """The operator's half."""

    def ledger(self) -> Ledger:
        """The counts."""

    def some_hits(self, most: int) -> list[Hit]:
        """Up to so many of those that wait or are dead; none where there is no spool."""

    def forwarder_states(self) -> list[Told]:
        """What each forwarder published last; those who ended may be left out."""

    def forwarder_figures(self) -> bytes:
        """What forwarders count on from (Outlet.recall)."""

    def intake_stats(self) -> IntakeStats:
        """How the collectors' commits went."""

    def ledger_off(self, most: int) -> int | None:
        """By how many hits ledger and content differ; None if there are more than `most` to count."""

    def watching(self) -> contextlib.AbstractContextManager[socket.socket]:
        """A socket on which each datagram is a `Tapped` as JSON."""

    def bytes(self) -> int:
        """Bytes that hold something."""

    def unready(self) -> str:
        """Why it cannot take beacons just now; "" if it can."""

    def fallback_pending(self) -> int:
        """Hits that wait in this host's fallback; 0 where the spool has none."""
