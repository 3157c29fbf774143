"""Hits put into their streams, which are made where they are missing. One site's trouble is no other's."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

from proxy import hit as hits
from proxy.hit import Hit
from proxy.spool.jetstream import streams
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import HIT_ID, Names
from proxy.spool.jetstream.publisher import UNANSWERED, Message, Publisher, Stored, lasting, nobody
from proxy.spool.jetstream.refusal import for_want_of_room

SHUNNED_S = 3.0
"""A site whose stream failed is not tried again for so long: else each of its beacons would wait for it."""


class _Shunned(NamedTuple):
    reason: str
    until: float
    generation: int
    """Of the link: another server may know better."""


class Shelf:
    """Used on the link's loop."""

    def __init__(self, names: Names, replicas: int, publisher: Publisher) -> None:
        self._names, self._replicas, self._publisher = names, replicas, publisher
        self._made: set[str] = set()
        """Sites whose stream is known to be there."""
        self._shunned: dict[str, _Shunned] = {}
        self._ready = False
        """Whether the common streams were there once."""
        self._preparing = asyncio.Lock()
        self._births = streams.Births()

    async def prepare(self, link: Link) -> None:
        """Make the common streams. Raises SpoolError, api.ApiError, nats.errors.Error."""
        if (client := link.client()) is not None:
            await streams.ensure_common(client, self._names, self._replicas, self._births)
            self._ready = True

    def parts(self, batch: Sequence[Hit]) -> list[Sequence[int]]:
        """The numbers of hits that need not wait for each other: of all sites whose streams are there, and of each other site."""
        strange = {hit.site for hit in batch} - self._made
        if not strange:
            return [range(len(batch))]
        found: dict[str, list[int]] = {}
        for number, hit in enumerate(batch):
            found.setdefault(hit.site if hit.site in strange else "", []).append(number)
        return list(found.values())

    async def put(self, link: Link, batch: Sequence[Hit], ids: Sequence[str], patience_s: float) -> list[str]:
        """For each hit why it is not known to be stored; "" if it is."""
        parts = self.parts(batch)
        done = await asyncio.gather(
            *(self.put_part(link, [batch[n] for n in part], [ids[n] for n in part], patience_s) for part in parts)
        )
        errors = [""] * len(batch)
        for part, found in zip(parts, done, strict=True):
            for number, error in zip(part, found, strict=True):
                errors[number] = error
        return errors

    async def put_part(
        self, link: Link, batch: Sequence[Hit], ids: Sequence[str], patience_s: float, stored: Stored = nobody
    ) -> list[str]:
        """The same for one of the `parts`. Hits that are stored need not wait for the others: `stored`."""
        deadline = time.monotonic() + patience_s
        if batch[0].site not in self._made and (reason := await self._make(link, batch[0].site, patience_s)):
            return [reason] * len(batch)
        messages = [
            Message(self._names.hits(hit.site), hits.encode(hit), {HIT_ID: id}) for hit, id in zip(batch, ids, strict=True)
        ]
        errors = await self._publisher.publish(link, messages, max(0.0, deadline - time.monotonic()), stored)
        for site, error in {hit.site: error for hit, error in zip(batch, errors, strict=True) if error}.items():
            if not lasting(error):
                self._shun(link, site, error)
        return errors

    async def _make(self, link: Link, site: str, patience_s: float) -> str:
        """Why the site's stream is not there; "" if it is, or if there is no connection to ask."""
        shunned = self._shunned.get(site)
        if shunned is not None and time.monotonic() < shunned.until and link.generation == shunned.generation:
            return shunned.reason
        if (client := link.client()) is None:
            return ""
        if shunned is not None:  # one tries, the others are told what is known
            self._shunned[site] = _Shunned(shunned.reason, time.monotonic() + SHUNNED_S, link.generation)
        try:
            async with asyncio.timeout(patience_s):
                config = streams.hits_stream(self._names, site, self._replicas)
                stream = streams.ensure_stream(client, config, self._births)
                await asyncio.gather(self._common(link, patience_s / 3), stream)
        except Exception as error:  # whatever it is, other sites go on
            reason = UNANSWERED if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            self._shun(link, site, reason)
            return reason
        self._made.add(site)
        self._shunned.pop(site, None)
        return ""

    async def _common(self, link: Link, patience_s: float) -> None:
        """They must be there once. Later somebody may have deleted them; whatever else is wrong with them concerns no hit."""
        async with self._preparing:
            if not self._ready:
                await self.prepare(link)
                return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(patience_s):
                await self.prepare(link)

    def _shun(self, link: Link, site: str, reason: str) -> None:
        """Its stream is looked at again; not at once, unless it is the connection that failed, or there is no room, which is told
        without a wait.
        """
        self._made.discard(site)
        if link.client() is not None and not for_want_of_room(reason):
            self._shunned[site] = _Shunned(reason, time.monotonic() + SHUNNED_S, link.generation)
