"""`demo --cluster`: brokers, collectors and forwarders behind nginx; one after the other is killed, and nothing is lost."""

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from starlette.applications import Starlette

from proxy.cli.child import loop_factory
from proxy.cli.cluster import ports
from proxy.cli.cluster.brokers import Brokers
from proxy.cli.cluster.brokers import program as nats
from proxy.cli.cluster.cluster import Cluster
from proxy.cli.cluster.front import PREFIX, Front
from proxy.cli.cluster.front import program as nginx
from proxy.cli.cluster.hosts import environment
from proxy.cli.cluster.load import NUMBER, Load
from proxy.cli.cluster.part import Part
from proxy.cli.cluster.table import Account, Scene
from proxy.cli.shop import SCRIPT, routes_behind
from proxy.cli.supervisor import bind
from proxy.collector.server import make_server
from proxy.sandbox import Sandbox, make_app
from proxy.spool.port import SpoolError

PER_SECOND = 40.0
LOOK_S = 0.5
AWAY_S, REST_S = 3.0, 4.0
"""How long a part stays away, and how long there is calm after that."""
DRAIN_S = 75.0
"""What a killed forwarder had in hand is given to another after a minute."""
LINES = 50
"""The latest events that are remembered."""


class Vendor(Sandbox):
    """Remembers the load's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: set[str] = set()

    def record(self, kind: str, method: str, query: str, body: str, headers: dict[str, str]) -> None:
        super().record(kind, method, query, body, headers)
        self.numbers.add(self.received[-1]["params"].get(NUMBER, ""))


class Demo:
    """The stage, what happens on it, and who tells."""

    def __init__(self, console: Console, cluster: Cluster, front: Front, vendor: Vendor, load: Load) -> None:
        self._console, self._cluster, self._front, self._vendor, self._load = console, cluster, front, vendor, load
        self.account = Account()
        self._events: list[str] = []
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def tell(self, text: str) -> None:
        """One line, with the time since the beginning."""
        line = f"{time.monotonic() - self._began:6.1f} s  {text}"
        self._events = [*self._events, line][-LINES:]
        if self._live is None:
            self._console.print(line, soft_wrap=True)
        self._draw()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._live or contextlib.nullcontext():
            yield
        if self._live is None:
            self._console.print(self.account.table())

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(Scene(self._events, [*self._cluster.parts, self._front], self.account), refresh=True)

    async def look(self) -> None:
        """Keep the account, until cancelled."""
        while True:
            await self._look_once()
            await asyncio.sleep(LOOK_S)

    async def _look_once(self) -> None:
        account, load, vendor = self.account, self._load, self._vendor
        account.sent, account.answered, account.refused = load.sent, len(load.answered), load.refused + load.broken
        account.counted, account.copies = vendor.counts["counted"], vendor.counts["duplicates"]
        account.kept = self._front.kept_lines()
        with contextlib.suppress(SpoolError):  # the brokers elect a leader, or are away: what was known stays
            status = await asyncio.to_thread(self._cluster.status)
            account.stored, account.pending, account.delivered = status["received"], status["pending"], status["delivered"]
        leader = await self._cluster.brokers.leader(1.0)
        account.leader = leader.name if leader else ""
        self._draw()

    async def kill_in_turn(self) -> None:
        """One of each kind, again and again, until cancelled."""
        cluster = self._cluster
        for turn in itertools.count():
            collector, forwarder = cluster.collectors[turn % 2], cluster.forwarders[turn % 2]
            await self._kill(collector, "the other one takes all beacons")
            await self._kill(forwarder, "the other one has what it held after a minute")
            leader = await cluster.brokers.leader() or cluster.brokers.all[0]
            await self._kill(leader, "it led: the others elect a leader in some seconds")
            await cluster.wait(cluster.brokers.healthy, "the brokers")

    async def _kill(self, part: Part, what_now: str) -> None:
        part.kill()
        self.tell(f"kill -9 {part.name}: {what_now}")
        await asyncio.sleep(AWAY_S)
        part.start()
        self.tell(f"{part.name} is started again")
        await asyncio.sleep(REST_S)

    async def settle(self) -> None:
        """At the end: whoever is away comes back, what nginx kept is taken in, and what was promised is counted."""
        self._load.stop()
        for part in self._cluster.parts:
            if not part.alive:
                part.start()
        self.tell("no more beacons are sent; the rest is delivered")
        deadline = time.monotonic() + DRAIN_S
        with contextlib.suppress(TimeoutError):
            await self._cluster.wait(self._cluster.brokers.healthy, "the brokers", DRAIN_S)
        if lines := self._front.kept_lines():
            self.tell(f"beacon-proxy ingest takes in {lines:,} that nginx kept")
            self.tell(await asyncio.to_thread(self._ingest))
        while True:
            await self._look_once()
            missing = len(self._load.answered - self._vendor.numbers)
            if not (missing or self.account.pending) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        self.account.missing = missing
        await self._look_once()
        self.tell(self.account.verdict())

    def _ingest(self) -> str:
        """What it says."""
        environ = environment(spool=self._cluster.brokers.spool, fallback="", prefix=PREFIX)
        command = [sys.executable, "-m", "proxy", "ingest", str(self._front.kept)]
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True, timeout=60)
        return " ".join(f"{done.stdout} {done.stderr}".split())


def run(port: int, seconds: float | None) -> int:
    """Until Ctrl-C or SIGTERM, or for so long; the exit status. Raises Missing, and SettingsError if the port is taken."""
    for program in (nginx, nats):  # before anything is started
        program()
    bind("127.0.0.1", port).close()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_demo(port, seconds))


async def _demo(port: int, seconds: float | None) -> int:
    console, stopping = Console(highlight=False), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    vendor = Vendor()
    with tempfile.TemporaryDirectory(prefix="beacon-proxy-demo-", ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        async with _served(make_app(vendor), 0) as upstream, _served(Starlette(routes=routes_behind(PREFIX)), 0) as shop:
            console.print("Three brokers, two collectors, two forwarders are coming up …")
            url = f"http://127.0.0.1:{upstream}"
            async with Cluster(place, url, Brokers(place), prefix=PREFIX, script=SCRIPT, shutdown_grace=3) as cluster:
                front_port = port or ports.free(1)[0]
                front = Front(place, front_port, [host.port for host in cluster.collectors], shop)
                try:
                    front.start()
                    await cluster.wait(lambda: front.ready() or not front.alive, "nginx")
                    if not front.alive:
                        console.print(f"nginx did not start: {front.log.read_text()}")
                        return 1
                    load = Load(front_port, PREFIX, PER_SECOND)
                    demo = Demo(console, cluster, front, vendor, load)
                    console.print(f"[bold]The shop, through nginx:[/] http://127.0.0.1:{front_port}/")
                    pages = "  ".join(host.status_page for host in cluster.collectors)
                    console.print(f"[bold]The status page, of either collector's host:[/] {pages}")
                    console.print("[dim]Ctrl-C ends the demo.[/]")
                    await _play(demo, load, stopping, seconds)
                finally:
                    front.kill()
    console.print("Ended; nothing is left running.")
    return 0 if demo.account.kept_promise else 1


async def _play(demo: Demo, load: Load, stopping: asyncio.Event, seconds: float | None) -> None:
    with demo.shown():
        sending = asyncio.create_task(load.run())
        looking, killing = asyncio.create_task(demo.look()), asyncio.create_task(demo.kill_in_turn())
        try:
            stopper = asyncio.create_task(stopping.wait())
            await asyncio.wait([stopper, sending, looking, killing], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            await _ended(killing)
            await _ended(looking)
            await demo.settle()
        finally:
            for task in (stopper, sending, looking, killing):
                task.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def _served(app: Starlette, port: int) -> AsyncIterator[int]:
    """The application on a free port of this process; that port."""
    listener, server = bind("127.0.0.1", port), make_server(app, 1)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.stop()
        await task
