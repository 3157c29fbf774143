"""What time it is for the forwarder, when the wall clock cannot be believed.

Due times are told by a clock that starts at the wall's time and then runs evenly. A hit's age is counted from its receipt, but
never from before the last jump of the wall clock that was seen: a clock that jumps must not make all that waits "too old".
"""

import time
from pathlib import Path

import msgspec

JUMP_MS = 30_000
"""A difference between wall and boot clock that no slewing explains."""


class Seen(msgspec.Struct, frozen=True):
    """One look at the clocks; kept with the spool, so that a jump while nothing ran is noticed too."""

    wall_ms: int
    boot_ms: int
    """Time since this boot, suspension included."""
    boot_id: str
    steady_since_ms: int
    """Wall time of the last jump seen, or of the first look."""


def follow(before: Seen | None, wall_ms: int, boot_ms: int, boot_id: str) -> Seen:
    """The next look. Within one boot the two clocks must agree; across boots the wall may at least not run backwards."""
    if before is None:
        steady = False
    elif before.boot_id == boot_id and boot_ms >= before.boot_ms:  # a service may not be told the boot's id
        steady = abs((wall_ms - before.wall_ms) - (boot_ms - before.boot_ms)) <= JUMP_MS
    else:
        steady = wall_ms >= before.wall_ms - JUMP_MS
    return Seen(wall_ms, boot_ms, boot_id, before.steady_since_ms if before is not None and steady else wall_ms)


class Clock:
    """Even time, and ages."""

    def __init__(self, before: Seen | None = None) -> None:
        self.seen = follow(before, _wall_ms(), _boot_ms(), _boot_id())
        self._offset_ms = self.seen.wall_ms - self.seen.boot_ms

    def look(self) -> bool:
        """Look at the clocks, once a second or so. True if the wall clock has jumped."""
        before = self.seen
        self.seen = follow(before, _wall_ms(), _boot_ms(), before.boot_id)
        return self.seen.steady_since_ms != before.steady_since_ms

    def now_ms(self) -> int:
        """Milliseconds since the epoch as it was known at the start; never jumps."""
        return _boot_ms() + self._offset_ms

    def age_ms(self, received_ms: int) -> int:
        """How long ago, as far as the clock can be believed."""
        return _wall_ms() - max(received_ms, self.seen.steady_since_ms)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _boot_ms() -> int:
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
