"""Where hits wait. The adapters are chosen here and nowhere else."""

from proxy.spool.memory import MemorySpool
from proxy.spool.port import Intake, Ledger, Outlet, SpoolConfig
from proxy.spool.sqlite import Lane, SqliteOutlet, read_ledger, why_unready

_MEMORY: dict[str, MemorySpool] = {}


def open_intake(config: SpoolConfig) -> Intake:
    """The collector's half of the configured spool."""
    scheme, _, place = config.url.partition(":")
    if scheme == "memory":
        return _MEMORY.setdefault(place, MemorySpool())
    return Lane(place, durability=config.durability, max_bytes=config.max_bytes)


def open_outlet(config: SpoolConfig) -> Outlet:
    """The forwarder's half of the configured spool. Raises ForwarderRunning if another forwarder holds it."""
    scheme, _, place = config.url.partition(":")
    if scheme == "memory":
        return _MEMORY.setdefault(place, MemorySpool())
    return SqliteOutlet(place)


def ledger_of(config: SpoolConfig) -> Ledger:
    """The counts, whether or not anything is running."""
    scheme, _, place = config.url.partition(":")
    if scheme == "memory":
        return _MEMORY.setdefault(place, MemorySpool()).ledger()
    return read_ledger(place)


def unready(config: SpoolConfig) -> str:
    """Why the spool cannot take beacons just now; "" if it can. Touches the disk, so it may take as long as the disk does."""
    scheme, _, place = config.url.partition(":")
    return "" if scheme == "memory" else why_unready(place, config.max_bytes)
