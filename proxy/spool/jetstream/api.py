"""Requests to JetStream's own API: JSON in, JSON out, and errors by their number (server/errors.json in nats-server)."""

import json
from typing import TYPE_CHECKING, Any

from proxy.spool.jetstream.refusal import NO_ROOM, in_words

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND = 10059, 10014, 10037
STREAM_EXISTS, CONSUMER_EXISTS = 10058, 10148
NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT = 10076, 10039
WRONG_LAST_SEQUENCE = (10071, 10164)
UNAVAILABLE = 10008
"""There is no leader just now."""
PATIENCE_S = 5.0


class ApiError(Exception):
    """JetStream said no. `number` is its err_code, 0 where nobody answered for the API."""

    def __init__(self, number: int, description: str) -> None:
        super().__init__(in_words(number, description))
        self.number = number

    @property
    def no_room(self) -> bool:
        """Whether the servers are full."""
        return self.number in NO_ROOM


async def ask(client: "Client", what: str, body: Any = None, patience_s: float = PATIENCE_S) -> Any:
    """The answer. Raises ApiError, or nats.errors.Error where none comes."""
    from nats.errors import NoRespondersError

    payload = b"" if body is None else json.dumps(body).encode()
    try:
        answer = json.loads((await client.request(f"$JS.API.{what}", payload, timeout=patience_s)).data)
    except NoRespondersError:
        raise ApiError(0, f"JetStream does not answer: {in_words(NOT_ENABLED, 'JetStream not enabled')}") from None
    if error := answer.get("error"):
        raise ApiError(error.get("err_code", 0), error.get("description", ""))
    return answer


async def store_after(client: "Client", subject: str, last: int, payload: bytes, patience_s: float = PATIENCE_S) -> int | None:
    """Publish, and wait until it is stored: its sequence. None if `last` is not the sequence of the last under that subject (0:
    there is none). Raises ApiError, or nats.errors.Error where no answer comes.
    """
    from nats.errors import NoRespondersError

    headers = {"Nats-Expected-Last-Subject-Sequence": str(last)}
    try:
        answer = json.loads((await client.request(subject, payload, timeout=patience_s, headers=headers)).data)
    except NoRespondersError:
        raise ApiError(UNAVAILABLE, "nobody has the stream just now") from None
    if error := answer.get("error"):
        if error.get("err_code") in WRONG_LAST_SEQUENCE:
            return None
        raise ApiError(error.get("err_code", 0), error.get("description", ""))
    return int(answer["seq"])


async def ask_all(client: "Client", what: str, of: str, body: dict[str, Any]) -> list[Any]:
    """All pages of a listing."""
    found: list[Any] = []
    while True:
        answer = await ask(client, what, {**body, "offset": len(found)})
        page = answer.get(of) or []
        found += page
        if not page or len(found) >= answer.get("total", 0):
            return found


async def read_direct(client: "Client", stream: str, body: dict[str, Any], patience_s: float = PATIENCE_S) -> "list[Msg]":
    """Many messages for one request (ADR-31), from whichever replica answers. Headers: Nats-Subject, Nats-Sequence,
    Nats-Time-Stamp.

    Raises ApiError where not all can be had (one was replaced just then, say); none at all are an empty list.
    """
    found: list[Msg] = []
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    try:
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode(), inbox)
        while True:
            msg = await subscription.next_msg(patience_s)
            status = (msg.headers or {}).get("Status", "")
            if not status:
                found.append(msg)
            elif status == "204" or (status == "404" and not found):  # the end of the batch; nothing there
                return found
            else:
                raise ApiError(int(status), (msg.headers or {}).get("Description", ""))
    finally:
        await subscription.unsubscribe()


async def subjects(client: "Client", stream: str, pattern: str) -> dict[str, int]:
    """Subject → messages, over all pages. Raises ApiError."""
    found: dict[str, int] = {}
    while True:
        answer = await ask(client, f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)})
        page = answer["state"].get("subjects") or {}
        found.update(page)
        if not page or len(found) >= answer.get("total", 0):
            return found
