"""A site as its visitors meet it: pages, the script, a real collector, forwarder and vendor, in a thread. The line can fail.

All of it is on 127.0.0.1; `localhost` is the other host. `counted` tells what reached the vendor, `sent` what browsers asked for.
"""

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any, NamedTuple

from conftest import API_KEY, free_port, wait_for
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from proxy.admin.summary import read
from proxy.cli.child import loop_factory
from proxy.collector.asgi import CollectorApp, Message, Receive, Scope, Send
from proxy.collector.config import CollectorConfig, ConsentRules, ScriptRules
from proxy.collector.server import make_server
from proxy.collector.serving import script_of
from proxy.enrich.config import EnrichConfig
from proxy.forward.config import ForwarderConfig, Site
from proxy.forward.forwarder import Forwarder
from proxy.sandbox import Sandbox, make_app
from proxy.spool import open_intake, open_outlet
from proxy.spool.port import SpoolConfig

PREFIX, NAME = "/amber-fjord", "willow"
ADDRESS = f"{PREFIX}/{NAME}.js"

SNIPPET = """<script type="text/javascript">var _kmq = _kmq || []; var _kmk = _kmk || 'KEY';
function _kms(u){ setTimeout(function(){ var d = document, f = d.getElementsByTagName('script')[0], s = d.createElement('script');
 s.type = 'text/javascript'; s.async = true; s.src = u; f.parentNode.insertBefore(s, f); }, 1); }
_kms('ADDRESS'); _kms('ADDRESS');</script>""".replace("ADDRESS", ADDRESS)
"""The vendor's, with only the script's addresses changed."""


class Asked(NamedTuple):
    """A request as the browser made it."""

    method: str
    path: str
    query: str
    body: str
    headers: dict[str, str]


class Line:
    """What lies between the browsers and the server: it relays, holds back, refuses, or loses every answer."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.port = free_port()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))  # by number: so it stays ours while it does not listen (Linux)
        self.loses_answers = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def up(self) -> None:
        self._socket.listen(128)
        self._server = await asyncio.start_server(self._relay, sock=self._socket.dup())

    async def down(self) -> None:
        """Connections are refused from now on, and broken where there are any. The port stays ours."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket.shutdown(socket.SHUT_RDWR)
        for writer in self._ends:
            writer.transport.abort()

    async def close(self) -> None:
        await self.down()
        self._socket.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            self._ends.add(back)
            with contextlib.suppress(OSError):
                await asyncio.gather(self._copy(reader, back, False), self._copy(there, writer, True))
            back.transport.abort()
            self._ends.discard(back)
        writer.transport.abort()
        self._ends.discard(writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        while piece := await reader.read(65_536):
            if answers and self.loses_answers:
                raise ConnectionResetError
            if not answers and not self.flowing.is_set():
                await self.flowing.wait()
                if reader.at_eof() or reader.exception():
                    raise ConnectionResetError  # the browser has given it up
            writer.write(piece)
            await writer.drain()
        if not answers:
            raise ConnectionResetError  # the browser is gone
        writer.close()


class TrackedSite:
    """One visitor's world, from page to vendor. `gpc`: whether global privacy control is honoured; `rules` are the script's."""

    def __init__(self, directory: Path, gpc: bool = True, **rules: Any) -> None:
        self.spool = SpoolConfig(f"sqlite:{directory / 'spool'}")
        script, consent = ScriptRules((NAME,), **rules), ConsentRules(gpc=gpc)
        self.config = CollectorConfig(self.spool, prefixes=(PREFIX,), script=script, consent=consent)
        self.integrity = script_of(self.config, "default").integrity
        self.vendor = Sandbox()
        self.requests: list[Asked] = []
        self.expected = 0
        """Beacons that were waited for."""
        self.resends = False
        """Whether the vendor may get a beacon twice: that is what the test is about."""
        self._pages: dict[str, tuple[str, dict[str, str]]] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracked site")
        self._thread.start()
        self._ready.wait(20)
        self.url = f"http://127.0.0.1:{self.line.port}"
        self.other_url = f"http://localhost:{self.other_line.port}"

    # What a test says

    def page(self, path: str, body: str = "", calls: str = "", head: str = SNIPPET, csp: str = "") -> str:
        """Publish a page; its address. `calls`: what the site calls before the script is there."""
        before = f"<script>var _kmq = _kmq || []; {calls}</script>" if calls else ""
        html = f"<!doctype html><html><head><meta charset=utf-8>{before}{head}</head><body>{body}</body></html>"
        self._pages[path] = (html, {"content-security-policy": csp} if csp else {})
        return self.url + path

    def file(self, path: str, javascript: str) -> None:
        """Publish a script of the site's own."""
        self._pages[path] = (javascript, {"content-type": "text/javascript"})

    def break_line(self) -> None:
        self._do(self.line.down())

    def mend_line(self) -> None:
        self.line.loses_answers = False
        self._loop.call_soon_threadsafe(self.line.flowing.set)
        self._do(self.line.up() if self.line._server is None else asyncio.sleep(0))

    def hold_back(self) -> None:
        """Requests wait on the way, until the line is mended; what the browser gives up meanwhile never arrives."""
        self._loop.call_soon_threadsafe(self.line.flowing.clear)

    def lose_answers(self) -> None:
        """Requests still reach the server; no answer reaches the browser."""
        self.line.loses_answers = True

    # What a test asks

    def sent(self) -> list[Asked]:
        """The requests to the beacon endpoints, in order."""
        return [asked for asked in self.requests if asked.path in self._endpoints]

    def counted(self) -> list[dict[str, str]]:
        """What the vendor counted, each with its kind under "kind"; resent ones once."""
        return [{"kind": one["kind"], **one["params"]} for one in list(self.vendor.received) if not one["duplicate"]]

    def wait(self, n: int) -> list[dict[str, str]]:
        """What was counted, once it is so many in all."""
        self.expected = n
        wait_for(lambda: len(self.counted()) >= n, f"{n} beacons at the vendor, where there are {self.counted()}")
        return self.settled()

    def settled(self) -> list[dict[str, str]]:
        """What was counted, once everything received is delivered."""
        wait_for(lambda: not read(self.spool)["pending"], "the spool to be empty")
        return self.counted()

    # How it runs

    def _do(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with _serving(make_app(self.vendor)) as vendor, _serving(self._public()) as public:
            sites = {"default": Site(f"http://127.0.0.1:{vendor}", API_KEY)}
            enrich = EnrichConfig(enrichers=("page", "campaign"))
            forwarder = Forwarder(ForwarderConfig(self.spool, sites, enrich=enrich, shutdown_grace_s=1), open_outlet(self.spool))
            forwarding = asyncio.create_task(forwarder.run())
            self.line = Line(public)
            self.other_line = Line(public)
            await self.line.up()
            await self.other_line.up()
            self._ready.set()
            await self._stopping.wait()
            await self.line.close()
            await self.other_line.close()
            forwarder.stop()
            await forwarding
        self._intake.close()

    def _public(self) -> Any:
        self._intake = open_intake(self.spool)
        app = CollectorApp(self.config, self._intake, [Route("/{path:path}", self._page)])
        self._endpoints = app.collector.paths

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            body = bytearray()

            async def reading() -> Message:
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            await app(scope, reading, send)
            query = scope["query_string"].decode("latin-1")
            self.requests.append(Asked(scope["method"], scope["path"], query, body.decode("utf-8", "replace"), headers))

        return noted

    async def _page(self, request: Request) -> Response:
        text, headers = self._pages.get(request.url.path, ("", {}))
        return HTMLResponse(text, 200 if text or request.url.path == "/favicon.ico" else 404, headers)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(20)


@contextlib.asynccontextmanager
async def _serving(app: Any) -> Any:
    """The application on a free port of 127.0.0.1, which is given."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(app, 3)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.stop()
        await task
