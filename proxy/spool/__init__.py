"""Where hits wait. The port is port.py; this is the one place where an adapter is chosen."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from proxy.hit import Hit
from proxy.spool.memory import MemoryPlace
from proxy.spool.place import Place
from proxy.spool.port import DeadLetters, Intake, IntakeStats, Ledger, Outlet, SpoolConfig, Told
from proxy.spool.sqlite.place import SqlitePlace


def _over_nats(config: SpoolConfig) -> Place:
    """Loaded where it is needed: every process starts sooner for it."""
    from proxy.spool.fallback.place import FallbackPlace
    from proxy.spool.jetstream.place import JetStreamPlace

    return FallbackPlace(config) if config.fallback else JetStreamPlace(config)


PLACES: dict[str, Callable[[SpoolConfig], Place]] = {"sqlite": SqlitePlace, "memory": MemoryPlace, "nats": _over_nats}
"""By the scheme of the URL, which the settings have looked at."""


def prepare(config: SpoolConfig) -> None:
    """Make the place where hits will wait. Raises SpoolError if it cannot be used."""
    _place(config).prepare()


def begun(config: SpoolConfig) -> bool:
    """Whether anything was ever stored there. A look from the wrong directory sees an empty spool, not the right one."""
    return _place(config).begun()


def look_into(config: SpoolConfig) -> None:
    """Raises SpoolError where there is a spool, and this user may not see what is in it: it would look empty."""
    _place(config).look_into()


def look_at(config: SpoolConfig) -> None:
    """Raises SpoolError if it is plain already that the place cannot be used. Creates nothing."""
    _place(config).look_at()


def open_intake(config: SpoolConfig) -> Intake:
    """The collector's half of the configured spool. Raises SpoolError for what waiting cannot mend."""
    return _place(config).intake()


def open_outlet(config: SpoolConfig) -> Outlet:
    """The forwarder's half of the configured spool. Raises ForwarderRunning if another forwarder holds it."""
    return _place(config).outlet()


def open_dead_letters(config: SpoolConfig) -> DeadLetters:
    """The operator's half of the configured spool. Raises SpoolError where there is none."""
    return _place(config).dead_letters()


def ledger_of(config: SpoolConfig) -> Ledger:
    """The counts, whether or not anything is running. Raises SpoolError where they cannot be read."""
    return _place(config).ledger()


def some_hits(config: SpoolConfig, most: int) -> list[Hit]:
    """Up to `most` of the hits that wait or are dead, the latest first; none where there is no spool."""
    return _place(config).some_hits(most)


def forwarder_states(config: SpoolConfig) -> list[Told]:
    """What each forwarder published last; those who ended may be left out."""
    return _place(config).forwarder_states()


def forwarder_figures(config: SpoolConfig) -> bytes:
    """What all forwarders have counted; b"" if nothing."""
    return _place(config).forwarder_figures()


def intake_stats(config: SpoolConfig) -> IntakeStats:
    """How the collectors' commits went."""
    return _place(config).intake_stats()


def ledger_off(config: SpoolConfig, most: int) -> int | None:
    """By how many hits the ledger and the spool's content differ; None if there are more than `most` to count."""
    return _place(config).ledger_off(most)


def watching(config: SpoolConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """A socket on which each datagram is a `Tapped` as JSON. Raises SpoolError where the spool shows nothing."""
    return _place(config).watching()


def spool_bytes(config: SpoolConfig) -> int:
    """Bytes that hold something."""
    return _place(config).bytes()


def unready(config: SpoolConfig) -> str:
    """Why the spool cannot take beacons just now; "" if it can. Touches the disk, so it may take as long as the disk does."""
    return _place(config).unready()


def fallback_pending(config: SpoolConfig) -> int:
    """Hits that wait in this host's fallback, running or not; 0 where the spool has none."""
    return _place(config).fallback_pending()


def lane_directory(config: SpoolConfig) -> Path | None:
    """Where this host keeps lanes: the spool's own directory, or its fallback's; None where there is none."""
    scheme, _, place = (config.fallback or config.url).partition(":")
    return Path(place) if scheme == "sqlite" else None


def _place(config: SpoolConfig) -> Place:
    return PLACES[config.url.partition(":")[0]](config)
