"""The last words of those at work: one message for each, which the next replaces."""

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.spool.jetstream import api
from proxy.spool.jetstream.names import ANY, Names
from proxy.spool.port import IntakeStats, Told

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

TRIES = 10


async def last_of(client: "Client", names: Names, subject: str, patience_s: float = api.PATIENCE_S) -> tuple[int, bytes]:
    """What was left last under that subject, and its sequence; 0 and b"" if nothing."""
    try:
        answer: Any = await api.ask(client, f"STREAM.MSG.GET.{names.state}", {"last_by_subj": subject}, patience_s)
    except api.ApiError as error:
        if error.number in (api.MESSAGE_NOT_FOUND, api.STREAM_NOT_FOUND):
            return 0, b""
        raise
    return answer["message"]["seq"], base64.b64decode(answer["message"].get("data", ""))


async def all_of(client: "Client", names: Names, what: str, patience_s: float = api.PATIENCE_S) -> "list[Msg]":
    """What each left last of that kind, all read at one moment. What is replaced meanwhile makes the server break off (404)."""
    asked = {"multi_last": [names.state_of(what, ANY)]}
    for _ in range(TRIES - 1):
        try:
            return await api.read_direct(client, names.state, asked, patience_s)
        except api.ApiError as error:
            if error.number != 404:
                raise
    return await api.read_direct(client, names.state, asked, patience_s)


async def all_told(client: "Client", names: Names) -> list[Told]:
    """What each forwarder told last. How long ago, the servers say themselves: no host's clock is asked."""
    now = datetime.fromisoformat((await api.ask(client, f"STREAM.INFO.{names.state}"))["ts"])
    msgs = await all_of(client, names, "forwarder")
    return [Told(_ms_since((msg.headers or {})["Nats-Time-Stamp"], now), msg.data) for msg in msgs]


async def all_intake_stats(client: "Client", names: Names) -> IntakeStats:
    """The sum over all collectors that were at work in the last days."""
    total = IntakeStats()
    for msg in await all_of(client, names, "collector"):
        total.add(msgspec.json.decode(msg.data, type=IntakeStats))
    return total


def _ms_since(stamp: str, now: datetime) -> int:
    """Both RFC 3339."""
    return int((now - datetime.fromisoformat(stamp).astimezone(UTC)).total_seconds() * 1000)
