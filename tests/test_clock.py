"""Wall clocks jump. No jump may make hits too old, or put them off for good."""

import pytest

from proxy.forward import clock
from proxy.forward.clock import JUMP_MS, Clock, Seen, follow

HOUR, YEAR = 3_600_000, 365 * 86_400_000
T = 1_700_000_000_000


@pytest.mark.parametrize("jump", [YEAR, -YEAR, HOUR, -HOUR])
def test_a_jump_within_one_boot_is_seen(jump: int) -> None:
    """The boot clock did not move by as much."""
    before = Seen(T, 5000, "boot", T - HOUR)
    assert follow(before, T + 1000 + jump, 6000, "boot").steady_since_ms == T + 1000 + jump
    assert follow(before, T + 1000, 6000, "boot").steady_since_ms == T - HOUR


def test_slewing_and_suspension_are_no_jumps() -> None:
    """The boot clock counts suspension; small differences are NTP's work."""
    before = Seen(T, 5000, "boot", T - HOUR)
    assert follow(before, T + 8 * HOUR + JUMP_MS - 1, 5000 + 8 * HOUR, "boot").steady_since_ms == T - HOUR


def test_a_clock_that_ran_backwards_across_a_boot_is_seen() -> None:
    """A machine without a battery wakes up in 1970."""
    before = Seen(T, 5000, "boot", T - HOUR)
    assert follow(before, 0, 100, "next boot").steady_since_ms == 0
    assert follow(before, T + 8 * HOUR, 100, "next boot").steady_since_ms == T - HOUR


def test_ages_are_not_counted_from_before_a_jump_and_due_times_run_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit received before a jump of a year is not a year old; one received an hour ago by a steady clock is an hour old."""
    wall, boot = T, 1000
    monkeypatch.setattr(clock, "_wall_ms", lambda: wall)
    monkeypatch.setattr(clock, "_boot_ms", lambda: boot)
    ours = Clock(Seen(T - HOUR, 1000 - HOUR, clock._boot_id(), T - YEAR))
    assert ours.age_ms(T - HOUR) == HOUR
    wall, boot = wall + YEAR + 1000, boot + 1000
    assert ours.look()
    assert ours.age_ms(T) == 0
    assert ours.now_ms() == T + 1000
    wall, boot = wall + 500, boot + 500
    assert not ours.look()
    assert ours.age_ms(T) == 500
    assert ours.age_ms(wall + HOUR) < 0, "a hit from a wrong future is not old"
