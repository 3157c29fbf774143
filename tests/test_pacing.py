"""How much an upstream is sent at once. Pure: the clock is an argument."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.forward.pacing import BEST_WINDOW_MS, OPEN_AFTER, PROBE_BASE_MS, PROBE_CAP_MS, START_LIMIT, Pace, State


def answered(pace: Pace, took_ms: float = 5.0, now_ms: int = 0) -> None:
    pace.began()
    pace.succeeded(took_ms, now_ms)


def failing(pace: Pace, now_ms: int = 0) -> None:
    pace.began()
    pace.failed("ConnectError", now_ms)


def opened(now_ms: int = 0) -> Pace:
    pace = Pace(64)
    for _ in range(OPEN_AFTER):
        failing(pace, now_ms)
    return pace


def fill(pace: Pace, now_ms: int, took_ms: float = 5.0) -> None:
    """A round with every place taken, all answered."""
    n = pace.room(now_ms)
    for _ in range(n):
        pace.began()
    for _ in range(n):
        pace.succeeded(took_ms, now_ms)


def test_the_limit_starts_low_and_doubles_until_trouble() -> None:
    """A backlog after a restart must not begin with a storm."""
    pace = Pace(256)
    assert pace.room(0) == START_LIMIT
    limits = []
    for now in range(4):
        fill(pace, now)
        limits.append(pace.limit)
    assert limits[0] < limits[1] < limits[2] < limits[3] <= START_LIMIT * 2**4


def test_the_limit_never_passes_the_ceiling() -> None:
    """The operator's word."""
    pace = Pace(20)
    for now in range(50):
        fill(pace, now)
    assert pace.limit == pace.room(0) == 20


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    """One request at a time says nothing about what a hundred would do."""
    pace = Pace(256)
    for now in range(100):
        answered(pace, now_ms=now)
    assert pace.limit == START_LIMIT


def test_failures_halve_the_limit_once_for_one_burst() -> None:
    """Those in flight when it began say nothing new."""
    pace = Pace(256)
    for now in range(6):
        fill(pace, now)
    before = pace.limit
    for _ in range(OPEN_AFTER - 1):
        failing(pace, 1000)
    assert pace.limit == before / 2
    answered(pace, now_ms=1500)
    failing(pace, 2500)
    assert pace.limit < before / 2


def test_answers_that_become_slow_lower_the_limit_but_not_below_the_start() -> None:
    """Slow means several times the best of late; an upstream that is slow for good is the new normal after a while."""
    pace = Pace(256)
    for now in range(6):
        fill(pace, now, took_ms=50)
    before = pace.limit
    answered(pace, took_ms=900, now_ms=2000)
    assert pace.limit < before
    for now in range(3000, 20_000, 1000):
        answered(pace, took_ms=900, now_ms=now)
    assert pace.limit >= START_LIMIT
    for window in range(1, 4):
        answered(pace, took_ms=900, now_ms=20_000 + window * (BEST_WINDOW_MS + 1))
    before = pace.limit
    fill(pace, 300_000, took_ms=900)
    assert pace.limit > before


def test_failures_in_a_row_open_the_breaker_and_nothing_passes_but_a_probe() -> None:
    """No attempt is burnt on an upstream that fails everything."""
    pace = opened()
    assert pace.state is State.OPEN
    assert pace.room(PROBE_BASE_MS - 1) == 0
    assert pace.room(PROBE_BASE_MS) == 1
    pace.began()
    assert pace.state is State.PROBING
    assert pace.room(10**6) == 0


def test_probes_come_less_often_but_at_least_every_five_seconds() -> None:
    """0.5 s doubling to 5 s."""
    pace, now, waits = opened(), 0, []
    for _ in range(8):
        wait = next(ms for ms in range(1, 10_000) if pace.room(now + ms))
        now += wait
        waits.append(wait)
        failing(pace, now)
    assert waits == [500, 1000, 2000, 4000, 5000, 5000, 5000, 5000]
    assert max(waits) == PROBE_CAP_MS


def test_a_probe_that_passes_closes_the_breaker_and_starts_low_again() -> None:
    """The backlog of an outage drains without a storm."""
    pace = opened()
    answered(pace, now_ms=PROBE_BASE_MS)
    assert pace.state is State.CLOSED
    assert pace.room(PROBE_BASE_MS) == START_LIMIT


def test_a_probe_that_was_not_sent_after_all_leaves_the_breaker_open() -> None:
    """A hit that turned out to be no beacon says nothing of the upstream."""
    pace = opened()
    pace.began()
    pace.abandoned()
    assert pace.state is State.OPEN
    assert pace.room(PROBE_BASE_MS) == 1


def test_a_failure_is_the_hits_own_only_while_others_pass() -> None:
    """The first failure after a success; never one of a series, and never when half of all fail."""
    pace = Pace(64)
    assert not pace.blames_hit(), "it has taken nothing yet"
    answered(pace)
    assert pace.blames_hit()
    failing(pace)
    assert not pace.blames_hit()
    answered(pace)
    assert pace.blames_hit()
    for _ in range(40):
        failing(pace)
        answered(pace)
        failing(pace)
        failing(pace)
        answered(pace)
    assert not pace.blames_hit()


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "slow", "fail", "abandon"]), st.integers(0, 3000)), max_size=300),
    st.integers(1, 64),
)
def test_whatever_happens_the_bounds_hold(events: list[tuple[str, int]], ceiling: int) -> None:
    """Never more in flight than the limit found, never above the ceiling, never stuck for longer than a probe's wait."""
    pace, now, under_way = Pace(ceiling), 0, 0
    for event, passed in events:
        now += passed
        for _ in range(pace.room(now)):
            pace.began()
            under_way += 1
        assert pace.in_flight == under_way <= max(ceiling, START_LIMIT)
        if under_way == 0:
            assert pace.state is State.OPEN
            assert pace.room(now + PROBE_CAP_MS) == 1
            continue
        under_way -= 1
        if event == "fail":
            pace.failed("500", now)
        elif event == "abandon":
            pace.abandoned()
        else:
            pace.succeeded(2000.0 if event == "slow" else 5.0, now)
        assert 1 <= pace.limit <= max(ceiling, START_LIMIT)
        assert pace.room(now) <= ceiling


def test_a_ceiling_that_falls_to_nothing_lets_nothing_begin_not_even_a_probe() -> None:
    """Where forwarders share an upstream the ceiling is this one's share, and a share can be 0."""
    for pace in (Pace(64), opened()):
        pace.ceiling = 0
        assert pace.room(10**6) == 0
        pace.ceiling = 1
        assert pace.room(10**6) == 1


def test_a_lower_ceiling_is_felt_at_once_by_the_next_decrease() -> None:
    """The limit found above it says nothing any more: to halve it must halve what is in flight."""
    pace = Pace(256)
    for now in range(6):
        fill(pace, now)
    pace.ceiling = 16
    assert pace.room(10) == 16
    failing(pace, 2000)
    assert pace.room(2000) == 8


@given(st.lists(st.tuples(st.sampled_from(["ok", "slow", "fail"]), st.integers(0, 3000), st.integers(0, 20)), max_size=200))
def test_whatever_the_share_becomes_no_more_is_begun_than_that(events: list[tuple[str, int, int]]) -> None:
    """What was begun before it fell may end."""
    pace, now, under_way = Pace(20), 0, 0
    for event, passed, share in events:
        now += passed
        pace.ceiling = share
        for _ in range(pace.room(now)):
            pace.began()
            under_way += 1
            assert under_way <= share
        assert pace.in_flight == under_way
        if under_way:
            under_way -= 1
            pace.failed("500", now) if event == "fail" else pace.succeeded(2000.0 if event == "slow" else 5.0, now)
        assert pace.limit >= 1
