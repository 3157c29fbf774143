"""`proxy.asgi:app`: the collector as an ASGI application, for any ASGI server or mounted in another application.

Settings come from the environment (and the file BEACON_PROXY_CONFIG names) when the application is first used. The spool is
opened at the lifespan's start, or, where a mount swallows lifespan events, at the first beacon. Delivery: run
`beacon-proxy forward` beside it, or set `embedded_forwarder`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from proxy import settings
from proxy.collector.asgi import CollectorApp, Receive, Send
from proxy.forward.forwarder import Forwarder
from proxy.log import configure
from proxy.spool import open_outlet
from proxy.spool.embedded import EmbeddedIntake


class Application:
    """The collector, its spool and, when asked, a forwarder as a task."""

    def __init__(self) -> None:
        self._app: CollectorApp | None = None
        self._intake = EmbeddedIntake(lambda: self.settings().spool_config())
        self._settings: settings.Settings | None = None

    def settings(self) -> settings.Settings:
        """Loaded once. Raises SettingsError."""
        if self._settings is None:
            self._settings = settings.load()
            configure(self._settings.log_level, self._settings.log_format)
        return self._settings

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Opens the spool and runs the embedded forwarder. Pass it to (or enter it in) the lifespan of a mounting application."""
        self._intake()
        forwarder: Forwarder | None = None
        task: asyncio.Task[None] | None = None
        if self.settings().embedded_forwarder:
            config = self.settings().forwarder()
            forwarder = Forwarder(config, open_outlet(config.spool))
            task = asyncio.create_task(forwarder.run())
        try:
            yield
        finally:
            if forwarder is not None and task is not None:
                forwarder.stop()
                await task
            self._intake.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._on_lifespan(receive, send)
            return
        if self._app is None:
            self._app = CollectorApp(self.settings().collector(), self._intake)
        await self._app(scope, receive, send)

    async def _on_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


app = Application()
lifespan = app.lifespan
