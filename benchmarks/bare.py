"""The servers to compare with: the same uvicorn, the same GIF, nothing stored. `python -m benchmarks.bare bare|starlette FD`"""

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.cli.child import loop_factory
from proxy.collector.asgi import PIXEL, STORED, Receive, Scope, Send
from proxy.collector.pixel import GIF, GIF_HEADERS

HEADERS = {name.decode(): value.decode() for name, value in GIF_HEADERS}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """As little as ASGI can do."""
    await send(STORED)
    await send(PIXEL)


async def _pixel(request: Request) -> Response:
    dict(request.query_params)
    return Response(GIF, headers=HEADERS)


if __name__ == "__main__":
    app = bare if sys.argv[1] == "bare" else Starlette(routes=[Route("/e", _pixel)])
    options = {"http": "httptools", "lifespan": "off", "log_config": None, "access_log": False, "server_header": False}
    server = uvicorn.Server(uvicorn.Config(app, proxy_headers=False, **options))
    serving = server.serve(sockets=[socket.socket(fileno=int(sys.argv[2]))])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serving)
