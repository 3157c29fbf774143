"""The last words of those at work: one message for each, which the next replaces."""

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.spool.jetstream import api
from proxy.spool.jetstream.names import ANY, Names
from proxy.spool.port import IntakeStats

if TYPE_CHECKING:
    from nats.aio.client import Client


async def last_state(client: "Client", names: Names, subject: str) -> bytes:
    """What was left last under that subject, which may be a pattern; b"" if nothing."""
    try:
        answer: Any = await api.ask(client, f"STREAM.MSG.GET.{names.state}", {"last_by_subj": subject})
    except api.ApiError as error:
        if error.number in (api.MESSAGE_NOT_FOUND, api.STREAM_NOT_FOUND):
            return b""
        raise
    return base64.b64decode(answer["message"].get("data", ""))


async def all_intake_stats(client: "Client", names: Names) -> IntakeStats:
    """The sum over all collectors that were at work in the last days."""
    total = IntakeStats()
    for msg in await api.read_direct(client, names.state, {"multi_last": [names.state_of("collector", ANY)]}):
        total.add(msgspec.json.decode(msg.data, type=IntakeStats))
    return total
