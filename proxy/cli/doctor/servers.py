"""The servers of a nats:// spool: does each answer and let us in, and are the streams what they should be? Nothing is changed."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from proxy.cli.doctor.finding import Finding, ok, warning, wrong
from proxy.cli.doctor.installation import Installation
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.address import PORT, parse
from proxy.spool.jetstream.link import OPEN_S, Link
from proxy.spool.jetstream.names import Names
from proxy.spool.port import SpoolError

if TYPE_CHECKING:
    from nats.aio.client import Client

CONNECT_S = 1.5
PATIENCE_S = 4.0
"""For all that is asked about the streams."""
REPORT = "look at `nats server report jetstream` and `nats stream report`"


def look(installation: Installation) -> Iterator[Finding]:
    address = parse(installation.spool.url)
    with ExitStack() as opened:
        troubles = {server: _unreachable(server) for server in address.servers}
        links = []
        for server in [server for server, trouble in troubles.items() if not trouble]:
            links.append(Link(replace(address, servers=(server,)), "beacon-proxy doctor", _nothing, quiet=True))
            opened.callback(links[-1].close)
        deadline = time.monotonic() + OPEN_S
        troubles |= {link.address.servers[0]: _trouble(link, deadline) for link in links}
        answering = [link for link in links if link.client() is not None]
        say = warning if answering else wrong
        for trouble in filter(None, troubles.values()):
            yield say(trouble, "start that server, or name the right ones and the right login (setting spool)")
        if not answering:
            installation.away = "the spool's servers do not answer, see there"
            return
        yield ok(f"{len(answering)} of {len(troubles)} servers answer and let us in")
        client = answering[0].client()
        if client is None:
            return
        try:
            yield from answering[0].ask(_streams(client, Names(address.stream), address.replicas), PATIENCE_S)
        except SpoolError as error:
            installation.away = "nobody answers for the streams, see there"
            said = str(error).removeprefix("spool: ")
            yield wrong(f"nobody answers for the streams ({said}): a majority of the servers must be there", REPORT)


async def _nothing(client: "Client") -> None:
    """There is nothing to subscribe to."""


def _unreachable(server: str) -> str:
    """Why there is nobody at that address; "" if there is somebody."""
    parts = urlsplit(server)
    try:
        socket.create_connection((parts.hostname or "", parts.port or PORT), CONNECT_S).close()
    except OSError as error:
        return f"{parts.netloc}: {error.strerror or error}"
    return ""


def _trouble(link: Link, deadline: float) -> str:
    """Why there is no connection by then; "" if there is one."""
    try:
        link.wait_open(max(0.0, deadline - time.monotonic()))
    except SpoolError as refused:
        return str(refused).removeprefix("spool: ")
    return link.trouble


async def _streams(client: "Client", names: Names, replicas: int) -> list[Finding]:
    there = await api.ask_all(client, "STREAM.NAMES", "streams", {"subject": f"{names.base}.>"})
    if not there:
        return [wrong(f"there are no streams {names.base}_… yet", "start `beacon-proxy serve`, or mend stream= (setting spool)")]
    expected = {config["name"]: config for config in streams.common_streams(names, replicas)}
    found = [
        wrong(
            f"stream {name} is gone, with what was in it",
            "who needs it makes it anew; find out who deletes streams",
        )
        for name in expected.keys() - set(there)
    ]
    wanted = [expected.get(name) or streams.hits_stream(names, names.site_of(name), replicas) for name in there]
    for some in await asyncio.gather(*(_stream(client, config) for config in wanted)):
        found += some
    return found or [ok(f"its {len(there)} streams are as they should be, replicas: {replicas}")]


async def _stream(client: "Client", config: dict[str, Any]) -> list[Finding]:
    """What is wrong with one that is there."""
    name = config["name"]
    try:
        found = await api.ask(client, f"STREAM.INFO.{name}", patience_s=streams.SILENT_S)
        streams.compare(config, found["config"])
    except SpoolError as differs:
        said, _, mend = str(differs).removeprefix("spool: ").partition("; ")
        return [wrong(said, mend)]
    except Exception as error:  # TimeoutError, most of all
        return [wrong(f"stream {name} does not answer ({error or type(error).__name__}): it has no leader, or hangs", REPORT)]
    peers = (found.get("cluster") or {}).get("replicas") or ()
    behind = [peer["name"] for peer in peers if peer.get("offline") or not peer.get("current")]
    return [warning(f"stream {name} is not up to date on {', '.join(behind)}", REPORT)] if behind else []
