"""Those who wait to be told that their hit is stored: tasks, threads, callers. Woken together, a loop at a time."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

from proxy.hit import Hit
from proxy.spool.port import Caller, SpoolRefused


class WaitingThread(threading.Event):
    """A thread's place in a batch."""

    error: SpoolRefused | None = None


Waiter = asyncio.Future[None] | WaitingThread | Caller


def wait_for_all(enter: Callable[[Hit, Waiter], None], hits: Sequence[Hit]) -> None:
    """Enter the hits from a thread, and wait until all of them are answered. Raises SpoolRefused with those that were not stored,
    if there are any."""
    waiters = [(hit, WaitingThread()) for hit in hits]
    for hit, waiter in waiters:
        try:
            enter(hit, waiter)
        except SpoolRefused as refused:
            waiter.error = refused
            waiter.set()
    errors = []
    for hit, waiter in waiters:
        waiter.wait()
        if waiter.error is not None:
            errors.append((hit, waiter.error))
    if errors:
        error = SpoolRefused(*errors[0][1].args)
        error.hits = tuple(hit for hit, _ in errors)
        raise error


class Entered:
    """The three ways to append of an intake that takes a hit and whoever waits for it together."""

    def enter(self, hit: Hit, waiter: Waiter) -> None:
        """Take the hit; the waiter is told later what became of it. Raises SpoolRefused if it was not even taken."""
        raise NotImplementedError

    async def append(self, hit: Hit) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.enter(hit, future)
        await future

    def append_then(self, hit: Hit, caller: Caller) -> None:
        self.enter(hit, caller)

    def append_blocking(self, *hits: Hit) -> None:
        wait_for_all(self.enter, hits)


def wake(waiters: Iterable[Waiter], error: SpoolRefused | None) -> None:
    """One wake-up per event loop, not one per beacon."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None] | Caller]] = {}
    for waiter in waiters:
        if isinstance(waiter, WaitingThread):
            waiter.error = error
            waiter.set()
        else:
            loops.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, told in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, told, error)
        except RuntimeError:  # the loop has ended, and its requests with it
            pass


def _resolve(waiters: "list[asyncio.Future[None] | Caller]", error: SpoolRefused | None) -> None:
    for waiter in waiters:
        if not isinstance(waiter, asyncio.Future):
            waiter.told(error)
        elif not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(SpoolRefused(*error.args))
