"""The tap over NATS: whoever watches says so once a second, and what is told is published to all who listen. Nobody waits.

What is published goes to no stream: a message that nobody listens to is gone.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names
from proxy.spool.port import Tapped

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

SAY_S = 1.0
FORGET_S = 3.5 * SAY_S
"""A watcher of whom nothing was heard for so long is gone."""


class Tap:
    """The telling end."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._heard = float("-inf")

    async def subscribe(self, client: "Client") -> None:
        await client.subscribe(self._names.watchers, cb=self._hear)

    def watched(self) -> bool:
        return time.monotonic() - self._heard < FORGET_S

    def show_from(self, link: Link, event: Tapped) -> None:
        """From any thread. What cannot be told just now is lost."""
        with contextlib.suppress(RuntimeError):
            link.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._tell(link, event)))

    async def _tell(self, link: Link, event: Tapped) -> None:
        if (client := link.client()) is not None:
            with contextlib.suppress(Exception):
                await client.publish(self._names.tap, msgspec.json.encode(event))

    async def _hear(self, _: "Msg") -> None:
        self._heard = time.monotonic()


@contextlib.contextmanager
def listening(link: Link, names: Names) -> Iterator[socket.socket]:
    """A socket on which `Tapped` arrives as JSON, a datagram each. The link is closed in the end. Raises SpoolError."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    there.setblocking(False)
    ended = threading.Event()

    async def pass_on(msg: "Msg") -> None:
        with contextlib.suppress(OSError):  # he does not keep up
            there.send(msg.data)

    async def listen(client: "Client") -> None:
        await client.subscribe(names.tap, cb=pass_on)

    async def say() -> None:
        if (client := link.client()) is not None:
            with contextlib.suppress(Exception):
                await client.publish(names.watchers, b"")

    def keep_saying() -> None:
        while not ended.wait(SAY_S):
            with contextlib.suppress(Exception):
                link.run(say(), SAY_S)

    client = link.client()
    if client is None:
        raise link.unreachable()
    link.run(listen(client), SAY_S * 2)
    link.run(say(), SAY_S)
    threading.Thread(target=keep_saying, name="spool-watcher", daemon=True).start()
    try:
        yield here
    finally:
        ended.set()
        link.close()
        here.close()
        there.close()
