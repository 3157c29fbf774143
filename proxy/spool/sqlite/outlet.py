"""The forwarder's half of the embedded spool, over all lanes of the directory. A lane in trouble rests; the others go on."""

import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from proxy.log import Trouble, log
from proxy.spool.peers import Peers
from proxy.spool.port import Claim, ForwarderRunning, Ledger, Settlement, SpoolConfig, SpoolError, Tapped, Told, Wanted
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.reader import LaneReader, SameNumber
from proxy.spool.sqlite.survey import read_ledger
from proxy.spool.tap import Tap

T = TypeVar("T")

LOOK_S = 1.0
"""Between two looks for lanes that came or went."""
REST_S = 1.0
"""How long a lane in trouble is left alone."""
SHRINK_S = 10.0
"""Between two looks for room that can be given back."""
STATE = "forwarder.json"
LOCK = "forwarder.lock"


class SqliteOutlet:
    """Used from one thread at a time. Raises ForwarderRunning if another forwarder has the directory, or a copy of its lanes."""

    peers: Peers | None = None

    def __init__(self, directory: str | Path, config: SpoolConfig | None = None) -> None:
        self._directory = Path(directory)
        self._disk = Disk(self._directory, (config or SpoolConfig("")).max_bytes)
        file.make_directory(self._directory)
        self._lock: int | None = self._hold()
        if self._lock is None:
            raise ForwarderRunning(f"another forwarder is at work on {self._directory}")
        self._tap = Tap(self._directory)
        self._readers: dict[int, LaneReader] = {}
        """By LaneReader.opened."""
        self._resting: dict[int, float] = {}
        """Lane → when it may be tried again (monotonic)."""
        self._troubles: dict[int, Trouble] = {}
        self._unopened: dict[Path, Exception] = {}
        """Lanes that cannot be taken up, and why."""
        self._unmended: set[int] = set()
        """Lanes whose due times were not looked at yet."""
        self._replaced = Trouble()
        self._looked = self._shrunk = -1e9
        self._turn = 0
        self._look_for_lanes(time.time_ns() // 1_000_000)
        copies = [error for error in self._unopened.values() if isinstance(error, SameNumber)]
        if copies and not self._readers:
            self.close()
            raise ForwarderRunning(str(copies[0]))

    def claim(self, limit: int, now_ms: int, wanted: Mapping[str, Wanted] = {}) -> list[Claim]:
        """As the port says; each lane gets its share, and another one is the first each time."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._look_for_lanes(now_ms)
        claims: list[Claim] = []
        readers = [reader for reader in self._readers.values() if self._rested(reader)]
        self._turn += 1
        first = self._turn % max(1, len(readers))
        for turn, reader in enumerate(readers[first:] + readers[:first]):
            share = -(-limit // (len(readers) - turn))
            found = self._guarded(reader, functools.partial(reader.claim, share, now_ms, wanted)) or []
            fresh, retries = Counter[str](), Counter[str]()
            for claim in found:
                (retries if claim.failed else fresh)[claim.hit.site] += 1
            wanted = {site: Wanted(max(0, n - fresh[site]), max(0, again - retries[site])) for site, (n, again) in wanted.items()}
            limit -= max(fresh.total(), retries.total())
            claims += found
        if not claims and time.monotonic() - self._shrunk >= SHRINK_S:
            self._give_back_room()
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
            with contextlib.suppress(database.Error, OSError):  # what cannot be settled is sent again, byte-identical
                reader.flush(time.time_ns() // 1_000_000)
            reader.close()
        self._tap.close()
        self._let_go()

    def _hold(self) -> int | None:
        return file.lock(self._directory / LOCK)

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _flush(self, reader: LaneReader, now_ms: int) -> None:
        if self._rested(reader) and reader.has_unsettled:
            self._guarded(reader, functools.partial(reader.flush, now_ms))

    def _rested(self, reader: LaneReader) -> bool:
        return time.monotonic() >= self._resting.get(reader.opened, 0.0)

    def _guarded(self, reader: LaneReader, call: Callable[[], T], proves: bool = True) -> T | None:
        """What the call gives. In trouble: None, and the lane rests, or is set aside if it is corrupt. `proves`: that it succeeds
        shows that the lane works, since it reads or writes beacons."""
        try:
            found = self._disk.settle(call, reader.db)
        except (database.Error, OSError) as error:
            self._in_trouble(reader, error)
            return None
        if proves and self._resting.pop(reader.opened, None) is not None and self._troubles[reader.opened].ends():
            log.info("lane works again", lane=str(reader.path))
        return found

    def _in_trouble(self, reader: LaneReader, error: Exception) -> None:
        if self._troubles[reader.opened].begins():
            reason = self._disk.stuck_reason() if self._disk.is_full(error) else str(error)
            log.error("lane in trouble", lane=str(reader.path), reason=reason)
        self._resting[reader.opened] = time.monotonic() + REST_S
        if database.is_corrupt(error):
            aside = file.set_aside(reader.path, reader.inode)
            log.error("a corrupt lane is set aside", lane=str(reader.path), aside=str(aside))
            self._forget(reader)

    def _forget(self, reader: LaneReader) -> None:
        reader.close()
        self._readers.pop(reader.opened, None)
        self._unmended.discard(reader.opened)
        self._resting.pop(reader.opened, None)
        self._troubles.pop(reader.opened, None)

    def _look_for_lanes(self, now_ms: int) -> None:
        """Open lanes that came, forget those whose name stands for another file now. A name that is gone may come back."""
        self._looked = time.monotonic()
        if not self._is_ours():
            return
        by_path = {reader.path: reader for reader in self._readers.values()}
        for path in file.lane_files(self._directory):
            reader = by_path.get(path)
            if reader is not None and reader.inode != file.inode(path):
                log.warning("lane was replaced", lane=str(path))
                self._forget(reader)
                reader = None
            if reader is None:
                for other in list(self._readers.values()):  # the file bears another name now
                    if other.inode == file.inode(path) and file.inode(other.path) != other.inode:
                        self._forget(other)
                self._take_up(path)
        for reader in list(self._readers.values()):
            if file.inode(reader.path) is None:
                self._resting[reader.opened] = self._looked + REST_S
            if self._rested(reader):
                mend = functools.partial(reader.mend_due_times, now_ms)
                if reader.opened in self._unmended and self._guarded(reader, mend, proves=False):
                    self._unmended.discard(reader.opened)
                self._guarded(reader, reader.shorten_log, proves=False)
        if self._readers:
            with contextlib.suppress(OSError):
                self._disk.keep_reserve()
                self._disk.foresee()

    def _is_ours(self) -> bool:
        """Whether our lock is that of the directory as it stands there now. One that took its place is locked anew; until that
        succeeds nothing is claimed, since another forwarder has it. While there is none, the old one may come back."""
        here = file.inode(self._directory / LOCK)
        if self._lock is not None:
            held = os.fstat(self._lock)
            if here == (held.st_dev, held.st_ino) or not self._directory.exists():
                return True
            for reader in list(self._readers.values()):
                self._forget(reader)
            self._let_go()
        with contextlib.suppress(OSError):
            self._lock = self._hold()
        if self._lock is None:
            if self._replaced.begins():
                log.error("the spool's directory was replaced, and another forwarder has it", spool=str(self._directory))
            return False
        self._replaced.ends()
        return True

    def _give_back_room(self) -> None:
        self._shrunk = time.monotonic()
        for reader in list(self._readers.values()):
            if self._rested(reader):
                self._guarded(reader, reader.give_back_room, proves=False)

    def _take_up(self, path: Path) -> None:
        """One that cannot be taken up keeps none of the others from it."""
        opened = file.inode(path)
        try:
            reader = self._disk.settle(lambda: LaneReader(path, self._disk))
        except (database.Error, OSError, SpoolError) as error:
            if str(self._unopened.get(path)) != str(error):
                log.error("lane cannot be read", lane=str(path), reason=str(error))
            self._unopened[path] = error
            if database.is_corrupt(error):
                log.error("a corrupt lane is set aside", lane=str(path), aside=str(file.set_aside(path, opened)))
            return
        self._readers[reader.opened] = reader
        self._troubles[reader.opened] = Trouble()
        self._unmended.add(reader.opened)
        self._unopened.pop(path, None)


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
