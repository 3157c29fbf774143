"""A histogram that several processes can fill, each its own, and another can add up and show. Pure: no clock, no I/O.

The buckets are fixed, so that those of several processes and versions can be added (Prometheus: "le" labels, cumulative).
"""

from bisect import bisect_left

import msgspec

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for times."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
"""Upper bounds for numbers of beacons."""


class Histogram(msgspec.Struct):
    """How often what was observed lay at or below each bound, and above the bound before; the last count is for all above.

    Raises ValueError (read from JSON: msgspec.ValidationError) where counts and bounds don't belong together.
    """

    bounds: tuple[float, ...]
    counts: list[int] = []
    sum: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)
        if len(self.counts) != len(self.bounds) + 1 or min(self.counts) < 0:
            raise ValueError(f"expected {len(self.bounds) + 1} counts, none below 0")

    def observe(self, value: float) -> None:
        """Count one, 0 or greater."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: "Histogram") -> None:
        """Count all that another counted. One of other bounds (another version's) is left out."""
        if other.bounds == self.bounds:
            self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
            self.sum += other.sum

    def cumulative(self) -> list[tuple[str, int]]:
        """(bound as Prometheus writes it, how many at or below it), the last one "+Inf"."""
        total, found = 0, []
        for bound, n in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += n
            found.append((bound, total))
        return found

    def since(self, before: "Histogram") -> "Histogram":
        """What was counted after `before`, an earlier reading of this one; all of it if it is not."""
        if before.bounds != self.bounds or len(before.counts) != len(self.counts):
            return self
        counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        return self if min(counts) < 0 else Histogram(self.bounds, counts, self.sum - before.sum)

    def quantile(self, share: float) -> float | None:
        """At or below which value that share lies (0.99: p99), as far as buckets tell: straight lines between bounds, and the
        highest bound for all above it. None if nothing was counted."""
        wanted, below, total = share * sum(self.counts), 0.0, 0
        if not sum(self.counts):
            return None
        for bound, n in zip(self.bounds, self.counts, strict=False):
            if n and total + n >= wanted:
                return below + (bound - below) * (wanted - total) / n
            total, below = total + n, bound
        return below
