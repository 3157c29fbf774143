"""The collector's half: the servers' as long as they answer, else this host's lane. Refused is only what neither takes."""

import contextlib
import time
from pathlib import Path

from msgspec.structs import replace

from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.fallback import mark
from proxy.spool.jetstream.address import parse
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.publisher import UNANSWERED
from proxy.spool.port import SpoolConfig, SpoolRefused
from proxy.spool.sqlite import file
from proxy.spool.sqlite.lane import Lane
from proxy.spool.waiting import Entered, Waiter, wake

WAIT_S = 1.0
"""A hit that the servers have not acknowledged by then goes to the lane: a visitor must not wait for an election."""
REST_S = 1.0
"""Between two hits that try whether servers that hang answer again; all others go to the lane at once."""


class FallbackIntake(Entered):
    """No task and no object for each hit: one that the servers fail is handed over with whoever waits for it."""

    def __init__(self, config: SpoolConfig) -> None:
        """Raises SpoolError where the directory is another spool's, or a package or file is missing."""
        self._next_try = 0.0
        """When servers that hang are to be tried again (monotonic)."""
        directory = Path(config.fallback.partition(":")[2])
        with contextlib.suppress(OSError):  # the lane tells of it
            file.make_directory(directory)
        mark.put(directory, parse(config.url).stream)
        self._lane = Lane(str(directory), config)
        try:
            mark.put(directory, parse(config.url).stream)
            self._engine = JetStreamIntake(
                replace(config, commit_timeout_s=min(config.commit_timeout_s, WAIT_S)), self._take_over
            )
        except BaseException:
            self._lane.close()
            raise

    def enter(self, hit: Hit, waiter: Waiter) -> None:
        """Take the hit, and tell the waiter what became of it. Raises SpoolRefused if neither has taken it."""
        if self._answers():
            with contextlib.suppress(SpoolRefused):  # it has logged why
                self._engine.enter(hit, waiter)
                return
        else:
            self._engine.note(hit.site, "no connection to the spool" if self._engine.away else UNANSWERED)
        self._lane.enter(hit, waiter)

    def drop(self, site: str, outcome: Outcome) -> None:
        (self._engine if self._answers() else self._lane).drop(site, outcome)

    def refuse(self, site: str) -> None:
        (self._engine if self._answers() else self._lane).refuse(site)

    def close(self) -> None:
        """What the servers do not acknowledge any more still reaches the lane."""
        try:
            self._engine.close()
        finally:
            self._lane.close()

    def _answers(self) -> bool:
        """Whether the servers are worth a try. Some counts of the last second before they went wait in memory until they are
        back; all later ones are the lane's.
        """
        return not self._engine.away and (not self._engine.hangs or time.monotonic() >= self._next_try)

    def _take_over(self, entries: list[tuple[Hit, Waiter]], reason: str) -> None:
        self._next_try = time.monotonic() + REST_S
        for hit, waiter in entries:
            try:
                self._lane.enter(hit, waiter)
            except SpoolRefused as refused:
                wake([waiter], SpoolRefused(f"{reason}; {refused}"))
