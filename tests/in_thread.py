"""A collector and a forwarder in a thread of the test's own process: for tests of what is answered, stored and delivered, by
whatever process. The sockets are real, and so is all the code but that of the command and its processes.
"""

import asyncio
import socket
import threading
from typing import Any

from proxy import settings
from proxy.admin.summary import read
from proxy.cli.child import loop_factory
from proxy.collector.asgi import CollectorApp
from proxy.collector.express import Express
from proxy.collector.server import make_server
from proxy.forward.forwarder import Forwarder
from proxy.spool import open_intake, open_outlet, prepare


class InThread:
    """As `ProxyProcess`, by the settings of its environment; without a command line, a log and an admin listener."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._settings = settings.load(None, environ)
        self._spool = self._settings.spool_config()
        self._listener = socket.create_server(("127.0.0.1", int(environ.get("BEACON_PROXY_PORT", "0"))))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        prepare(self._spool)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy in a thread")
        self._thread.start()
        assert self._ready.wait(20)

    def status(self) -> dict[str, Any]:
        return read(self._spool)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(20)

    kill = stop

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        intake = open_intake(self._spool)
        app = CollectorApp(self._settings.collector(), intake)
        server = make_server(app, 1, Express(app, intake))
        forwarder = Forwarder(self._settings.forwarder(), open_outlet(self._spool))
        tasks = [asyncio.create_task(server.serve(sockets=[self._listener])), asyncio.create_task(forwarder.run())]
        self._ready.set()
        await self._stopping.wait()
        server.stop()
        forwarder.stop()
        await asyncio.gather(*tasks)
        intake.close()
