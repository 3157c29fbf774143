"""The rule by which forwarders share an upstream, against a pretended stream, network and clocks that do their worst."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.forward.sharing import MARGIN_MS, STALE_MS, Sharing, Words, fair_share
from proxy.spool.peers import Left

UPSTREAM = "http://vendor.example"
ATTEMPT_MS = 3_000
LONG_PLAYS = 1000


class Stream:
    """One order of messages for everybody; the last of each sender."""

    def __init__(self) -> None:
        self.sequence = 0
        self.last: dict[str, Left] = {}

    def store(self, who: str, words: bytes) -> None:
        self.sequence += 1
        self.last[who] = Left(who, self.sequence, words)

    def forget(self, gone: Left) -> None:
        if (there := self.last.get(gone.who)) is not None and there.mark <= gone.mark:
            del self.last[gone.who]


class One:
    """A forwarder that starts as many requests as it may, whenever it is asked to."""

    def __init__(self, who: str, stream: Stream, ceiling: int) -> None:
        self.who, self.stream = who, stream
        self.sharing = Sharing(who, {UPSTREAM: ceiling}, ATTEMPT_MS)
        self.ends: list[int] = []
        """When its requests end."""
        self.turn: tuple[int, bytes] | None = None
        self.stored = False
        self.read: list[Left] | None = None
        self.alive, self.cut_off = True, False

    def in_flight(self, now: int) -> int:
        self.ends = [end for end in self.ends if end > now]
        return len(self.ends)

    def send(self, now: int, took_ms: int) -> None:
        if self.alive:
            self.ends += [now + took_ms] * max(0, self.sharing.share(UPSTREAM, now) - self.in_flight(now))

    def begin(self, now: int) -> None:
        self.turn = (now, self.sharing.words({UPSTREAM: self.in_flight(now)}, now))
        self.stored, self.read = False, None

    def step(self, now: int) -> None:
        """The next part of a turn: it leaves its words, reads the others', and hears them; each may be late."""
        if not self.alive:
            return
        if self.turn is None:
            self.begin(now)
        elif not self.stored:
            self.stream.store(self.who, self.turn[1])
            self.stored = True
        elif self.read is None:
            self.read = [left for left in self.stream.last.values() if left.who != self.who]
        else:
            for gone in self.sharing.hear(self.read, self.turn[0], now):
                self.stream.forget(gone)
            self.turn = None

    def whole_turn(self, now: int) -> None:
        self.turn = None
        for _ in range(4):
            self.step(now)

    def lose_turn(self) -> None:
        """No answer came; what it left may be there or not."""
        self.turn = None

    def die(self) -> None:
        """kill -9: what it sent goes on at the upstream."""
        self.alive = False

    def leave(self, now: int) -> None:
        if self.alive and not self.in_flight(now):
            self.alive = False
            self.stream.last.pop(self.who, None)


def shares(some: Sequence[One], now: int) -> list[int]:
    return [one.sharing.share(UPSTREAM, now) for one in some]


def settle(some: Sequence[One], now: int, rounds: int = 4) -> int:
    for _ in range(rounds):
        now += 1000
        for one in some:
            one.whole_turn(now)
    return now


@given(st.integers(1, 300), st.sets(st.text(max_size=5), min_size=1, max_size=40))
def test_fair_shares_are_alike_and_make_the_ceiling(ceiling: int, ids: set[str]) -> None:
    """Whoever computes them."""
    found = [fair_share(ceiling, ids, me) for me in sorted(ids)]
    assert sum(found) == ceiling
    assert max(found) - min(found) <= 1
    assert found == sorted(found, reverse=True)


def test_one_that_is_alone_has_the_whole_ceiling_after_two_turns() -> None:
    """The first only tells that it is: no time need pass between them."""
    one = One("a", Stream(), 128)
    assert shares([one], 0) == [0]
    one.whole_turn(0)
    one.whole_turn(0)
    assert shares([one], 0) == [128]


def test_who_joins_waits_until_the_others_have_lowered_theirs_and_finished() -> None:
    """It has what they leave, as they leave it."""
    stream = Stream()
    old, new = One("a", stream, 10), One("b", stream, 10)
    settle([old], 0)
    old.send(4000, 2500)
    new.whole_turn(4000)
    new.whole_turn(4000)
    assert shares([old, new], 4000) == [10, 0]
    old.whole_turn(5000)
    new.whole_turn(5000)
    assert shares([old, new], 5000) == [5, 0]
    assert old.in_flight(5000) == 10
    assert old.in_flight(6500) == 0
    old.whole_turn(6500)
    new.whole_turn(6500)
    assert shares([old, new], 6500) == [5, 5]


def test_who_leaves_leaves_his_share_and_who_dies_keeps_it_for_a_time() -> None:
    """A stopped one has ended what it sent; the requests of one that was killed may still be under way."""
    stream = Stream()
    three = [One(who, stream, 9) for who in "abc"]
    now = settle(three, 0)
    assert shares(three, now) == [3, 3, 3]
    three[1].leave(now)
    rest = [three[0], three[2]]
    now = settle(rest, now)
    assert shares(rest, now) == [5, 4]
    three[2].die()
    silent = 0
    while shares(rest[:1], now) == [5]:
        now = settle(rest[:1], now, 1)
        silent += 1000
    assert STALE_MS + ATTEMPT_MS + MARGIN_MS < silent <= STALE_MS + ATTEMPT_MS + MARGIN_MS + 3000
    now = settle(rest[:1], now)
    assert shares(rest[:1], now) == [9]
    assert set(stream.last) == {"a"}, "what the dead one left is swept away"


def test_who_waits_for_the_share_of_the_dead_knows_it() -> None:
    """All were killed, and one was started at once: it may send nothing, and says why; not while others are only slow."""
    stream = Stream()
    dead = [One(who, stream, 4) for who in "ab"]
    now = settle(dead, 0)
    new = One("c", stream, 4)
    new.whole_turn(now)
    assert new.sharing.waits_for == {}
    now = settle([new], now, 3)
    assert shares([new], now) == [0]
    assert set(new.sharing.waits_for) == {"a", "b"}
    waited = max(new.sharing.waits_for.values())
    now = settle([new], now, 2 + waited // 1000)
    assert (shares([new], now), new.sharing.waits_for) == ([4], {})


def test_who_cannot_reach_the_others_sends_nothing_after_a_while_and_then_joins_anew() -> None:
    """They count it out, and share what was its."""
    stream = Stream()
    cut, other = One("a", stream, 8), One("b", stream, 8)
    now = settle([cut, other], 0)
    assert shares([cut, other], now) == [4, 4]
    last = now
    now = settle([other], now, STALE_MS // 1000)
    assert shares([cut], now) == [4]
    now = settle([other], now, 20)
    assert shares([cut, other], now) == [0, 8]
    assert shares([cut], last + STALE_MS) == [4]
    cut.whole_turn(now)
    assert shares([cut, other], now) == [0, 8]
    now = settle([cut, other], now)
    assert shares([cut, other], now) == [4, 4]


def test_of_different_ceilings_the_least_is_everybodys() -> None:
    """A change of the setting that is rolled out, machine by machine."""
    stream = Stream()
    some = [One("a", stream, 40), One("b", stream, 10)]
    now = settle(some, 0)
    assert shares(some, now) == [5, 5]


def test_more_forwarders_than_the_ceiling_leave_some_with_nothing() -> None:
    """The operator's word is kept."""
    stream = Stream()
    some = [One(who, stream, 2) for who in "abcd"]
    now = settle(some, 0)
    assert shares(some, now) == [1, 1, 0, 0]


def test_words_that_cannot_be_read_may_claim_anything() -> None:
    """A newer version's, perhaps: nobody takes more beside them, and they are swept away if they never change."""
    stream = Stream()
    one = One("a", stream, 8)
    stream.store("z", b"?")
    now = settle([one], 0)
    assert shares([one], now) == [0]
    now = settle([one], now, 20)
    assert shares([one], now) == [8]


def test_the_time_after_which_one_is_gone_is_its_own() -> None:
    """Its attempts may last longer than those of who reads it."""
    words = msgspec.json.decode(Sharing("a", {UPSTREAM: 1}, 60_000).words({UPSTREAM: 0}, 0), type=Words)
    assert words.gone_after_ms == 60_000 + STALE_MS + MARGIN_MS


def test_where_words_find_no_room_one_request_at_a_time_makes_some() -> None:
    """As far as the claims of others leave it, and not beside what may be used from before. With room all is as ever."""
    stream = Stream()
    crowded, other = One("a", stream, 4), One("b", stream, 4)

    def look(now: int) -> None:
        crowded.begin(now)
        crowded.sharing.hear([left for left in stream.last.values() if left.who != "a"], now, now, crowded_out=True)

    look(0)
    assert shares([crowded], 0) == [1]
    assert shares([crowded], STALE_MS + 1) == [0]
    now = settle([other], STALE_MS)
    look(now)
    assert shares([crowded, other], now) == [0, 4]
    now = settle([crowded, other], now)
    look(now)
    assert shares([crowded, other], now) == [2, 2]
    now += STALE_MS + 1
    look(now)
    assert shares([crowded], now) == [1]
    crowded.turn = None
    now = settle([crowded, other], now)
    assert shares([crowded, other], now) == [2, 2]


CALLS = ["step"] * 12 + ["turn"] * 6 + ["pass"] * 3 + ["lose", "cut off", "die", "leave", "join"]
Event = tuple[str, int, int]
EVENTS = st.lists(
    st.tuples(st.sampled_from(CALLS), st.integers(0, 3), st.one_of(st.integers(0, 400), st.integers(0, 20_000))), max_size=200
)


def played(events: Sequence[Event], ceiling: int, n: int) -> tuple[int, list[One], int]:
    """What came of it: the most that was in flight at once, who lives, and the time. Everybody always sends all he may."""
    stream, now, most = Stream(), 0, 0
    some = [One(f"{number:03}", stream, ceiling) for number in range(n)]
    for call, number, ms in events:
        one = some[number % len(some)]
        if call == "pass":
            now += ms
        elif call == "cut off":
            one.cut_off = not one.cut_off
        elif call == "step" and not one.cut_off:
            one.step(now)
        elif call == "turn" and one.alive and not one.cut_off:
            one.whole_turn(now)
        elif call == "lose":
            one.lose_turn()
        elif call == "die":
            one.die()
        elif call == "leave":
            one.leave(now)
        elif call == "join" and len(some) < 12:
            some.append(One(f"{len(some):03}", stream, ceiling))
        for each in some:
            each.send(now, ms % ATTEMPT_MS)
        most = max(most, sum(each.in_flight(now) for each in some))
        now += 7
    return most, [one for one in some if one.alive], now


@settings(max_examples=200)
@given(EVENTS, st.integers(1, 20), st.integers(1, 3))
def test_whatever_happens_no_more_is_in_flight_than_the_ceiling(events: list[Event], ceiling: int, n: int) -> None:
    """Turns of all forwarders are torn apart and mixed, late or lost; some die, some are cut off for long."""
    assert played(events, ceiling, n)[0] <= ceiling


@settings(max_examples=50)
@given(EVENTS, st.integers(1, 20), st.integers(1, 3))
def test_when_nothing_changes_any_more_each_has_its_fair_share(events: list[Event], ceiling: int, n: int) -> None:
    """Whatever happened before: within the time in which a dead one is counted out, and some turns."""
    _, living, now = played(events, ceiling, n)
    now = settle(living, now, 4 + (STALE_MS + ATTEMPT_MS + MARGIN_MS) // 1000)
    ids = [one.who for one in living]
    assert shares(living, now) == [fair_share(ceiling, ids, one.who) for one in living]


def long_plays(n: int) -> Iterator[tuple[list[Event], int, int]]:
    """The same ones each time, longer than those above."""
    chance = random.Random(7)
    for _ in range(n):
        events = [(chance.choice(CALLS), chance.randrange(4), chance.choice((5, 300, 1000, 2500, 4000))) for _ in range(150)]
        yield events, chance.randint(2, 9), chance.randint(1, 3)


def test_no_long_play_breaks_the_rule() -> None:
    """As many as below, where they break all that are wrong."""
    for events, ceiling, n in long_plays(LONG_PLAYS):
        assert played(events, ceiling, n)[0] <= ceiling


@pytest.mark.parametrize("broken", ["read before writing", "counted out too soon", "kept for ever", "raised at once"])
def test_a_rule_that_is_wrong_is_found_out(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the simulation would prove nothing."""
    if broken == "read before writing":
        monkeypatch.setattr(One, "step", _read_before_write)
    elif broken == "counted out too soon":
        monkeypatch.setattr("proxy.forward.sharing.MARGIN_MS", -STALE_MS)
    elif broken == "kept for ever":
        monkeypatch.setattr(Sharing, "_may_use", lambda self, now_ms: True)
    else:
        monkeypatch.setattr("proxy.forward.sharing._Share.read", _raised_at_once)
    assert any(played(events, ceiling, n)[0] > ceiling for events, ceiling, n in long_plays(LONG_PLAYS))


def _raised_at_once(self: Any, me: str, others: dict[str, Any]) -> None:
    self.fair = self.usable = fair_share(self.ceiling, [me, *others], me)


def _read_before_write(self: One, now: int) -> None:
    if self.turn is None:
        self.begin(now)
        self.read = [left for left in self.stream.last.values() if left.who != self.who]
    elif self.alive:
        self.stream.store(self.who, self.turn[1])
        self.sharing.hear(self.read or [], self.turn[0], now)
        self.turn = None
