"""What can be seen of beacons as they go: the last few, for the status page, and each one for whoever watches (`tail`).

It is put into words only when somebody looks, so that it costs an attempt nothing worth naming. The key is in none of it.
"""

from collections import deque
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from proxy.delivery import Final, Verdict
from proxy.forward.sign import UpstreamRequest
from proxy.hit import Hit
from proxy.spool.port import Outlet, Tapped

KEPT, KEPT_MS = 20, 600_000
RETRY = "retry"
OF_THE_API = frozenset({"_k", "_p", "_n", "_t", "_d"})


class Seen(NamedTuple):
    """One attempt, or the end of a hit that was never sent (`request` None)."""

    at_ms: int
    hit: Hit
    request: UpstreamRequest | None
    verdict: Verdict
    attempt: int
    age_ms: int


class Watch:
    """Remembers the last, and shows each to those who watch."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._last: deque[Seen] = deque(maxlen=KEPT)

    def see(self, seen: Seen) -> None:
        """An attempt was made, or a hit ended."""
        self._last.append(seen)
        if self._outlet.watched():
            self._outlet.show(in_words(seen))

    def last(self, now_ms: int) -> list[Tapped]:
        """The latest first. What was handled longer than KEPT_MS ago is forgotten: what is delivered is nobody's to keep."""
        while self._last and now_ms - self._last[0].at_ms > KEPT_MS:
            self._last.popleft()
        return [in_words(seen) for seen in reversed(self._last)]


def in_words(seen: Seen) -> Tapped:
    """What was sent, read back from the request itself."""
    hit, verdict = seen.hit, seen.verdict
    sent: dict[str, str] = {}
    if seen.request is not None:
        form = urlsplit(seen.request.url).query if seen.request.body is None else seen.request.body.decode("ascii")
        sent = dict(parse_qsl(form, keep_blank_values=True))
    return Tapped(
        at_ms=seen.at_ms,
        site=hit.site,
        outcome=verdict.outcome.value if isinstance(verdict, Final) else RETRY,
        kind=hit.kind,
        name=sent.get("_n", ""),
        person=sent.get("_p", ""),
        properties={name: value for name, value in sent.items() if name not in OF_THE_API},
        answer=verdict.answer,
        attempt=seen.attempt,
        age_ms=seen.age_ms,
    )
