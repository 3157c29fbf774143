"""Where hits wait. The port is port.py; this is the one place where an adapter is chosen."""

import contextlib
import socket
from pathlib import Path

from proxy.hit import Hit
from proxy.spool.memory import MemorySpool
from proxy.spool.port import DeadLetters, Intake, IntakeStats, Ledger, Outlet, SpoolConfig, SpoolError
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet, read_state
from proxy.spool.sqlite.survey import (
    audit,
    directory_bytes,
    look_at_directory,
    look_into_directory,
    prepare_directory,
    read_intake_stats,
    read_ledger,
    sample,
    why_unready,
)
from proxy.spool.tap import listening

_MEMORY: dict[str, MemorySpool] = {}


def prepare(config: SpoolConfig) -> None:
    """Make the place where hits will wait. Raises SpoolError if it cannot be used."""
    scheme, place = _split(config)
    if scheme != "memory":
        prepare_directory(place)


def begun(config: SpoolConfig) -> bool:
    """Whether anything was ever stored there. A look from the wrong directory sees an empty spool, not the right one."""
    scheme, place = _split(config)
    return scheme == "memory" or Path(place).exists()


def look_into(config: SpoolConfig) -> None:
    """Raises SpoolError where there is a spool, and this user may not see what is in it: it would look empty."""
    scheme, place = _split(config)
    if scheme != "memory":
        look_into_directory(place)


def look_at(config: SpoolConfig) -> None:
    """Raises SpoolError if it is plain already that the place cannot be used. Creates nothing."""
    scheme, place = _split(config)
    if scheme != "memory":
        look_at_directory(place)


def open_intake(config: SpoolConfig) -> Intake:
    """The collector's half of the configured spool. Raises SpoolError for what waiting cannot mend."""
    scheme, place = _split(config)
    return _memory(place) if scheme == "memory" else Lane(place, config)


def open_outlet(config: SpoolConfig) -> Outlet:
    """The forwarder's half of the configured spool. Raises ForwarderRunning if another forwarder holds it."""
    scheme, place = _split(config)
    return _memory(place) if scheme == "memory" else SqliteOutlet(place)


def open_dead_letters(config: SpoolConfig) -> DeadLetters:
    """The operator's half of the configured spool. Raises SpoolError where there is none."""
    scheme, place = _split(config)
    if scheme == "memory":
        raise SpoolError("a memory spool keeps no dead letters beyond its process")
    return SqliteDeadLetters(place)


def ledger_of(config: SpoolConfig) -> Ledger:
    """The counts, whether or not anything is running."""
    scheme, place = _split(config)
    return _memory(place).ledger() if scheme == "memory" else read_ledger(place)


def some_hits(config: SpoolConfig, most: int) -> list[Hit]:
    """Up to `most` of the hits that wait or are dead, the latest first; none where there is no spool."""
    scheme, place = _split(config)
    return [] if scheme == "memory" else sample(place, most)


def forwarder_state(config: SpoolConfig) -> bytes:
    """What the forwarder published last; b"" if nothing."""
    scheme, place = _split(config)
    return _memory(place).recall() if scheme == "memory" else read_state(place)


def intake_stats(config: SpoolConfig) -> IntakeStats:
    """How the collectors' commits went."""
    scheme, place = _split(config)
    return IntakeStats() if scheme == "memory" else read_intake_stats(place)


def ledger_off(config: SpoolConfig, most: int) -> int | None:
    """By how many hits the ledger and the spool's content differ; None if there are more than `most` to count."""
    scheme, place = _split(config)
    return 0 if scheme == "memory" else audit(place, most)


def watching(config: SpoolConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """A socket on which each datagram is a `Tapped` as JSON. Raises SpoolError where the spool shows nothing."""
    scheme, place = _split(config)
    if scheme == "memory":
        raise SpoolError("a memory spool shows nothing beyond its process")
    return listening(place)


def spool_bytes(config: SpoolConfig) -> int:
    """Bytes that hold something."""
    scheme, place = _split(config)
    return 0 if scheme == "memory" else directory_bytes(place)


def unready(config: SpoolConfig) -> str:
    """Why the spool cannot take beacons just now; "" if it can. Touches the disk, so it may take as long as the disk does."""
    scheme, place = _split(config)
    return "" if scheme == "memory" else why_unready(place, config.max_bytes)


def _split(config: SpoolConfig) -> tuple[str, str]:
    scheme, _, place = config.url.partition(":")
    return scheme, place


def _memory(place: str) -> MemorySpool:
    return _MEMORY.setdefault(place, MemorySpool())
