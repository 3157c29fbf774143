"""A stand-in for the vendor, over real HTTP: for the demo and the tests. It follows the API as documented, duplicates included.

It answers 200 and the GIF whatever comes; needs `_k` for a beacon to count; and takes a beacon for a duplicate when kind, person,
name, time, property names and values all match. `GET /received` tells what came, as JSON; `DELETE /received` forgets it.
"""

import argparse
import hashlib
from collections import deque
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
KEPT = 100_000
"""Beacons that are told again; older ones are only counted."""


class Sandbox:
    """What was received, and which of it counts."""

    def __init__(self) -> None:
        self.received: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._seen: set[bytes] = set()
        self.counts = {"requests": 0, "counted": 0, "duplicates": 0, "without_key": 0}

    def record(self, kind: str, method: str, query: str, body: str, headers: dict[str, str]) -> None:
        """Take one request in."""
        pairs = parse_qsl(query, keep_blank_values=True) + parse_qsl(body, keep_blank_values=True)
        params = dict(pairs)
        duplicate = False
        self.counts["requests"] += 1
        if not params.get("_k"):
            self.counts["without_key"] += 1
        else:
            duplicate = self._is_duplicate(kind, params)
            self.counts["duplicates" if duplicate else "counted"] += 1
        self.received.append(
            {
                "kind": kind,
                "method": method,
                "query": query,
                "body": body,
                "params": params,
                "pairs": pairs,
                "headers": headers,
                "duplicate": duplicate,
            }
        )

    def _is_duplicate(self, kind: str, params: dict[str, str]) -> bool:
        """Names ignore case; an alias is the same in either order."""
        if kind == "a":
            facts = sorted((params.get("_p", ""), params.get("_n", "")))
        else:
            facts = sorted(f"{name.lower()}={value.lower() if name == '_n' else value}" for name, value in params.items())
        digest = hashlib.blake2b("\0".join([kind, params["_k"], *facts]).encode("utf-8", "replace"), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def make_app(sandbox: Sandbox) -> Starlette:
    """The vendor's three calls and the report."""

    async def beacon(request: Request) -> Response:
        body = (await request.body()).decode("utf-8", "replace")
        query = request.scope["query_string"].decode("latin-1")
        sandbox.record(request.url.path[-1], request.method, query, body, dict(request.headers))
        return Response(GIF, media_type="image/gif", headers={"cache-control": "no-store"})

    async def received(request: Request) -> Response:
        if request.method == "DELETE":
            sandbox.__init__()  # type: ignore[misc]
        return JSONResponse({**sandbox.counts, "beacons": list(sandbox.received)})

    calls = [Route(f"/{kind}", beacon, methods=["GET", "POST"]) for kind in "esa"]
    return Starlette(routes=[*calls, Route("/received", received, methods=["GET", "DELETE"])])


def main() -> None:
    """`python -m proxy.sandbox --port 9000`"""
    parser = argparse.ArgumentParser(prog="python -m proxy.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=9000, help="port on 127.0.0.1 (default 9000)")
    arguments = parser.parse_args()
    uvicorn.run(make_app(Sandbox()), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
