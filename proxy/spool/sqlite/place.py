"""The embedded spool as a place: its directory."""

import contextlib
import socket
from pathlib import Path

from proxy.hit import Hit
from proxy.spool.port import DeadLetters, Intake, IntakeStats, Ledger, Outlet, SpoolConfig, Told
from proxy.spool.sqlite import survey
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet, read_state, read_told
from proxy.spool.tap import listening


class SqlitePlace:
    """See Place."""

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config
        self._directory = config.url.partition(":")[2]
        self._disk = Disk(Path(self._directory), config.max_bytes)

    def prepare(self) -> None:
        survey.prepare_directory(self._directory)

    def begun(self) -> bool:
        return Path(self._directory).exists()

    def look_into(self) -> None:
        survey.look_into_directory(self._directory)

    def look_at(self) -> None:
        survey.look_at_directory(self._directory)

    def intake(self) -> Intake:
        return Lane(self._directory, self._config)

    def outlet(self) -> Outlet:
        return SqliteOutlet(self._directory, self._config)

    def dead_letters(self) -> DeadLetters:
        return SqliteDeadLetters(self._directory, self._disk)

    def ledger(self) -> Ledger:
        return survey.read_ledger(self._directory)

    def some_hits(self, most: int) -> list[Hit]:
        return survey.sample(self._directory, most)

    def forwarder_states(self) -> list[Told]:
        return read_told(self._directory)

    def forwarder_figures(self) -> bytes:
        return read_state(self._directory)

    def intake_stats(self) -> IntakeStats:
        return survey.read_intake_stats(self._directory)

    def ledger_off(self, most: int) -> int | None:
        return survey.audit(self._directory, most)

    def watching(self) -> contextlib.AbstractContextManager[socket.socket]:
        return listening(self._directory)

    def bytes(self) -> int:
        return self._disk.used_bytes()

    def unready(self) -> str:
        return survey.why_unready(self._directory, self._config.max_bytes)

    def fallback_pending(self) -> int:
        return 0
