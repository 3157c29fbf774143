"""One connection to the servers, on an event loop in a thread of its own. It comes back by itself."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from random import random
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.log import Trouble, log
from proxy.spool.jetstream.address import LOGINS, Address
from proxy.spool.jetstream.login import login
from proxy.spool.port import SpoolError

if TYPE_CHECKING:
    from nats.aio.client import Client

T = TypeVar("T")

CONNECT_S = 2
"""For one server to answer."""
RECONNECT_S = 0.25
"""Between two tries at the same server."""
PING_S = 5
"""A connection on which two of these go unanswered is given up."""
MOVE_S = 10.0
"""Between two moves to another server because this one does not answer: an election may need that long."""
OPEN_S = 3.0
"""How long whoever opens a link waits for its first connection."""


NO_ANSWER = "the servers are connected and do not answer in time: a stream has no leader just now, or most of them are away"


class ServersAway(SpoolError):
    """No server is there, or none answers just now: waiting may mend it."""


class Link:
    """`began` is called with each new client, before anybody else gets it: to subscribe."""

    def __init__(
        self,
        address: Address,
        name: str,
        began: Callable[["Client"], Awaitable[None]],
        quiet: bool = False,
        patient: bool = False,
    ) -> None:
        """`quiet`: whoever uses it tells of its troubles. `patient`: a login that is refused at first is tried again, too. Raises
        SpoolError where the package or a file is missing.
        """
        self._options = login(address)
        self.address = address
        self.trouble = "not connected yet"
        """Why there is no connection; "" while there is one."""
        self.down_since: float | None = float("-inf")
        """Since when (monotonic); None while there is a connection."""
        self._denied, self._denied_at = "", float("-inf")
        """What the server last said that this user may not do, and when (monotonic); it answers no request of that kind."""
        self.generation = 0
        """How often it was connected: what was sent in an earlier one may not have arrived."""
        self._moved, self._shunned = float("-inf"), ""
        """When we last went to another server, and away from which."""
        self._at = ""
        """The server that we are, or were last, connected to."""
        self._name, self._quiet, self._patient = name, quiet, patient
        self._began = began
        self._login_refused = ""
        self._closing = False
        self._told_of = Trouble()
        self._client: Client | None = None
        self._closed = asyncio.Event()
        self._known = threading.Event()
        """Connected, or refused for good."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name=name, daemon=True)
        self._thread.start()
        self._keeper = asyncio.run_coroutine_threadsafe(self._keep(), self.loop)

    def wait_open(self, patience_s: float = OPEN_S) -> bool:
        """Whether there is a connection by then. Raises SpoolError for a login that is refused."""
        self._known.wait(patience_s)
        if self._login_refused:
            reason = self._login_refused
            self.close()
            raise SpoolError(reason)
        if self.trouble:
            self._note(self.trouble)
        return not self.trouble

    def client(self) -> "Client | None":
        """None while there is no connection."""
        return None if self.trouble else self._client

    async def move_on(self) -> None:
        """To another server: this one is there and does not answer. It may be cut off from the others, which go on without it."""
        client, now = self.client(), time.monotonic()
        if client is None or len(self.address.servers) < 2 or now - self._moved < MOVE_S:
            return
        self._moved, self._shunned = now, client.connected_url.netloc if client.connected_url else ""
        log.warning("the server does not answer: another is tried", server=self._shunned)
        self._down("it does not answer", self._shunned)  # now: closing may take too long to say so
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CONNECT_S):
                await client.close()
        self._closed.set()

    def run(self, call: Coroutine[Any, Any, T], patience_s: float) -> T:
        """From another thread: the call's result. Raises TimeoutError, and whatever the call raises."""
        future = asyncio.run_coroutine_threadsafe(call, self.loop)
        try:
            return future.result(patience_s)
        except TimeoutError:
            future.cancel()
            raise

    def ask(self, call: Coroutine[Any, Any, T], patience_s: float) -> T:
        """From another thread: the call's result. Whatever goes wrong is a SpoolError in plain words."""
        began = time.monotonic()
        try:
            return self.run(call, patience_s)
        except SpoolError:
            raise
        except Exception as error:
            if self.trouble:
                raise self.unreachable() from None
            denied = self.denied_since(began)
            unanswered = isinstance(error, TimeoutError) and not denied
            raise (ServersAway if unanswered else SpoolError)(f"spool: {denied or in_words(error)}") from None

    def denied_since(self, began: float) -> str:
        """What the server has said since then (monotonic) that this user may not do; "" if nothing."""
        return self._denied if self._denied_at >= began else ""

    def unreachable(self) -> "ServersAway":
        """For the operator."""
        return ServersAway(f"spool: {self.trouble}; start the servers, or name the right ones (setting spool)")

    def close(self) -> None:
        """What was sent is flushed. Once."""
        if self.loop.is_closed():
            return
        self._closing = True
        self._keeper.cancel()
        with contextlib.suppress(Exception):
            self.run(self._let_go(), 2.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(2.0)

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _let_go(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                await self._client.flush(1)
            self._down("closed")
            with contextlib.suppress(Exception):
                await self._client.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """A client reconnects by itself, but is closed for good by some errors: then another takes its place."""
        from nats.aio.client import Client

        while not self._login_refused:
            closed = self._closed = asyncio.Event()
            client = self._client = Client()

            async def when_closed(closed: asyncio.Event = closed) -> None:
                self._down("the server closed the connection")
                closed.set()

            try:
                await client.connect(
                    self._in_order(),
                    dont_randomize=True,
                    name=self._name,
                    error_cb=self._when_wrong,
                    disconnected_cb=self._when_down,
                    reconnected_cb=self._when_up,
                    closed_cb=when_closed,
                    connect_timeout=CONNECT_S,
                    reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]  # it is slept, so a float will do
                    max_reconnect_attempts=-1,
                    ping_interval=PING_S,
                    pending_size=0,  # nothing is kept for later: a hit that was refused must not be stored after all
                    **self._options,
                )
                await self._began(client)
                await self._when_up()
                await closed.wait()
            except Exception as error:
                self._down(_why_not_connected(error))
                with contextlib.suppress(Exception):
                    await client.close()
            await asyncio.sleep(RECONNECT_S)

    def _in_order(self) -> list[str]:
        """By lot, so that not all go to the same one; last the one that did not answer."""
        return sorted(self.address.servers, key=lambda url: (url == f"nats://{self._shunned}", random()))  # noqa: S311

    async def _when_wrong(self, error: Exception) -> None:
        words = _why_not_connected(error)
        if "authorization" in words.lower() or "authentication" in words.lower():
            self._refuse(f"spool: {self._servers()}: the login is refused ({words}); {self._which_login()}")
        elif isinstance(error, ssl.SSLCertVerificationError):
            self._refuse(f"spool: {self._servers()}: its certificate is not trusted ({error.verify_message}); expected ca=FILE")
        elif "permissions violation" in words.lower():
            self._denied, self._denied_at = f"{self._servers()}: {words}", time.monotonic()
        elif self.trouble:
            self._down(words)

    def _refuse(self, reason: str) -> None:
        """For good before the first connection; later it may be a server that is being changed."""
        if self.generation == 0 and not self._patient:
            self._login_refused = reason
            self._known.set()
            self._keeper.cancel()
        self.trouble = reason
        self._note_loss()

    async def _when_down(self) -> None:
        self._down("the connection is lost", self._at)

    async def _when_up(self) -> None:
        self.generation += 1
        if self._client is not None and self._client.connected_url is not None:
            self._at = self._client.connected_url.netloc
        self.trouble, self.down_since = "", None
        self._known.set()
        if self._told_of.ends():
            log.warning("connected again", server=self._at)

    def _down(self, reason: str, server: str = "") -> None:
        """`server`: the one of which that is true; else all."""
        if self.down_since is None:
            self.down_since = time.monotonic()
        self.trouble = f"{server or self._servers()}: {reason}"
        self._note_loss()

    def _note_loss(self) -> None:
        """Call it at each try that fails, too: the loss itself may have been too soon after an earlier one to be logged."""
        if self.generation and not self._closing:
            self._note(self.trouble)

    def _note(self, reason: str) -> None:
        """One of several that is gone is no error: the next one is tried at once."""
        if not self._quiet and self._told_of.begins():
            one_of_several = len(self.address.servers) > 1 and self.generation > 0
            (log.warning if one_of_several else log.error)("no connection to the spool", reason=reason)

    def _servers(self) -> str:
        return ",".join(server.removeprefix("nats://") for server in self.address.servers)

    def _which_login(self) -> str:
        given = [f"{name}={path}" for name in LOGINS if (path := getattr(self.address, name))]
        return f"look into {given[0]}" if given else "expected credentials=FILE, nkey=FILE or token_file=FILE"


def in_words(error: Exception) -> str:
    """For the operator."""
    if isinstance(error, TimeoutError):
        return NO_ANSWER
    if isinstance(error, socket.gaierror):
        return "no such host is known"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).removeprefix("nats: ").strip("'") or type(error).__name__


def _why_not_connected(error: Exception) -> str:
    return "no answer in time; is it NATS that listens there?" if isinstance(error, TimeoutError) else in_words(error)
