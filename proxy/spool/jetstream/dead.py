"""The operator's half over JetStream: dead letters lie in one stream, and their ids are its sequence numbers.

To replay one: count it as replayed, store its hit again, delete the letter. To discard one: count it, delete it. Each step has an
id, so whatever is stopped on the way is finished by doing it again (within the streams' duplicate windows).
"""

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
        return sum(len(batch) for batch in self._batches(wanted))

    def list(self, wanted: DeadFilter, limit: int) -> "list[DeadLetter]":
        latest: Letters = []
        for batch in self._batches(wanted):
            latest = (latest + batch)[-limit:]
        latest.sort(key=lambda letter: (letter.record.died_ms, letter.sequence), reverse=True)
        return [_shown(letter) for letter in latest]

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
        moved = 0
        for letter in batch:
            try:
                await api.ask(client, f"STREAM.MSG.DELETE.{self._names.dead}", {"seq": letter.sequence, "no_erase": True})
                moved += 1
            except api.ApiError:  # somebody else took it meanwhile: it is counted once, by its id
                continue
        return moved

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
            batch = self._do(self._read(first))
            found = [letter for letter in batch if letter.sequence <= last and _is_wanted(letter, wanted, ids)]
            if found:
                yield found
            if not batch:
                return
            first = batch[-1].sequence + 1

    async def _state(self) -> Any:
        try:
            return (await api.ask(self._client(), f"STREAM.INFO.{self._names.dead}"))["state"]
        except api.ApiError as error:
            if error.number == api.STREAM_NOT_FOUND:
                return {"first_seq": 1, "last_seq": 0, "messages": 0}
            raise

    async def _read(self, first: int) -> Letters:
        asked = {"seq": first, "batch": BATCH, "next_by_subj": self._names.all_dead}
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
