"""The status page: what an operator sees at one glance, in a browser. `routes()` is all that the admin listener needs of it.

look.py reads the spool about once a second, however many pages are open; words.py says what was read, masked; guard.py decides
who may ask. The page itself is the files beside this one: nothing on it comes from anywhere else, and nothing in it is inline.
"""

import asyncio
import time
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from proxy.admin.page.guard import foreign, strange_host
from proxy.admin.page.look import Look
from proxy.admin.page.words import away, now
from proxy.log import log
from proxy.outcome import Ending, Outcome
from proxy.spool import open_dead_letters
from proxy.spool.port import DeadFilter, SpoolError

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = {
    name: Response((files(__name__) / name).read_bytes(), media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)
    for name in ("page.html", "page.css", "page.js", "chart.js", "icon-ok.svg", "icon-warn.svg", "icon-bad.svg")
}
"""Constant answers."""
REASONS = [outcome.value for outcome in Outcome if outcome.ending is Ending.DEAD]


def html() -> Response:
    """The page, empty: its script asks for what it shows."""
    return FILES["page.html"]


def routes(look: Look) -> list[BaseRoute]:
    """What the page asks for: its files, what it shows, and the replay of dead letters."""
    replaying = asyncio.Lock()

    async def live(request: Request) -> Response:
        if strange := strange_host(request.headers.get("host", "")):
            return _refused(strange)
        reading = await look.latest()
        if look.failure and look.config.url.startswith("nats:"):
            return _json(away(look.failure, look.unready))
        if reading is None:
            return _json({"error": f"the spool cannot be read: {look.failure or 'it does not answer'}"}, 503)
        after, values = request.query_params.get("after", ""), request.query_params.get("values") == "1"
        told = now(reading, int(time.time() * 1000), values=values)
        return _json({**told, "history": look.history(int(after) if after.isdecimal() and len(after) < 16 else -1)})

    async def replay(request: Request) -> Response:
        if refusal := strange_host(request.headers.get("host", "")) or foreign(request.headers):
            return _refused(refusal)
        reason = request.query_params.get("reason", "")
        if reason and reason not in REASONS:
            return _json({"error": f"reason: found {reason[:50]!r}; expected a reason for which letters die"}, 400)
        if replaying.locked():
            return _json({"error": "a replay is under way; wait for its end"}, 409)
        async with replaying:
            try:
                n = await asyncio.to_thread(_replay, look, reason)
            except (SpoolError, OSError) as error:
                return _json({"error": f"nothing, or not all, was replayed: {error}"}, 503)
        log.info("dead letters replayed from the status page", reason=reason or "all", letters=n)
        return _json({"replayed": n})

    async def file(request: Request) -> Response:
        return FILES.get(request.path_params["name"]) or Response(status_code=404, headers=HEADERS)

    return [
        Route("/page/live.json", live),
        Route("/page/replay", replay, methods=["POST"]),
        Route("/page/{name}", file),
    ]


def _replay(look: Look, reason: str) -> int:
    letters = open_dead_letters(look.config)
    return letters.replay(DeadFilter(outcome=reason), time.time_ns() // 1_000_000, lambda more: None)


def _json(told: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(told), status, HEADERS, "application/json")


def _refused(why: str) -> Response:
    return _json({"error": why}, 403)
