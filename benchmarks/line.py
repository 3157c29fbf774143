"""A line of the table: what was measured, against what, what is to be reached, and what was found in each round."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple


class Line(NamedTuple):
    """`found` has a figure for each round; their median is held against `reach`."""

    what: str
    against: str
    reach: float | None
    """None where there is nothing to reach: the figure is for information."""
    found: list[float]
    form: Callable[[float], str] = "{:.2f}".format
    at_least: bool = True
    """Whether more is better."""
    context: Any = None
    """The raw figures behind it."""

    @property
    def holds(self) -> bool | None:
        """Whether the median reaches what is to be reached; None if there is nothing to reach."""
        if self.reach is None:
            return None
        median = statistics.median(self.found)
        return median >= self.reach if self.at_least else median <= self.reach

    def row(self) -> tuple[str, str, str, str, str]:
        """Cells of the table."""
        if self.reach is None:
            return self.what, self.against, "—", self.spread(), "—"
        sign = "≥" if self.at_least else "≤"
        return self.what, self.against, f"{sign} {self.form(self.reach)}", self.spread(), "yes" if self.holds else "NO"

    def spread(self) -> str:
        """Median, least and greatest."""
        form, found = self.form, self.found
        if len(found) == 1:
            return form(found[0])
        return f"{form(statistics.median(found))} ({form(min(found))}–{form(max(found))})"


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int = 5
    seconds: float = 4.0
    scale: float = 1.0
    """Of the numbers of beacons."""


QUICK = Effort(1, 1.0, 0.02)
"""A smoke test: that it runs and every answer is right; the figures mean little."""


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
