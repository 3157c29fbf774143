"""The operator's half over JetStream: dead letters lie in one stream, and their ids are its sequence numbers.

To replay one: count it as replayed, store its hit again, delete the letter. To discard one: count it, delete it. Each step has an
id, so whatever is stopped on the way is finished by doing it again (within the streams' duplicate windows).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from proxy import hit as hits
from proxy.hit import Hit
from proxy.outcome import Outcome
from proxy.spool.jetstream import api, streams
from proxy.spool.jetstream.endings import DeadRecord, counting, decode
from proxy.spool.jetstream.link import Link
from proxy.spool.jetstream.names import HIT_ID, REPLAYED, Names
from proxy.spool.jetstream.publisher import Message, Publisher
from proxy.spool.port import DeadFilter, DeadLetter, Progress, SpoolError

if TYPE_CHECKING:
    from nats.aio.client import Client

BATCH = 500
PATIENCE_S = 10.0


class _Letter(NamedTuple):
    sequence: int
    site: str
    outcome: str
    record: DeadRecord


Letters = list[_Letter]
Step = Callable[["Client", Letters], Coroutine[Any, Any, None]]


class JetStreamDeadLetters:
    """Over all sites. Raises SpoolError where the servers do not answer."""

    def __init__(self, link: Link, publisher: Publisher, names: Names) -> None:
        self._link, self._publisher, self._names = link, publisher, names

    def count(self, wanted: DeadFilter) -> int:
        if wanted.ids or wanted.died_before_ms is not None or wanted.died_after_ms is not None:
            return sum(len(batch) for batch in self._batches(wanted))
        subjects: dict[str, int] = self._do(self._subjects())
        found = ((*self._names.site_and_name(subject), n) for subject, n in subjects.items())
        return sum(n for site, outcome, n in found if wanted.site in ("", site) and wanted.outcome in ("", outcome))

    def list(self, wanted: DeadFilter, limit: int) -> "list[DeadLetter]":
        latest = self._latest(wanted, limit)
        latest.sort(key=lambda letter: (letter.record.died_ms, letter.sequence), reverse=True)
        return [_shown(letter) for letter in latest[:limit]]

    def replay(self, wanted: DeadFilter, now_ms: int, progress: Progress) -> int:
        return self._take(wanted, self._store_again, progress)

    def discard(self, wanted: DeadFilter, progress: Progress) -> int:
        return self._take(wanted, self._count_discarded, progress)

    def _take(self, wanted: DeadFilter, step: Step, progress: Progress) -> int:
        taken = 0
        for batch in self._batches(wanted):
            moved = self._do(self._take_batch(batch, step))
            taken += moved
            progress(moved)
        return taken

    async def _take_batch(self, batch: Letters, step: Step) -> int:
        client = self._client()
        await step(client, batch)
        return sum(await asyncio.gather(*(self._delete(client, letter) for letter in batch)))

    async def _delete(self, client: "Client", letter: _Letter) -> bool:
        """False if somebody else took it meanwhile: it is counted once, by its id."""
        try:
            await api.ask(client, f"STREAM.MSG.DELETE.{self._names.dead}", {"seq": letter.sequence, "no_erase": True})
        except api.ApiError:
            return False
        return True

    async def _store_again(self, client: "Client", batch: Letters) -> None:
        """Count first: what is counted and not yet stored is missing from "received" for a moment, and never there twice."""
        for site in {letter.site for letter in batch}:
            await streams.ensure_stream(client, streams.hits_stream(self._names, site, self._link.address.replicas))
        await self._all(
            [counting(self._names, letter.site, REPLAYED, f"{REPLAYED}:{letter.sequence}") for letter in batch],
        )
        await self._all(
            [
                Message(self._names.hits(letter.site), letter.record.hit, {HIT_ID: f"{REPLAYED}:{letter.sequence}"})
                for letter in batch
            ]
        )

    async def _count_discarded(self, client: "Client", batch: Letters) -> None:
        discarded = Outcome.DISCARDED
        await self._all(
            [counting(self._names, letter.site, discarded, f"{discarded}:dead:{letter.sequence}") for letter in batch]
        )

    async def _all(self, messages: Sequence[Message]) -> None:
        errors = await self._publisher.publish(self._link, messages, PATIENCE_S)
        if failed := next(filter(None, errors), ""):
            raise SpoolError(f"spool: {failed}; do it again, and what is done already is not done twice")

    def _batches(self, wanted: DeadFilter) -> Iterator[Letters]:
        """Letters in the order of their death. What dies meanwhile is not among them."""
        state = self._do(self._state())
        first, last = state["first_seq"], state["last_seq"]
        ids = {int(id) for id in wanted.ids if id.isdecimal()}
        if wanted.ids:
            first, last = max(first, min(ids, default=1)), min(last, max(ids, default=0))
        while first <= last and state["messages"]:
            batch = self._do(self._read(first, BATCH))
            found = [letter for letter in batch if letter.sequence <= last and _is_wanted(letter, wanted, ids)]
            if found:
                yield found
            if not batch:
                return
            first = batch[-1].sequence + 1

    def _latest(self, wanted: DeadFilter, limit: int) -> Letters:
        """The last ones that are wanted, looked for from the end: there may be many before them."""
        state = self._do(self._state())
        first, last, span = state["first_seq"], state["last_seq"], max(limit, 16)
        ids = {int(id) for id in wanted.ids if id.isdecimal()}
        found: Letters = []
        while first <= last and len(found) < limit:
            begin = at = max(first, last - span + 1)
            part: Letters = []
            while at <= last and (batch := self._do(self._read(at, min(BATCH, last - at + 1)))):
                part += [letter for letter in batch if letter.sequence <= last and _is_wanted(letter, wanted, ids)]
                at = batch[-1].sequence + 1
            found, last, span = part + found, begin - 1, 4 * span
        return found

    async def _subjects(self) -> dict[str, int]:
        try:
            return await api.subjects(self._client(), self._names.dead, self._names.all_dead)
        except api.ApiError as error:
            if error.number == api.STREAM_NOT_FOUND:
                return {}
            raise

    async def _state(self) -> Any:
        try:
            return (await api.ask(self._client(), f"STREAM.INFO.{self._names.dead}"))["state"]
        except api.ApiError as error:
            if error.number == api.STREAM_NOT_FOUND:
                return {"first_seq": 1, "last_seq": 0, "messages": 0}
            raise

    async def _read(self, first: int, most: int) -> Letters:
        asked = {"seq": first, "batch": most, "next_by_subj": self._names.all_dead}
        letters: Letters = []
        for msg in await api.read_direct(self._client(), self._names.dead, asked):
            headers = msg.headers or {}
            site, outcome = self._names.site_and_name(headers["Nats-Subject"])
            letters.append(_Letter(int(headers["Nats-Sequence"]), site, outcome, decode(msg.data)))
        return letters

    def _client(self) -> "Client":
        client = self._link.client()
        if client is None:
            raise self._link.unreachable()
        return client

    def _do(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self._link.ask(call, 6 * PATIENCE_S)


def _is_wanted(letter: _Letter, wanted: DeadFilter, ids: set[int]) -> bool:
    died_ms = letter.record.died_ms
    return (
        (not wanted.ids or letter.sequence in ids)
        and (not wanted.outcome or letter.outcome == wanted.outcome)
        and (not wanted.site or letter.site == wanted.site)
        and (wanted.died_before_ms is None or died_ms < wanted.died_before_ms)
        and (wanted.died_after_ms is None or died_ms > wanted.died_after_ms)
    )


def _shown(letter: _Letter) -> DeadLetter:
    hit: Hit | None = None
    try:
        hit = hits.decode(letter.record.hit)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # shown without it
    record = letter.record
    return DeadLetter(str(letter.sequence), letter.site, letter.outcome, record.answer, record.attempts, record.died_ms, hit)
