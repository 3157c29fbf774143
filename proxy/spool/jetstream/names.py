"""What streams and subjects are called. A site's name is one token of a subject, and part of a stream's name.

NATS allows neither spaces nor `.`, `*` and `>` in a token, nor slashes in a stream's name (docs.nats.io, "Subjects", "Streams").
"""

import re

FORWARDERS = "forwarder"
"""The durable consumer of each stream of hits: all forwarders are one to the server, which deals hits out among them."""
REPLAYED = "replayed"
"""A count beside the port's: dead letters that were made pending again. They were stored twice, and were received once."""
BY_COLLECTOR = "collector."
"""Before the name of an outcome that a collector counted: its hit was received, and never stored."""
ANY = "*"
HIT_ID = "Nats-Msg-Id"
_PLAIN = re.compile(r"[A-Za-z0-9-]")


def token(name: str) -> str:
    """Reversible; `_` and what is not plain becomes `_` and two hex digits for each byte."""
    return "".join(char if _PLAIN.match(char) else "".join(f"_{byte:02x}" for byte in char.encode()) for char in name) or "_"


def untoken(token: str) -> str:
    """The name again."""
    if token == "_":  # noqa: S105
        return ""
    return re.sub(
        r"((?:_[0-9a-f]{2})+)", lambda match: bytes.fromhex(match[1].replace("_", "")).decode("utf-8", "replace"), token
    )


class Names:
    """The names under one base."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.all_hits = f"{base}.hits.>"
        self.dead, self.ledger, self.state = f"{base}_dead", f"{base}_ledger", f"{base}_state"
        self.all_dead, self.all_counts, self.all_states = f"{base}.dead.>", f"{base}.ledger.>", f"{base}.state.>"
        self.figures = self.state_of("forwarders", "figures")
        """What all forwarders have counted."""
        self.tap, self.watchers = f"{base}.tap", f"{base}.watchers"

    def hits_stream(self, site: str) -> str:
        return f"{self.base}_hits_{token(site)}"

    def site_of(self, hits_stream: str) -> str:
        return untoken(hits_stream.removeprefix(f"{self.base}_hits_"))

    def hits(self, site: str) -> str:
        """The subject of that site's hits."""
        return f"{self.base}.hits.{token(site)}"

    def dead_letter(self, site: str, outcome: str) -> str:
        return f"{self.base}.dead.{token(site)}.{token(outcome)}"

    def count(self, site: str, name: str) -> str:
        return f"{self.base}.ledger.{token(site)}.{token(name)}"

    def state_of(self, who: str, id: str) -> str:
        return f"{self.base}.state.{who}.{id if id == ANY else token(id)}"

    def site_and_name(self, subject: str) -> tuple[str, str]:
        """Of a dead letter's or a count's subject."""
        return untoken(subject.split(".")[-2]), untoken(subject.split(".")[-1])
