"""How the forwarders of one spool share an upstream: the rule. Pure; time is passed in, and it is this machine's own clock alone.

Each forwarder leaves its claim for all others to read, then reads theirs; and it never has more in flight than it claims.
    share   = ceiling // forwarders, one more for the first `ceiling % forwarders` by id (0: it sends nothing)
    claim   = the most of: the share, what it may use now, what it has in flight
    may use = what it may use already, or what the others' claims leave free, up to its share and to the claim it left
Less is used at once, more only after the claim was left and the others' claims were read, in this order. So of any two who raise
theirs, the one who reads last sees what the other left (Dekker's rule): their sum is within the ceiling, however late or slow
anybody is. What may be used is used for STALE_MS after the last such turn; of a forwarder that is silent for longer than that
and its attempts can last, nothing is in flight any more, and the others count it out.

Who cannot leave a claim since the spool is full has one request at a time, where those of the others leave it: else nothing would
ever make room. So the sum may pass the ceiling, by one for each such forwarder.
"""

from collections.abc import Iterable, Mapping

import msgspec

from proxy.spool.peers import Left

STALE_MS = 5_000
"""Without a turn for so long nothing more is begun."""
MARGIN_MS = STALE_MS
"""A forwarder is counted out when it was silent for longer than STALE_MS and an attempt by so much: a turn that was begun within
STALE_MS may itself take as long, and an attempt may begin, and end, a little late."""
SILENT_MS = 2_500
"""One who has left nothing new for so long may have died."""


class Claim(msgspec.Struct, frozen=True):
    """Of one forwarder, on one upstream."""

    ceiling: int
    """As it was set there. Where they differ (while a change is rolled out), the least is everybody's."""
    claim: int
    """It has no more in flight, and will not have before it claims more."""


class Words(msgspec.Struct, frozen=True):
    """What a forwarder leaves for the others."""

    gone_after_ms: int
    """If it is silent for so long, nothing it sent is in flight any more."""
    upstreams: dict[str, Claim]


def fair_share(ceiling: int, ids: Iterable[str], me: str) -> int:
    """Of one among `ids`. The sum over all of them is the ceiling."""
    order = sorted(ids)
    each, over = divmod(ceiling, len(order))
    return each + (order.index(me) < over)


class _Share:
    """Of one upstream."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.fair = self.free = 0
        """What it should be, and what the others' claims leave, by the last reading."""
        self.usable = 0
        self.claimed = 0
        """What was left for the others to read."""

    def claim(self, in_flight: int) -> int:
        return max(self.fair, self.usable, in_flight)

    def read(self, me: str, others: Mapping[str, Claim]) -> None:
        """After our claim was left."""
        self.look(me, others)
        self.usable = min(self.fair, max(self.usable, min(self.claimed, self.free)))

    def look(self, me: str, others: Mapping[str, Claim]) -> None:
        ceiling = min(self.ceiling, *(other.ceiling for other in others.values())) if others else self.ceiling
        self.free = ceiling - sum(other.claim for other in others.values())
        self.fair = fair_share(ceiling, [me, *others], me)


class Roll:
    """Who is at work, by when this forwarder first saw what they left last: no clock is compared with another's."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}
        """Who → the mark, and when it was first read."""

    def call(self, left: Mapping[str, tuple[int, int]], asked_ms: int, got_ms: int) -> set[str]:
        """Who of `left` (who → mark, gone_after_ms) is at work. `asked_ms`, `got_ms`: before and after the reading."""
        before, self._seen = self._seen, {}
        living = set()
        for who, (mark, gone_after_ms) in left.items():
            old_mark, since_ms = before.get(who, (None, got_ms))
            self._seen[who] = (mark, since_ms if mark == old_mark else got_ms)
            if asked_ms - self._seen[who][1] <= gone_after_ms:
                living.add(who)
        return living

    def silent_ms(self, who: str, now_ms: int) -> int:
        """For how long nothing new was read of it."""
        return now_ms - self._seen[who][1]


class Sharing:
    """One forwarder's side of it: `words` before each turn, `hear` after it, `share` whenever a request is to begin."""

    def __init__(self, me: str, ceilings: Mapping[str, int], attempt_timeout_ms: int) -> None:
        self._me = me
        self._gone_after_ms = STALE_MS + attempt_timeout_ms + MARGIN_MS
        self._shares = {upstream: _Share(ceiling) for upstream, ceiling in ceilings.items()}
        self._roll = Roll()
        self._turn_ms: int | None = None
        """When the last turn began that was completed."""
        self.waits_for: dict[str, int] = {}
        """Forwarders that are silent, and whose claims leave nothing for us somewhere → ms until they are counted out."""
        self._crowded_ms: int | None = None
        """When others were last heard without our words being left, for want of room."""

    def words(self, in_flight: Mapping[str, int], now_ms: int) -> bytes:
        """What to leave. Who was silent for too long may have been counted out, and begins anew."""
        for upstream, share in self._shares.items():
            if not self._may_use(now_ms):
                share.usable = 0
            share.claimed = share.claim(in_flight[upstream])
        claims = {upstream: Claim(share.ceiling, share.claimed) for upstream, share in self._shares.items()}
        return msgspec.json.encode(Words(self._gone_after_ms, claims))

    def hear(self, left: Iterable[Left], asked_ms: int, got_ms: int, crowded_out: bool = False) -> list[Left]:
        """What all others have left, read after the words were, unless the spool had no room for them. Those who are gone, to be
        forgotten.
        """
        everybody = list(left)
        said = {one.who: self._understood(one.words) for one in everybody}
        living = self._roll.call({one.who: (one.mark, said[one.who].gone_after_ms) for one in everybody}, asked_ms, got_ms)
        silent = {who: ms for who in living if (ms := self._roll.silent_ms(who, asked_ms)) >= SILENT_MS}
        self.waits_for = {}
        for upstream, share in self._shares.items():
            claims = {who: said[who].upstreams[upstream] for who in living if upstream in said[who].upstreams}
            (share.look if crowded_out else share.read)(self._me, claims)
            if share.fair and not share.usable and share.free <= 0:
                self.waits_for |= {who: said[who].gone_after_ms - ms for who, ms in silent.items() if who in claims}
        if crowded_out:
            self._crowded_ms = asked_ms
        else:
            self._turn_ms = asked_ms
        return [one for one in everybody if one.who not in living]

    def share(self, upstream: str, now_ms: int) -> int:
        """Most requests in flight there just now."""
        share = self._shares[upstream]
        if self._may_use(now_ms):
            return share.usable
        crowded_out = self._crowded_ms is not None and now_ms - self._crowded_ms <= STALE_MS
        return int(crowded_out and min(share.fair, share.free) > 0)

    def fair(self, upstream: str) -> int:
        """What that will be once all have read of each other."""
        return self._shares[upstream].fair

    def has_news(self, in_flight: Mapping[str, int]) -> bool:
        """Whether it would claim something else by now: others may wait for it."""
        return any(share.claim(in_flight[upstream]) != share.claimed for upstream, share in self._shares.items())

    def _may_use(self, now_ms: int) -> bool:
        return self._turn_ms is not None and now_ms - self._turn_ms <= STALE_MS

    def _understood(self, words: bytes) -> Words:
        """What cannot be read may claim anything: nobody raises his claim beside it."""
        try:
            return msgspec.json.decode(words, type=Words)
        except msgspec.DecodeError:
            anything = {upstream: Claim(share.ceiling, share.ceiling) for upstream, share in self._shares.items()}
            return Words(self._gone_after_ms, anything)
