"""Brings what waits in the lanes of this host into the spool, oldest first, while the spool's servers answer.

One at a time for a directory, by the lock that a forwarder of such a directory holds. A row is deleted once its publication is
acknowledged, so a mover may be killed at any instant. Between two batches it rests for as long as the last one took: at most half
of what the servers can take is taken from fresh beacons. Rows that cannot be moved, because they are too large or their site's
stream is not to be had or has no room, are put behind all others.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy.log import Trouble, log
from proxy.spool.fallback import mark
from proxy.spool.fallback.transfer import DROPPED, LaneTransfer
from proxy.spool.jetstream import streams
from proxy.spool.jetstream.address import parse
from proxy.spool.jetstream.endings import counting
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.login import login
from proxy.spool.jetstream.names import BY_COLLECTOR, Names
from proxy.spool.jetstream.publisher import Publisher, lasting
from proxy.spool.jetstream.refusal import for_want_of_room
from proxy.spool.jetstream.shelf import Shelf
from proxy.spool.port import SpoolConfig, SpoolError
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.disk import Disk

LOOK_S = 0.5
"""Between two looks whether there is anything to move, and two tries after one that failed."""
ROOM_S = 5.0
"""Between two looks whether the spool has room; so long it rests when the servers have none."""
PATIENCE_S = 3.0
"""For the acknowledgements of a batch."""
REST_S = 1.0
"""The longest rest between two batches."""
PASS_OVER_S = 0.25
"""How long rows that cannot be moved just now are passed over in one turn."""
HELD_S = 10.0
"""A lock that another has for longer is told of, once."""
STUCK_S = 30.0
"""A turn that takes longer never ends."""
FILE, ROWS, COUNTS = "file", "rows", "counts"
"""What can be stuck of a lane."""


class Mover:
    """`run` in a thread, `stop` from any. Raises SpoolError where the package or a file is missing, or the directory is another
    spool's.
    """

    def __init__(self, config: SpoolConfig, among_others: bool = False) -> None:
        """`among_others`: that another has the directory is as it should be."""
        address = self._address = parse(config.url)
        login(address)
        self._directory = Path(config.fallback.partition(":")[2])
        mark.look(self._directory, address.stream)
        self._max_bytes = config.max_bytes
        self._disk = Disk(self._directory, config.max_bytes)
        self._names = Names(address.stream)
        self._publisher, self._sizes = Publisher(), streams.Sizes(self._names)
        self._shelf = Shelf(self._names, address.replicas, self._publisher)
        self._lanes: dict[Path, LaneTransfer] = {}
        self._stopping = threading.Event()
        self._trouble = Trouble()
        self._stuck: dict[tuple[Path, str], str] = {}
        """Lane and what of it (its file, its rows, its counts) → why it could not be moved when it was last tried."""
        self._began_to_wait = float("inf") if among_others else None
        """For the directory's lock (monotonic); infinite once that was told."""
        self._moved = 0
        """Since the lanes were empty."""
        self._room_looked, self._has_room = float("-inf"), True
        self._refused = False
        """Whether the servers had no room for something in this turn."""
        self.turned = time.monotonic()
        """When it last began a turn (monotonic)."""
        self._link: Link
        """Once the directory is ours: who waits for it costs the servers nothing."""

    def stop(self) -> None:
        """End after the batch under way."""
        self._stopping.set()

    def run(self) -> None:
        """Until stopped."""
        held: int | None = None
        try:
            while not self._stopping.is_set():
                self.turned = began = time.monotonic()
                held = held if held is not None else self._hold()
                moved = self._turn() if held is not None else 0
                self._stopping.wait(min(time.monotonic() - began, REST_S) if moved else LOOK_S)
        finally:
            for lane in self._lanes.values():
                lane.close()
            if held is not None:
                self._link.close()
                _let_go(held)

    def _hold(self) -> int | None:
        """The directory, once it is there and nobody else has it. It is not made here: where none is, nothing fell back."""
        path = self._directory / "forwarder.lock"
        try:
            held = file.lock(path)
        except OSError:
            return None
        if held is None:
            now = time.monotonic()
            self._began_to_wait = now if self._began_to_wait is None else self._began_to_wait
            if now - self._began_to_wait >= HELD_S:
                log.warning("the fallback is held by another process, which is to move it", lock=str(path))
                self._began_to_wait = float("inf")
            return None
        try:
            mark.put(self._directory, self._names.base)
            self._link = Link(self._address, "beacon-proxy mover", self._publisher.subscribe, quiet=True, patient=True)
        except SpoolError as error:
            _let_go(held)
            self._tell(str(error))
            return None
        return held

    def _turn(self) -> int:
        """A batch of each lane; how many rows and counts were moved."""
        if self._link.client() is None:
            return 0
        moved, self._refused, full = 0, False, False
        paths = file.lane_files(self._directory)
        self._stuck = {(path, what): why for (path, what), why in self._stuck.items() if path in paths}
        for path in paths:
            opened = file.inode(path)
            try:
                lane = self._lane(path)
                opened = lane.inode
                if not lane.waits():
                    self._stuck.pop((path, ROWS), None)
                    self._stuck.pop((path, COUNTS), None)
                elif self._room():
                    moved += self._move(lane) + self._move_counts(lane)
                else:
                    full = True
                self._stuck.pop((path, FILE), None)
            except (database.Error, OSError, SpoolError) as error:
                self._stuck[path, FILE] = f"{path}: {error}"
                self._forget(path)
                if database.is_corrupt(error):
                    log.error("a corrupt lane is set aside", lane=str(path), aside=str(file.set_aside(path, opened)))
        if paths:
            with contextlib.suppress(OSError):
                self._disk.keep_reserve()
        if self._refused and not moved:
            self._room_looked, self._has_room = time.monotonic(), False
        self._tell(next(iter(self._stuck.values()), f"the spool holds max_bytes ({self._max_bytes})" if full else ""))
        self._moved += moved
        if not moved and self._moved:
            log.info("moved from the fallback into the spool", beacons=self._moved)
            self._moved = 0
        return moved

    def _lane(self, path: Path) -> LaneTransfer:
        lane = self._lanes.get(path)
        if lane is not None and lane.inode != file.inode(path):
            self._forget(path)
            lane = None
        if lane is None:
            mark.look(self._directory, self._names.base)  # as long as there was none, another spool may have taken it
            lane = self._lanes[path] = LaneTransfer(path, self._disk)
        return lane

    def _forget(self, path: Path) -> None:
        if (lane := self._lanes.pop(path, None)) is not None:
            lane.close()

    def _move(self, lane: LaneTransfer) -> int:
        """A batch of which something can be moved; those before it are passed over. How many rows were moved."""
        began, first = time.monotonic(), True
        while rows := lane.begin():
            if not first and (lane.went_round(rows[0]) or time.monotonic() - began > PASS_OVER_S or self._stopping.is_set()):
                break
            first = False
            batch, ids = [row.hit for row in rows], [row.message for row in rows]
            errors = self._on_link(self._shelf.put(self._link, batch, ids, PATIENCE_S), len(rows))
            moved = [row for row, error in zip(rows, errors, strict=True) if not error]
            self._note(lane, ROWS, errors)
            if not moved and not any(map(lasting, errors)) and not self._answers():
                break  # it is not for the sake of one of them
            self._refused = self._refused or any(map(for_want_of_room, errors))
            lane.end(moved, [row for row, error in zip(rows, errors, strict=True) if error])
            if lane.has_retried(rows):
                self._stuck.pop((lane.path, ROWS), None)
            if moved:
                return len(moved)
        return 0

    def _answers(self) -> bool:
        """Whether the server that we are connected to is alive."""
        if (client := self._link.client()) is None:
            return False
        try:
            self._link.run(client.flush(1), 2.0)
        except Exception:
            return False
        return True

    def _move_counts(self, lane: LaneTransfer) -> int:
        counts = lane.begin_counts()
        if not counts:
            return 0
        messages = [
            counting(self._names, count.site, BY_COLLECTOR * (count.name in DROPPED) + count.name, count.message, count.n)
            for count in counts
        ]
        errors = self._on_link(self._publisher.publish(self._link, messages, PATIENCE_S), len(counts))
        moved = [count for count, error in zip(counts, errors, strict=True) if not error]
        lane.end_counts(moved)
        if not any(errors):
            self._stuck.pop((lane.path, COUNTS), None)
        self._note(lane, COUNTS, errors)
        return len(moved)

    def _on_link(self, call: Coroutine[Any, Any, list[str]], size: int) -> list[str]:
        """The errors that the call gives; in trouble the same for all."""
        try:
            errors = self._link.run(call, PATIENCE_S + 1.0)
        except Exception as error:
            errors = [str(error) or type(error).__name__] * size
        return errors

    def _room(self) -> bool:
        """Whether the spool holds less than max_bytes; what was known last, if nobody says."""
        if time.monotonic() - self._room_looked >= ROOM_S and (client := self._link.client()) is not None:
            self._room_looked = time.monotonic()
            with contextlib.suppress(Exception):
                self._has_room = self._link.run(self._sizes.read(client), PATIENCE_S) < self._max_bytes
        return self._has_room

    def _note(self, lane: LaneTransfer, what: str, errors: Sequence[str]) -> None:
        if reason := next(filter(None, errors), ""):
            self._stuck[lane.path, what] = reason

    def _tell(self, reason: str) -> None:
        """At the end of a turn: log once why something cannot be moved, and once ("") that all of it can."""
        if reason:
            if self._trouble.begins():
                log.warning("the fallback cannot be emptied yet", reason=reason)
        elif self._trouble.ends():
            log.info("the fallback is being emptied")


def _let_go(lock: int) -> None:
    """Of a lock; also where a process that was forked meanwhile has its descriptor too."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


@contextlib.contextmanager
def moving(config: SpoolConfig, among_others: bool = False) -> Iterator[None]:
    """A mover in a thread of this process meanwhile, if the spool has a fallback."""
    if not config.fallback:
        yield
        return
    mover = Mover(config, among_others)
    thread = threading.Thread(target=mover.run, name="mover", daemon=True)
    thread.start()
    try:
        yield
    finally:
        mover.stop()
        thread.join(PATIENCE_S + 2.0)
