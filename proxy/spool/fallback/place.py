"""A spool with a fallback, as a place: the servers', with this host's lanes added."""

import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.log import log
from proxy.spool.fallback import mark
from proxy.spool.fallback.book import book_of
from proxy.spool.fallback.intake import FallbackIntake
from proxy.spool.jetstream.place import JetStreamPlace
from proxy.spool.port import Intake, IntakeStats, Ledger, SpoolConfig, SpoolError, beacons_wait
from proxy.spool.sqlite import survey
from proxy.spool.sqlite.disk import Disk

if TYPE_CHECKING:
    from nats.aio.client import Client

T = TypeVar("T")


class FallbackPlace(JetStreamPlace):
    """See Place. What other hosts' fallbacks hold is not seen from here: they move it as soon as the servers are back, and a
    figure of theirs, a few seconds old, would count twice what has arrived meanwhile.
    """

    patience_s = 2.0

    def __init__(self, config: SpoolConfig) -> None:
        super().__init__(config)
        self._directory = config.fallback.partition(":")[2]

    def prepare(self) -> None:
        super().look_at()  # a missing package or file is told at the start, before anything is made
        survey.prepare_directory(self._directory, "fallback")
        mark.put(Path(self._directory), self._address.stream)
        Disk(
            Path(self._directory), self._config.max_bytes
        ).keep_reserve()  # without it the lane would pass for a full one until it is first used
        try:
            super().prepare()
        except SpoolError as error:  # whatever it is, beacons have a place meanwhile
            log.warning("the spool is not ready yet", reason=str(error))

    def look_at(self) -> None:
        super().look_at()
        survey.look_at_directory(self._directory, "fallback")
        mark.look(Path(self._directory), self._address.stream)

    def intake(self) -> Intake:
        return FallbackIntake(self._config)

    def ledger(self) -> Ledger:
        return book_of(self._config.url, self._directory).read(super().ledger, self._lanes)

    def intake_stats(self) -> IntakeStats:
        total = super().intake_stats()
        total.add(survey.read_intake_stats(self._directory))
        return total

    def unready(self) -> str:
        """Of the servers only where the lanes take nothing: that they are away is what the lanes are for."""
        lanes = survey.why_unready(self._directory, self._config.max_bytes)
        servers = super().unready() if lanes else ""
        return f"{servers}; fallback: {lanes}" if servers else ""

    def fallback_pending(self) -> int:
        return self._lanes().pending

    def _lanes(self) -> Ledger:
        return survey.read_ledger(self._directory)

    def _ask(self, call: Callable[["Client"], Coroutine[Any, Any, T]], *patience_s: float) -> T:
        try:
            return super()._ask(call, *patience_s)
        except SpoolError as error:
            waits = ""
            with contextlib.suppress(SpoolError, OSError):  # lanes that cannot be read: nothing is said of them
                if n := self.fallback_pending():
                    waits = f"; {beacons_wait(n)} in {self._config.fallback} meanwhile"
            raise type(error)(f"{error}{waits}") from None
