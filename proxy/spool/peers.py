"""The port's part for forwarders of which several are at work on one spool. A spool of which only one can be has none of it."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from proxy.spool.claim import Claim


class Left(NamedTuple):
    """What another forwarder has left for us."""

    who: str
    mark: int
    """Another one each time it leaves something."""
    words: bytes


class Peers(Protocol):
    """Used from the outlet's thread. Like the outlet, it does not raise for what may pass."""

    me: str
    """Of all forwarders there ever were, this one."""

    def exchange(self, words: bytes) -> list[Left] | None:
        """Leave our words; then, and not before they are stored, read the last ones of all others. None: not just now, though
        the words may be there.
        """

    crowded_out: bool
    """Whether our last words were not stored since the spool has no room for them."""

    def look(self) -> list[Left] | None:
        """Only read what all others left last. None: not just now."""

    def forget(self, gone: Left) -> None:
        """It is gone, and what it left can go; but for what it left since then."""

    def leave(self) -> None:
        """We are gone: nothing of ours is in flight."""

    def amend(self, change: Callable[[bytes], bytes]) -> bool:
        """Replace what all forwarders keep together (Outlet.recall) by what `change` makes of it. False: another did at the
        same time, or it cannot be done just now; nothing has changed (unless a failing server says so and has done it).
        `change` is called in another thread.
        """

    def give_back(self, claims: Sequence[Claim], sites: Collection[str]) -> None:
        """Let others have those claims, for which no attempt was begun, and what waits here of those sites."""
