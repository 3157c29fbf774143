"""The forwarder's half of the embedded spool, over all lanes of the directory. A lane in trouble rests; the others go on."""

import contextlib
import functools
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from proxy.log import Trouble, log
from proxy.spool.peers import Peers
from proxy.spool.port import Claim, ForwarderRunning, Ledger, Settlement, SpoolError, Tapped, Told
from proxy.spool.sqlite import file
from proxy.spool.sqlite.reader import LaneReader
from proxy.spool.sqlite.survey import read_ledger
from proxy.spool.tap import Tap

T = TypeVar("T")

LOOK_S = 1.0
"""Between two looks for lanes that came or went."""
REST_S = 1.0
"""How long a lane in trouble is left alone."""
STATE = "forwarder.json"


class SqliteOutlet:
    """Used from one thread at a time. Raises ForwarderRunning if another forwarder holds the directory."""

    peers: Peers | None = None

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        file.make_directory(self._directory)
        held = file.lock(self._directory / "forwarder.lock")
        if held is None:
            raise ForwarderRunning(f"another forwarder is at work on {self._directory}")
        self._lock = held
        self._tap = Tap(self._directory)
        self._readers: dict[int, LaneReader] = {}
        self._resting: dict[int, float] = {}
        """Lane → when it may be tried again (monotonic)."""
        self._troubles: dict[int, Trouble] = {}
        self._unopened: dict[Path, str] = {}
        self._unmended: set[int] = set()
        """Lanes whose due times were not looked at yet."""
        self._looked = -1e9
        try:
            self._look_for_lanes(time.time_ns() // 1_000_000)
        except SpoolError:
            os.close(held)
            raise

    def claim(self, limit: int, now_ms: int, closed: Collection[str] = ()) -> list[Claim]:
        """As the port says; each lane gets its share."""
        if time.monotonic() - self._looked >= LOOK_S:
            with contextlib.suppress(SpoolError):  # reported; a lane of a newer version came while we run
                self._look_for_lanes(now_ms)
        claims: list[Claim] = []
        readers = [reader for reader in self._readers.values() if self._rested(reader)]
        for turn, reader in enumerate(readers):
            share = -(-(limit - len(claims)) // (len(readers) - turn))
            if share > 0:
                claims += self._guarded(reader, functools.partial(reader.claim, share, now_ms, closed)) or []
        return claims

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """As the port says."""
        now_ms = time.time_ns() // 1_000_000
        by_lane: dict[int, list[Settlement]] = {}
        for settlement in settlements:
            by_lane.setdefault(settlement.claim.ticket.lane, []).append(settlement)
        for lane, some in by_lane.items():
            reader = self._readers.get(lane)
            if reader is not None:  # a lane that is gone for good has nothing to settle
                reader.keep(some)
                self._flush(reader, now_ms)

    def ledger(self) -> Ledger:
        return read_ledger(self._directory)

    def publish(self, state: bytes) -> None:
        with contextlib.suppress(OSError):  # no room for it: it is only for looking at
            file.replace_file(self._directory / STATE, state)
        self._tap.look()
        for reader in list(self._readers.values()):
            self._flush(reader, time.time_ns() // 1_000_000)

    def recall(self) -> bytes:
        return read_state(self._directory)

    def watched(self) -> bool:
        return bool(self._tap.open)

    def show(self, event: Tapped) -> None:
        self._tap.tell(event)

    def close(self) -> None:
        for reader in self._readers.values():
            with contextlib.suppress(sqlite3.Error):  # what cannot be settled is sent again, byte-identical
                reader.flush(time.time_ns() // 1_000_000)
            reader.close()
        self._tap.close()
        os.close(self._lock)

    def _flush(self, reader: LaneReader, now_ms: int) -> None:
        if self._rested(reader):
            self._guarded(reader, functools.partial(reader.flush, now_ms))

    def _rested(self, reader: LaneReader) -> bool:
        return time.monotonic() >= self._resting.get(reader.identity, 0.0)

    def _guarded(self, reader: LaneReader, call: Callable[[], T]) -> T | None:
        """What the call gives. In trouble: None, and the lane rests, or is set aside if it is corrupt."""
        try:
            try:
                found = call()
            except sqlite3.Error as error:
                if not file.is_full(error):
                    raise
                if file.spend_reserve(self._directory):
                    log.warning("the disk is full: the reserve is given up, so that settlements go through")
                reader.checkpoint()
                found = call()
        except sqlite3.Error as error:
            self._in_trouble(reader, error)
            return None
        if self._resting.pop(reader.identity, None) is not None and self._troubles.setdefault(reader.identity, Trouble()).ends():
            log.info("lane works again", lane=str(reader.path))
        return found

    def _in_trouble(self, reader: LaneReader, error: sqlite3.Error) -> None:
        if self._troubles.setdefault(reader.identity, Trouble()).begins():
            log.error("lane in trouble", lane=str(reader.path), reason=str(error))
        self._resting[reader.identity] = time.monotonic() + REST_S
        if file.is_corrupt(error):
            aside = file.set_aside(reader.path)
            log.error("a corrupt lane is set aside", lane=str(reader.path), aside=str(aside))
            self._forget(reader)

    def _forget(self, reader: LaneReader) -> None:
        reader.close()
        self._readers.pop(reader.identity, None)
        self._unmended.discard(reader.identity)
        self._resting.pop(reader.identity, None)
        self._troubles.pop(reader.identity, None)

    def _look_for_lanes(self, now_ms: int) -> None:
        """Open lanes that came, forget those whose name stands for another file now. A name that is gone may come back."""
        self._looked = time.monotonic()
        by_path = {reader.path: reader for reader in self._readers.values()}
        for path in file.lane_files(self._directory):
            reader = by_path.get(path)
            if reader is not None and reader.inode != file.inode(path):
                log.warning("lane was replaced", lane=str(path))
                self._forget(reader)
                reader = None
            if reader is None:
                self._take_up(path, now_ms)
        for reader in list(self._readers.values()):
            if file.inode(reader.path) is None:
                self._resting[reader.identity] = self._looked + REST_S
            if reader.identity in self._unmended and self._rested(reader):
                mend = functools.partial(reader.mend_due_times, now_ms)
                if self._guarded(reader, mend):
                    self._unmended.discard(reader.identity)
        if self._readers:
            with contextlib.suppress(OSError):
                file.keep_reserve(self._directory)

    def _take_up(self, path: Path, now_ms: int) -> None:
        try:
            reader = LaneReader(path)
            self._readers[reader.identity] = reader
            self._unmended.add(reader.identity)
            self._unopened.pop(path, None)
        except (sqlite3.Error, SpoolError) as error:
            if self._unopened.get(path) != str(error):
                log.error("lane cannot be read", lane=str(path), reason=str(error))
                self._unopened[path] = str(error)
            if file.is_corrupt(error):
                log.error("a corrupt lane is set aside", lane=str(path), aside=str(file.set_aside(path)))
            if isinstance(error, SpoolError):
                raise


def read_state(directory: str | Path) -> bytes:
    """What the forwarder published last; b"" if nothing."""
    try:
        return (Path(directory) / STATE).read_bytes()
    except OSError:
        return b""


def read_told(directory: str | Path) -> list[Told]:
    """The same, and when that was."""
    try:
        age_ms = int((time.time() - (Path(directory) / STATE).stat().st_mtime) * 1000)
    except OSError:
        return []
    return [Told(age_ms, read_state(directory))]
