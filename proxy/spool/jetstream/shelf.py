"""Hits put into their streams, which are made where they are missing."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy import hit as hits
from proxy.hit import Hit
from proxy.spool.jetstream import streams
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import HIT_ID, Names
from proxy.spool.jetstream.publisher import UNANSWERED, Message, Publisher

if TYPE_CHECKING:
    from nats.aio.client import Client


class Shelf:
    """Used on the link's loop."""

    def __init__(self, names: Names, replicas: int, publisher: Publisher) -> None:
        self._names, self._replicas, self._publisher = names, replicas, publisher
        self._made: set[str] = set()
        """Sites whose stream is known to be there."""
        self._ready = False
        """Whether the common streams are known to be there."""

    async def prepare(self, link: Link) -> None:
        """Make the common streams. Raises SpoolError, api.ApiError, nats.errors.Error."""
        if (client := link.client()) is not None:
            await streams.ensure_common(client, self._names, self._replicas)
            self._ready = True

    async def put(self, link: Link, batch: Sequence[Hit], ids: Sequence[str], patience_s: float) -> list[str]:
        """For each hit why it is not known to be stored; "" if it is. Raises as `prepare`."""
        deadline = time.monotonic() + patience_s
        try:
            async with asyncio.timeout(patience_s):
                if not self._ready:
                    await self.prepare(link)
                for site in {hit.site for hit in batch} - self._made:
                    if (client := link.client()) is not None:
                        await self._make(client, site)
        except TimeoutError:
            return [UNANSWERED] * len(batch)
        messages = [
            Message(self._names.hits(hit.site), hits.encode(hit), {HIT_ID: id}) for hit, id in zip(batch, ids, strict=True)
        ]
        errors = await self._publisher.publish(link, messages, max(0.0, deadline - time.monotonic()))
        for hit, error in zip(batch, errors, strict=True):
            if error:
                self.forget(hit.site)
        return errors

    def forget(self, site: str) -> None:
        """Look again whether its stream is there, and the common ones: somebody may have deleted them."""
        self._made.discard(site)
        self._ready = False

    async def _make(self, client: "Client", site: str) -> None:
        await streams.ensure_stream(client, streams.hits_stream(self._names, site, self._replicas))
        self._made.add(site)
