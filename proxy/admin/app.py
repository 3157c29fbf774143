"""The admin listener's application: `/healthz`, `/readyz`, `/metrics`, and the ledger at `/`. It holds no API key."""

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.admin.config import AdminConfig
from proxy.admin.metrics import exposition, look, no_answer
from proxy.admin.summary import read
from proxy.spool import unready

PATIENCE_S = 2.0
"""A disk that takes longer to answer is not ready."""
SCRAPE_PATIENCE_S = 8.0
"""Prometheus waits for 10 s unless told otherwise: before that it shall be told that the disk hangs."""


def make_app(config: AdminConfig) -> Starlette:
    """The application."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        try:
            reason = await asyncio.wait_for(asyncio.to_thread(unready, config.spool), PATIENCE_S)
        except TimeoutError:
            reason = f"the disk did not answer within {PATIENCE_S:g} s"
        return PlainTextResponse(f"{reason}\n", 503) if reason else PlainTextResponse("ready\n")

    async def status(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(read, config.spool))

    async def metrics(request: Request) -> Response:
        try:
            reading = await asyncio.wait_for(asyncio.to_thread(look, config), SCRAPE_PATIENCE_S)
        except TimeoutError:
            reading = no_answer(config)
        return Response(exposition(reading), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), Route("/", status)]
    )
