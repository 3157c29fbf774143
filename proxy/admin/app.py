"""The admin listener's application: `/healthz`, `/readyz`, `/metrics`, and the status at `/`. It holds no API key."""

import asyncio
import contextlib

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.admin import page, summary
from proxy.admin.config import AdminConfig
from proxy.admin.page.look import Look
from proxy.spool import fallback_pending, unready
from proxy.spool.port import SpoolError, beacons_wait

PATIENCE_S = 2.0
"""A disk, or a server, that takes longer to answer is not ready."""
SCRAPE_PATIENCE_S = 8.0
"""Prometheus waits for 10 s unless told otherwise: before that it shall be told that the disk hangs."""


def make_app(config: AdminConfig, look: Look) -> Starlette:
    """The application. `look` is what the status page shows; whoever runs the application has it read meanwhile."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        try:
            reason = await asyncio.wait_for(asyncio.to_thread(unready, config.spool), PATIENCE_S)
        except TimeoutError:
            servers = config.spool.url.startswith("nats:") and not config.spool.fallback
            reason = f"{'the spool servers' if servers else 'the disk'} did not answer within {PATIENCE_S:g} s"
        if reason:
            return PlainTextResponse(f"{reason}\n", 503)
        waits = 0
        with contextlib.suppress(SpoolError, OSError):  # lanes that cannot be read: nothing is said of them
            waits = await asyncio.to_thread(fallback_pending, config.spool)
        return PlainTextResponse(f"ready; {beacons_wait(waits)} in {config.spool.fallback}\n" if waits else "ready\n")

    async def status(request: Request) -> Response:
        """A browser gets the page, a script the numbers."""
        if request.url.path == "/" and "text/html" in request.headers.get("accept", ""):
            return page.html()
        headers = {"cache-control": "no-store", "vary": "accept"}
        try:
            return JSONResponse(await asyncio.to_thread(summary.status, config.spool), headers=headers)
        except (SpoolError, OSError) as error:
            return JSONResponse({"error": f"the spool cannot be read: {error}"}, 503, headers)

    async def metrics(request: Request) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST

        from proxy.admin import metrics as prometheus  # a tenth of the process' start, for those alone who scrape

        try:
            seen = await asyncio.wait_for(asyncio.to_thread(prometheus.look, config), SCRAPE_PATIENCE_S)
        except TimeoutError:
            seen = prometheus.no_answer(config)
        return Response(prometheus.exposition(seen), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/status.json", status),
            Route("/", status),
            *page.routes(look),
        ]
    )
