"""`demo`: sandbox upstream, collector, forwarder and status page in one process, with a temporary spool, told live."""

import asyncio
import contextlib
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, unquote, urlsplit

from rich.console import Console
from rich.text import Text

from proxy.admin.app import make_app as make_admin
from proxy.admin.config import AdminConfig
from proxy.admin.page.look import Look
from proxy.cli.child import loop_factory
from proxy.cli.shop import ROUTES, SCRIPT
from proxy.cli.supervisor import bind
from proxy.collector.asgi import CollectorApp
from proxy.collector.config import CollectorConfig, ScriptRules
from proxy.collector.server import make_server
from proxy.forward.config import ForwarderConfig, Site
from proxy.forward.forwarder import Attempted, Forwarder
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.sandbox import Sandbox, make_app
from proxy.spool import open_intake, open_outlet
from proxy.spool.port import SpoolConfig

DEMO_KEY = "demo-key-0123456789abcdef"
COLOURS = {"received": "cyan", "stored": "yellow", "delivered": "green", "dropped": "magenta", "refused": "red", "retry": "red"}
REMEMBERED = 1000


class Teller:
    """Prints one line for each step of each beacon, numbered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._numbers: dict[Hit, tuple[int, float]] = {}
        self._count = 0

    def collected(self, step: str, hit: Hit) -> None:
        if step == "received":
            self._count += 1
            self._numbers[hit] = (self._count, time.perf_counter())
            while len(self._numbers) > REMEMBERED:
                del self._numbers[next(iter(self._numbers))]
            self._line(step, hit, f"/{hit.kind} {_plain(hit.query or hit.body)}")
        else:
            took = (time.perf_counter() - self._numbers[hit][1]) * 1000 if hit in self._numbers else 0
            self._line(
                step, hit, f"on disk after {took:.1f} ms, then the GIF was answered" if step == "stored" else "answered 503"
            )

    def attempted(self, event: Attempted) -> None:
        outcome = getattr(event.verdict, "outcome", None)
        step = "delivered" if outcome is Outcome.DELIVERED else "retry" if outcome is None else str(outcome)
        sent = event.request.body.decode() if event.request.body else urlsplit(event.request.url).query
        self._line(step, event.hit, f"{_plain(sent.encode())}   ({event.answer} in {event.took_ms:.1f} ms)")

    def _line(self, step: str, hit: Hit, text: str) -> None:
        number = self._numbers.get(hit, (0, 0))[0]
        line = Text(time.strftime("%H:%M:%S "), style="dim")
        line.append(f"#{number:<4}", style="bold")
        line.append(f"{step:<10}", style=COLOURS.get(step, "magenta"))
        line.append(text, style="default")
        self._console.print(line, soft_wrap=True)


def _plain(query: bytes) -> str:
    """Readable and harmless on a terminal."""
    pairs = parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True)
    text = "  ".join(f"{unquote(name)}={value}" for name, value in pairs)
    return "".join(c if c.isprintable() else "�" for c in text)[:300]


def run(port: int) -> int:
    """Until Ctrl-C or SIGTERM; the exit status."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner, bind("127.0.0.1", port) as listener:
        return runner.run(_demo(listener))


async def _demo(listener: socket.socket) -> int:
    console = Console(highlight=False)
    teller = Teller(console)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with tempfile.TemporaryDirectory(prefix="beacon-proxy-demo-") as directory:
        spool = SpoolConfig(f"sqlite:{directory}")
        look = Look(spool)
        async with _vendor() as upstream, look.kept():
            intake = open_intake(spool)
            config = ForwarderConfig(spool=spool, sites={"default": Site(upstream, DEMO_KEY)}, shutdown_grace_s=1.5)
            forwarder = Forwarder(config, open_outlet(spool), teller.attempted)
            collecting = CollectorConfig(spool=spool, script=ScriptRules((SCRIPT,), ("visited_site",)))
            collector = make_server(CollectorApp(collecting, intake, ROUTES, teller.collected), 3)
            admin, admin_listener = make_server(make_admin(AdminConfig(spool), look), 3), bind("127.0.0.1", 0)
            tasks = [
                asyncio.create_task(forwarder.run()),
                asyncio.create_task(collector.serve(sockets=[listener])),
                asyncio.create_task(admin.serve(sockets=[admin_listener])),
            ]
            host, port = listener.getsockname()[:2]
            console.print(f"[bold]Open http://{host}:{port}/[/] and watch its beacons here.")
            console.print(f"[bold]The status page:[/] http://127.0.0.1:{admin_listener.getsockname()[1]}/")
            console.print(f"[dim]The stand-in for the vendor: {upstream}/received tells what it got. Ctrl-C ends the demo.[/]")
            stopper = asyncio.create_task(stopping.wait())
            await asyncio.wait([*tasks, stopper], return_when=asyncio.FIRST_COMPLETED)
            forwarder.stop()
            collector.stop()
            admin.stop()
            await asyncio.gather(*tasks)
            intake.close()
    console.print("Ended; nothing is left running." if stopping.is_set() else "Ended early.")
    return 0 if stopping.is_set() else 1


@contextlib.asynccontextmanager
async def _vendor() -> AsyncIterator[str]:
    """The sandbox upstream on a free port; its base URL."""
    listener = bind("127.0.0.1", 0)
    vendor = make_server(make_app(Sandbox()), 1)
    task = asyncio.create_task(vendor.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        vendor.stop()
        await task
