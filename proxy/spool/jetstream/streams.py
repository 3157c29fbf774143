"""The streams: made as they must be, or found as they must be. What differs is told, never changed: it may be meant."""

import asyncio
from typing import TYPE_CHECKING, Any

from proxy.log import log
from proxy.spool.jetstream import api
from proxy.spool.jetstream.names import FORWARDERS, Names
from proxy.spool.port import SpoolError

if TYPE_CHECKING:
    from nats.aio.client import Client

SECOND = 1_000_000_000
"""JetStream counts in nanoseconds."""
HITS_WINDOW_S = 60
"""How long a repeated hit is known for one (some 150 bytes of the server's memory each)."""
RARE_WINDOW_S = 3600
"""The same for dead letters and counts, which are few."""
COUNTS_KEPT = 1000
"""Of each count. The last is its value; the server finds the ids it has seen in the others when it starts again."""
STATES_KEPT_S = 7 * 24 * 3600
ACK_WAIT_S = 60
"""A hit of which nothing was heard for so long is given to another forwarder."""
SILENT_S = 1.0
"""A stream that says nothing of itself for so long has no leader, or one that hangs."""
LEAST_VERSION = (2, 12)
"""The first with counters (ADR-49)."""

Config = dict[str, Any]


def hits_stream(names: Names, site: str, replicas: int) -> Config:
    """Its messages are the pending hits. `discard: new`: whatever limit is set on it, the new is refused and the old kept."""
    window = HITS_WINDOW_S * SECOND
    return {
        **_stream(names.hits_stream(site), names.hits(site), replicas),
        "retention": "workqueue",
        "discard": "new",
        "duplicate_window": window,
    }


def common_streams(names: Names, replicas: int) -> list[Config]:
    """Dead letters, counts, and the last words of those at work."""
    rare = {"retention": "limits", "duplicate_window": RARE_WINDOW_S * SECOND}
    return [
        {**_stream(names.dead, names.all_dead, replicas), **rare, "discard": "new", "allow_direct": True},
        {
            **_stream(names.ledger, names.all_counts, replicas),
            **rare,
            "allow_msg_counter": True,
            "allow_direct": True,
            "max_msgs_per_subject": COUNTS_KEPT,
        },
        {
            **_stream(names.state, names.all_states, replicas),
            "retention": "limits",
            "max_age": STATES_KEPT_S * SECOND,
            "max_msgs_per_subject": 1,
            "allow_direct": True,
        },
    ]


def _stream(name: str, subject: str, replicas: int) -> Config:
    return {"name": name, "subjects": [subject], "storage": "file", "num_replicas": replicas, "max_age": 0}


class Births:
    """When streams were made, as far as one process has seen: who sees another one under the same name tells of it."""

    def __init__(self) -> None:
        self._born: dict[str, str] = {}

    def note(self, stream: str, born: str) -> None:
        """As the servers say it."""
        if (before := self._born.get(stream, born)) != born:
            log.error(
                "a stream was gone and is made anew: what was in it is lost", stream=stream, was_made=before, made_again=born
            )
        self._born[stream] = born


async def ensure_common(client: "Client", names: Names, replicas: int, births: Births | None = None) -> None:
    """Raises SpoolError, api.ApiError, nats.errors.Error."""
    version = client.connected_server_version
    if (version.major, version.minor) < LEAST_VERSION:
        raise SpoolError(
            f"spool: nats-server {version.major}.{version.minor} is too old; expected 2.12 or later, which can count"
        )
    asked = (ensure_stream(client, config, births) for config in common_streams(names, replicas))
    if failed := next(filter(None, await asyncio.gather(*asked, return_exceptions=True)), None):  # one keeps no other away
        raise failed


async def ensure_stream(client: "Client", config: Config, births: Births | None = None) -> None:
    """Make it, or see that it is what it would have been made. Raises SpoolError if it is not."""
    name = config["name"]
    try:
        found = await api.ask(client, f"STREAM.CREATE.{name}", config)
    except api.ApiError as error:
        if error.number != api.STREAM_EXISTS:
            raise
        found = await api.ask(client, f"STREAM.INFO.{name}")
    compare(config, found["config"])
    if births is not None:
        births.note(name, found["created"])


def compare(wanted: Config, found: Config) -> None:
    """Raises SpoolError if the stream is not as wanted."""
    name = wanted["name"]
    _compare(f"stream {name}", f"nats stream edit {name}", wanted, found)


async def born(client: "Client", names: Names, stream: str) -> str:
    """When that stream of hits was made. Raises SpoolError if its hits do not go once they are acknowledged. Whatever else may be
    wrong with it is told by who stores, and what is stored is delivered.
    """
    found = await api.ask(client, f"STREAM.INFO.{stream}")
    wanted = {"retention": hits_stream(names, names.site_of(stream), 1)["retention"]}
    _compare(f"stream {stream}", f"nats stream edit {stream}", wanted, found["config"])
    return str(found["created"])


async def ensure_consumer(client: "Client", stream: str) -> str:
    """The one durable consumer of a stream of hits, which all forwarders share; when it was made. Raises SpoolError if it is
    another.
    """
    config = {
        "durable_name": FORWARDERS,
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT_S * SECOND,
        "max_deliver": -1,
        "max_ack_pending": -1,  # those that wait for another try count as well: a limit would let them stop the others
    }
    try:
        made = await api.ask(
            client,
            f"CONSUMER.CREATE.{stream}.{FORWARDERS}",
            {"stream_name": stream, "config": config, "action": "create"},
        )
    except api.ApiError as error:
        if error.number != api.CONSUMER_EXISTS:
            raise
        made = await api.ask(client, f"CONSUMER.INFO.{stream}.{FORWARDERS}")
    _compare(f"consumer {FORWARDERS} of stream {stream}", f"nats consumer edit {stream} {FORWARDERS}", config, made["config"])
    return str(made["created"])


def _compare(what: str, how: str, expected: Config, found: Config) -> None:
    if found.get("persist_mode", "default") != "default":
        raise SpoolError(f"spool: {what}: persist_mode is {found['persist_mode']}, expected default; use another stream=")
    for field, value in expected.items():
        if field not in found and not value:
            continue
        if field == "num_replicas" and found.get(field, 1) >= value:
            continue  # more than enough, while a change goes from host to host
        if found.get(field) != value:
            raise SpoolError(
                f"spool: {what}: {field} is {_plain(field, found.get(field))}, expected {_plain(field, value)}; change it "
                f"(`{how}`; what cannot be changed must be drained and deleted)"
                + (", or set replicas= in the spool's URL" if field == "num_replicas" else ", or name another with stream=")
            )


def _plain(field: str, value: object) -> str:
    if field in ("duplicate_window", "max_age", "ack_wait") and isinstance(value, int):
        return f"{value / SECOND:g} s"
    return "not set" if value is None else str(value)


class Sizes:
    """How much the streams hold, as far as one process has read it. Used on the link's loop."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._known: dict[str, int] = {}
        """Stream → bytes, when it answered last."""

    async def read(self, client: "Client", patience_s: float = SILENT_S, any_site: bool = False) -> int:
        """Bytes of the pending hits and the dead letters, each counted once, however many replicas there are. A silent stream
        counts as when it answered last: that it says nothing makes no room. `any_site`: raises TimeoutError where those of all
        sites are silent.
        """
        (found, silent), [dead] = await asyncio.gather(
            all_of_hits(client, self._names, patience_s), _told(client, [self._names.dead], patience_s)
        )
        if any_site and silent and not found:
            raise TimeoutError
        if not isinstance(dead, Exception):
            found.append(dead)
        elif not _gone(dead):
            silent.append(self._names.dead)
        self._known = {name: self._known.get(name, 0) for name in silent} | {
            stream["config"]["name"]: stream["state"]["bytes"] for stream in found
        }
        return sum(self._known.values())


async def all_of_hits(client: "Client", names: Names, patience_s: float = SILENT_S) -> tuple[list[Any], list[str]]:
    """What each site's stream says of itself, and the names of those that are silent. One request would do for all of them
    (STREAM.LIST), but its answer takes 4 s when one is silent.
    """
    found = await api.ask_all(client, "STREAM.NAMES", "streams", {"subject": names.all_hits})
    told = dict(zip(found, await _told(client, found, patience_s), strict=True))
    silent = [name for name, answer in told.items() if isinstance(answer, Exception) and not _gone(answer)]
    return [answer for answer in told.values() if not isinstance(answer, BaseException)], silent


def _told(client: "Client", names: list[str], patience_s: float) -> "asyncio.Future[list[Any]]":
    """What each of the streams says of itself, or why it says nothing."""
    asked = (api.ask(client, f"STREAM.INFO.{name}", patience_s=patience_s) for name in names)
    return asyncio.gather(*asked, return_exceptions=True)


def _gone(answer: Exception) -> bool:
    return isinstance(answer, api.ApiError) and answer.number == api.STREAM_NOT_FOUND
