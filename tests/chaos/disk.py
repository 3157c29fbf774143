"""The full disk: `serve` on a small file system of its own, which a filler fills to the last block again and again.

While the disk is full, processes are killed, the service is restarted, readers hold the lanes open, files are deleted, and the
vendor comes and goes (schedule.py).
"""

import asyncio
import bisect
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.chaos.driver import Driver
from tests.chaos.laboratory import MIB, Found, Progress, Upstream, child_of, faulty_vendor, settled, verdict
from tests.chaos.schedule import RECOVER_S, VICTIMS, Event, schedule
from tests.chaos.volume import SIZE_MIB, mounted
from tests.conftest import ProxyProcess, free_port

POLL_S = 0.02
"""Between two looks at the file system; `report` and `du` are asked for more rarely."""
RARELY_S = 0.25
SHARE_OF_ROOM = 0.25
"""Of the file system, free: so much is room again, even while a reader still holds a lane's log."""
BALLAST_BYTES = 4 * MIB
"""At most, of the file that is deleted while the filler is at work."""
START_TRIES = 6
DRAIN_S = 120.0
MORE = "&Page=" + "a-page-of-the-shop/" * 24
"""Makes beacons as large as those of pages are."""
BALLAST = "ballast"


def recoveries(back: Sequence[float], gone: Sequence[float], answered_at: Sequence[float], end: float) -> list[float]:
    """For each instant at which room came back: seconds until the next 200, or until room was gone once more, or the end.

    A window shorter than RECOVER_S without a 200 says nothing, and is left out. All in monotonic seconds, in order.
    """
    found = []
    for began in back:
        i = bisect.bisect_right(gone, began)
        until = gone[i] if i < len(gone) else end
        i = bisect.bisect_left(answered_at, began)
        answered = i < len(answered_at) and answered_at[i] <= until
        if answered or until - began >= RECOVER_S:
            found.append((answered_at[i] if answered else until) - began)
    return found


class Service:
    """The proxy, as a service manager would keep it: started again until it answers."""

    def __init__(self, make: Callable[[], ProxyProcess]) -> None:
        self._make = make
        self._starting: asyncio.Future[ProxyProcess] | None = None
        self.proxy: ProxyProcess | None = None
        self.up = False
        self.failed_starts = self.ended_by_itself = self.exit_status = 0

    async def start(self) -> None:
        """Raises RuntimeError if it cannot be had after START_TRIES."""
        for _ in range(START_TRIES):
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._make))
            try:
                self.proxy = await asyncio.shield(self._starting)
            except (AssertionError, pytest.fail.Exception):  # it ended, or did not answer in time
                self.failed_starts += 1
                continue
            self.up = True
            return
        raise RuntimeError(f"the proxy did not start, {START_TRIES} times in turn")

    async def running(self) -> ProxyProcess:
        """The proxy; started again if it ended without being asked to."""
        if self.proxy is None or self.proxy.process.poll() is not None:
            self.ended_by_itself += 1
            self.up = False
            await self.start()
        assert self.proxy is not None
        return self.proxy

    async def kill(self, victim: str, share: float) -> bool:
        """kill -9 of one of VICTIMS; whether there was one."""
        proxy = await self.running()
        if victim == "tree":
            self.up = False
            proxy.kill()
            await self.start()
            return True
        pid = child_of(proxy, victim, share)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pid)

    async def stop(self) -> None:
        """SIGTERM. A status that is not 0, and a stop that comes too late, are kept in `exit_status`."""
        proxy = await self.running()
        self.up = False
        try:
            self.exit_status = await asyncio.to_thread(proxy.stop) or self.exit_status
        except subprocess.TimeoutExpired:
            self.exit_status = -signal.SIGKILL
            proxy.kill()

    async def close(self) -> None:
        """Leave nothing running, not even what is just being started."""
        if self._starting is not None:
            with contextlib.suppress(BaseException):
                self.proxy = await self._starting
        if self.proxy is not None and self.proxy.process.poll() is None:
            self.proxy.kill()


class Programs:
    """The fillers and readers: processes of their own, which end by themselves."""

    def __init__(self, disk: Path, spool: Path) -> None:
        self._disk, self._spool = disk, spool
        self._fillers: list[subprocess.Popen[bytes]] = []
        self._readers: list[subprocess.Popen[bytes]] = []

    async def fill(self, seconds: float, share: float) -> None:
        """A file of some size, to be deleted later, and a filler for the rest. Returns when the disk is full."""
        with contextlib.suppress(OSError), (self._disk / BALLAST).open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, 1 + int(share * BALLAST_BYTES))
        await self._begin(self._fillers, "filler", self._disk / f"filler-{len(self._fillers)}", seconds)

    async def read(self, seconds: float, share: float) -> None:
        """Returns when the transaction is held, or cannot be."""
        await self._begin(self._readers, "reader", self._spool, share, seconds)

    async def _begin(self, kind: list[subprocess.Popen[bytes]], name: str, *arguments: object) -> None:
        """Start one, and wait for the line with which it says that it has begun."""
        kind.append(process := _program(f"tests.chaos.{name}", *map(str, arguments)))
        assert process.stdout is not None
        with process.stdout as said:
            await asyncio.to_thread(said.readline)

    def delete(self, share: float) -> bool:
        """Room comes back in pieces: the file that stands beside the spool, or what the proxy itself holds back."""
        victim = self._disk / BALLAST if share < 0.75 else self._spool / "reserve"
        try:
            victim.unlink()
        except FileNotFoundError:
            return False
        return True

    def filling(self) -> bool:
        return any(process.poll() is None for process in self._fillers)

    def reading(self) -> bool:
        return any(process.poll() is None for process in self._readers)

    def readers(self) -> int:
        """How many held a transaction, of those that are gone."""
        return sum(process.returncode == 0 for process in self._readers)

    def end(self) -> None:
        """SIGTERM, and wait: fillers delete their file."""
        for process in [*self._fillers, *self._readers]:
            if process.poll() is None:
                process.terminate()
            process.wait()
        (self._disk / BALLAST).unlink(missing_ok=True)


def _program(*command: str) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the experiment, which ends it."""
    return subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, start_new_session=True)


class Watch:
    """What can be seen of the file system and the vendor while all that goes on."""

    def __init__(self, disk: Path, spool: Path, programs: Programs, service: Service, driver: Driver, upstream: Upstream) -> None:
        self._disk, self._spool, self._programs, self._service = disk, spool, programs, service
        self._driver, self._upstream = driver, upstream
        self.vendor_well = True
        self.times_full = 0  # each time after there had been room
        self.full_s = self.longest_stall_s = 0.0
        self.most_bytes = 0
        self.gone: list[float] = []
        self.back: list[float] = []
        """When room was gone, and when it was back: no filler, and room, or no reader that could still hold it; and a service."""
        self._had_room = True

    def full(self) -> bool:
        """Whether not one block is free."""
        return os.statvfs(self._disk).f_bavail == 0

    def little(self) -> bool:
        """Whether less is free than what is called room."""
        found = os.statvfs(self._disk)
        return found.f_bavail < SHARE_OF_ROOM * found.f_blocks

    def short(self) -> bool:
        """Whether there is a reason to refuse beacons."""
        return not self._service.up or self._programs.filling() or (self._programs.reading() and self.little())

    async def run(self) -> None:
        """Until cancelled."""
        before = rarely = delivering = time.monotonic()
        delivered = 0
        while True:
            now, full, short = time.monotonic(), self.full(), self.short()
            if short != (len(self.gone) > len(self.back)):
                (self.gone if short else self.back).append(now)
            if not short and not self.little():
                self._had_room = True
            if full:
                self.times_full += self._had_room
                self._had_room = False
                self.full_s += now - before
            before = now
            if now - rarely > RARELY_S:
                rarely = now
                self.most_bytes = max(self.most_bytes, _allocated(self._spool))
                acknowledged = self._upstream.ask("report")["acknowledged"]
                # About: beacons that are delivered though the answer to the visitor was cut off make the rest look smaller.
                if acknowledged != delivered or acknowledged >= len(self._driver.answered) or not self.vendor_well or not full:
                    delivered, delivering = acknowledged, now
                self.longest_stall_s = max(self.longest_stall_s, now - delivering)
            await asyncio.sleep(POLL_S)


def _allocated(directory: Path) -> int:
    """Bytes on disk of all files there, as `du` counts."""
    total = 0
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


class Actions:
    """What is done to all of them, and how often."""

    def __init__(self, upstream: Upstream, service: Service, programs: Programs, watch: Watch) -> None:
        self._upstream, self._service, self._programs, self._watch = upstream, service, programs, watch
        self.victims = dict.fromkeys(VICTIMS, 0)
        self.while_full = self.restarts = self.deletes = 0
        """`while_full`: kills and restarts that met a disk without a free block."""

    async def carry_out(self, event: Event) -> None:
        full = self._watch.full()
        await self._service.running()
        if event.what == "fill":
            await self._programs.fill(event.for_s, event.share)
        elif event.what == "read":
            await self._programs.read(event.for_s, event.share)
        elif event.what == "delete":
            self.deletes += self._programs.delete(event.share)
        elif event.what in ("closed", "ok"):
            self.vendor(event.what)
        elif event.what == "restart":
            await self._service.stop()
            await self._service.start()
            self.restarts += 1
            self.while_full += full
        elif await self._service.kill(event.what, event.share):
            self.victims[event.what] += 1
            self.while_full += full

    def vendor(self, state: str) -> None:
        self._upstream.ask(f"fault {state}")
        self._watch.vendor_well = state == "ok"


async def disk(
    place: Path,
    progress: Progress,
    minutes: float = 10.0,
    rate: float = 400.0,
    seed: int | None = None,
    file_system: str = "",
    fillers: bool = True,
    drain_s: float = DRAIN_S,
    size_mib: int = SIZE_MIB,
    events: Sequence[Event] | None = None,
) -> Found:
    """A schedule of full disks, that of the seed or a given one; then there is room, the vendor is well, and all must drain.

    Raises CannotMount.
    """
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    with mounted(place, file_system, size_mib) as (point, kind):
        async with faulty_vendor() as upstream, contextlib.AsyncExitStack() as ends:
            spool, log, port = point / "spool", place / "serve.log", free_port()
            service = Service(lambda: ProxyProcess(spool, upstream.url, port=port, log=log, durability="disk", workers="2"))
            ends.push_async_callback(service.close)
            programs = Programs(point, spool)
            ends.callback(programs.end)
            await service.start()
            driver = Driver(port, rate, more=MORE)
            watch = Watch(point, spool, programs, service, driver, upstream)
            actions = Actions(upstream, service, programs, watch)
            driver.start()
            watching = asyncio.create_task(watch.run())
            ends.callback(watching.cancel)
            passed, seconds = 0.0, minutes * 60
            for event in [*(events or schedule(seed, seconds, fillers)), Event(seconds, "ok")]:
                progress(min(1.0, event.at_s / seconds), f"{event.what}: {len(driver.answered):,} answered")
                await asyncio.sleep(event.at_s - passed)
                passed = event.at_s  # the clock of the schedule stands still while something is carried out
                await actions.carry_out(event)
            programs.end()
            well = await _answered_again(driver, drain_s)
            await driver.stop()
            ended = time.monotonic()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            progress(1.0, "draining")
            status, unreadable = await _drained(await service.running(), drain_s)
            account = verdict(driver, upstream, status)
            if not unreadable:
                # What the vendor has acknowledged is counted as delivered, or was not yet settled when the time was over.
                more = upstream.ask("report")["acknowledged"] - status["delivered"]
                account["ledger_off_by"] = account["ledger_off_by"] or max(-more, more - status["pending"], 0)
            recovered = recoveries(watch.back, watch.gone, driver.answered_at, ended)
            names = set(upstream.ask("names"))
            await service.stop()
            return {
                "experiment": "disk",
                "seed": seed,
                "minutes": minutes,
                "rate": rate,
                "file_system": kind,
                "disk_full": watch.times_full,
                "disk_full_s": round(watch.full_s, 1),
                "victims": actions.victims,
                "restarts": actions.restarts,
                "kills_and_restarts_while_full": actions.while_full,
                "readers": programs.readers(),
                "deletes": actions.deletes,
                **account,
                "undrained": status["pending"],
                "status_unreadable": unreadable,
                "refusing_in_the_end": not well,
                "refused_yet_delivered": sum(name in names for _, name in driver.refusals),
                "recoveries": len(recovered),
                "recover_s": round(max(recovered, default=0.0), 2),
                "refusing_s": round(_refusing(watch.back, watch.gone, [at for at, _ in driver.refusals], ended), 2),
                "longest_without_delivery_s": round(watch.longest_stall_s, 1),
                "most_spool_bytes": watch.most_bytes,
                "set_aside": len(status["set_aside"]),
                "failed_starts": service.failed_starts,
                "ended_by_itself": service.ended_by_itself,
                "log": _said(log),
                "exit_status": service.exit_status,
            }


async def _drained(proxy: ProxyProcess, patience_s: float) -> tuple[Found, str]:
    """The status once nothing is pending, or when patience is over; and why it cannot be read, if so."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            try:
                return await settled(proxy, max(0.0, deadline - time.monotonic())), ""
            except TimeoutError:
                return await asyncio.to_thread(proxy.status), ""
        except Exception as error:  # of whatever library the spool uses: the disk may still be full
            if time.monotonic() > deadline:
                nothing = {"received": 0, "delivered": 0, "dropped": {}, "dead": 0, "pending": 0, "set_aside": []}
                return nothing, f"{type(error).__name__}: {error}"
        await asyncio.sleep(0.5)


async def _answered_again(driver: Driver, patience_s: float) -> bool:
    """Whether a 200 was answered from now on; looked at for long enough to see refusals that come late, too."""
    before, began = len(driver.answered), time.monotonic()
    while True:
        await asyncio.sleep(POLL_S)
        waited, again = time.monotonic() - began, len(driver.answered) > before
        if (again and waited > RECOVER_S + 1) or waited > patience_s:
            return again


def _refusing(back: Sequence[float], gone: Sequence[float], refused_at: Sequence[float], end: float) -> float:
    """The longest time that some collector still refused after room came back, in seconds."""
    longest = 0.0
    for began in back:
        i = bisect.bisect_right(gone, began)
        last = bisect.bisect_left(refused_at, gone[i] if i < len(gone) else end) - 1
        if last >= 0:
            longest = max(longest, refused_at[last] - began)
    return longest


def _said(log: Path) -> dict[str, int]:
    """How often the proxy logged what, of its warnings and errors."""
    found: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if told["level"] in ("warning", "error", "critical"):
                found[told["event"]] += 1
    return dict(found.most_common())
