"""What a collector counts and does not store: gathered here, and added to the counts' stream a few times a second.

An increment that is not acknowledged is repeated under the same id, so it counts once. Nobody waits for it.
"""

import asyncio
import contextlib
import threading
from collections import Counter

from proxy.spool.jetstream.endings import counting
from proxy.spool.jetstream.ids import Ids
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import Names
from proxy.spool.jetstream.publisher import Message, Publisher

GATHER_S = 0.02
"""What is counted meanwhile goes together."""
REST_S = 1.0
"""After increments that could not be added."""


class Tally:
    """`add` from any thread, all else on the link's loop."""

    def __init__(self, names: Names, publisher: Publisher, ids: Ids) -> None:
        self._names, self._publisher, self._ids = names, publisher, ids
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._owed: list[Message] = []
        """Increments that were sent, and are not known to have been added."""
        self._bell, self._flushing = asyncio.Event(), asyncio.Lock()

    def add(self, link: Link, site: str, name: str) -> None:
        """One more."""
        with self._lock:
            first = not self._counts
            self._counts[site, name] += 1
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                link.loop.call_soon_threadsafe(self._bell.set)

    async def run(self, link: Link, patience_s: float) -> None:
        """Until cancelled."""
        while True:
            if not self._owed:
                await self._bell.wait()
            self._bell.clear()
            await self.flush(link, patience_s)
            await asyncio.sleep(REST_S if self._owed else GATHER_S)

    async def flush(self, link: Link, patience_s: float) -> None:
        """Add what is owed; then, if that went well, what was counted since."""
        async with self._flushing:
            while self._owed or self._counts:
                if not self._owed:
                    with self._lock:
                        counts, self._counts = self._counts, Counter()
                    self._owed = [counting(self._names, site, name, self._ids.next(), n) for (site, name), n in counts.items()]
                errors = await self._publisher.publish(link, self._owed, patience_s)
                self._owed = [message for message, error in zip(self._owed, errors, strict=True) if error]
                if self._owed:
                    return
