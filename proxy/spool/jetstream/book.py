"""The ledger, read from the streams: it balances by construction, since "delivered" is what is left.

    stored    = last_seq of the site's stream − replayed             received  = stored + dropped by collectors
    pending   = messages in it                                       dead      = messages among the dead letters
    delivered = last_seq − messages − dropped by forwarders − dead − discarded − replayed

Streams are read in an order in which whatever happens meanwhile makes received and delivered too small, never too large; neither
ever falls, so what one reader saw before mends that: the difference is a hit that has ended and is just being acknowledged.
"""

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from proxy import hit as hits
from proxy.outcome import Ending, Outcome
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.names import BY_COLLECTOR, REPLAYED, Names
from proxy.spool.port import RECEIVED, REFUSED, TRIMMED, Ledger

if TYPE_CHECKING:
    from nats.aio.client import Client

DROPPED = tuple(outcome for outcome in Outcome if outcome.ending is Ending.DROPPED)
DEAD = tuple(outcome for outcome in Outcome if outcome.ending is Ending.DEAD)
ASKED_AT_ONCE = 500
"""Counts in one request; the server answers for 1,024 at most."""

Counts = dict[str, dict[str, int]]


class Book:
    """One reader's view. Used on the link's loop."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._before: dict[str, tuple[str, dict[str, int]]] = {}
        """What was read last of a site, and its stream's birth: one that was deleted and made again begins anew."""
        self.lost = 0
        """Hits that waited in streams which were deleted and made again, as far as this reader saw."""

    async def read(self, client: "Client") -> Ledger:
        """Raises ApiError or nats.errors.Error where it cannot be read."""
        told, silent_streams = await streams.all_of_hits(client, self._names)
        stored = {self._names.site_of(stream["config"]["name"]): stream["state"] for stream in told}
        born = {self._names.site_of(stream["config"]["name"]): stream["created"] for stream in told}
        dead = await self._dead(client)
        counted = await self._counted(client)
        waiting = [(site, state) for site, state in stored.items() if state["messages"]]
        oldest = await asyncio.gather(*(self._first_ms(client, site, state) for site, state in waiting))
        counts: Counts = {}
        pending = 0
        silent = {self._names.site_of(name) for name in silent_streams}
        for site in {*stored, *dead, *counted} - silent:
            state = stored.get(site, {"last_seq": 0, "messages": 0})
            birth, before = self._before.get(site, ("", {}))
            if birth != born.get(site, ""):
                self.lost += _pending(before) if birth and site in born else 0
                before = {}
            of_site, rest = _balance(state, dead.get(site, {}), counted.get(site, {}), before)
            counts[site] = {name: n for name, n in of_site.items() if n}
            pending += rest
        for site in silent & self._before.keys():
            counts[site] = dict(self._before[site][1])
            pending += _pending(counts[site])
        for site, of_site in counts.items():
            if site in born or not self._before.get(site, ("", {}))[0]:
                self._before[site] = (born.get(site, ""), of_site)
        return Ledger(counts, pending, min(filter(None, oldest), default=None), silent=tuple(sorted(silent)))

    async def _dead(self, client: "Client") -> Counts:
        return self._by_site(await api.subjects(client, self._names.dead, self._names.all_dead))

    async def _counted(self, client: "Client") -> Counts:
        subjects = sorted(await api.subjects(client, self._names.ledger, self._names.all_counts))
        values: dict[str, int] = {}
        for first in range(0, len(subjects), ASKED_AT_ONCE):
            asked = {"multi_last": subjects[first : first + ASKED_AT_ONCE]}
            for msg in await api.read_direct(client, self._names.ledger, asked):
                values[(msg.headers or {})["Nats-Subject"]] = int(msgspec.json.decode(msg.data)["val"])
        return self._by_site(values)

    def _by_site(self, by_subject: dict[str, int]) -> Counts:
        found: Counts = {}
        for subject, n in by_subject.items():
            site, name = self._names.site_and_name(subject)
            found.setdefault(site, {})[name] = n
        return found

    async def _first_ms(self, client: "Client", site: str, state: Any) -> int | None:
        """Receipt of the oldest hit; None if it is gone meanwhile, or cannot be read."""
        with contextlib.suppress(api.ApiError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError):
            asked = {"seq": state["first_seq"]}
            answer = await api.ask(client, f"STREAM.MSG.GET.{self._names.hits_stream(site)}", asked, streams.SILENT_S)
            return hits.decode(base64.b64decode(answer["message"]["data"])).received_ms
        return None


def _pending(counts: dict[str, int]) -> int:
    return counts.get(RECEIVED, 0) - sum(counts.get(outcome, 0) for outcome in Outcome)


def _balance(state: Any, dead: dict[str, int], counted: dict[str, int], before: dict[str, int]) -> tuple[dict[str, int], int]:
    """A site's counts, and how many are pending."""
    at_edge = sum(counted.get(BY_COLLECTOR + outcome, 0) for outcome in DROPPED)
    dropped = {outcome.value: counted.get(outcome, 0) + counted.get(BY_COLLECTOR + outcome, 0) for outcome in DROPPED}
    ended_otherwise = sum(dropped.values()) - at_edge + sum(dead.values()) + counted.get(REPLAYED, 0)
    received = max(state["last_seq"] - counted.get(REPLAYED, 0) + at_edge, before.get(RECEIVED, 0))
    delivered = max(state["last_seq"] - state["messages"] - ended_otherwise, before.get(Outcome.DELIVERED, 0))
    pending = received - delivered - sum(dropped.values()) - sum(dead.values())
    if pending < 0:
        delivered, pending = max(0, delivered + pending), 0
        received = delivered + sum(dropped.values()) + sum(dead.values())
    found = {RECEIVED: received, Outcome.DELIVERED.value: delivered, **dropped, **dead}
    return {**found, **{name: counted.get(name, 0) for name in (REFUSED, TRIMMED)}}, pending
