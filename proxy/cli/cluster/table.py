"""The demo's live table: how the parts are, and what became of the beacons."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from proxy.cli.cluster.part import Part


@dataclass
class Account:
    """What is known just now."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    kept: int = 0
    stored: int = 0
    pending: int = 0
    delivered: int = 0
    counted: int = 0
    copies: int = 0
    missing: int | None = None
    """None while some may still be on their way."""
    leader: str = ""

    @property
    def kept_promise(self) -> bool:
        """Whether there was something to be counted, and nothing is missing."""
        return not self.missing and (self.answered > 0 or self.sent == 0)

    def verdict(self) -> str:
        """In a line, at the end."""
        if self.missing:
            return "BEACONS ARE MISSING."
        return "All that was answered 200 was counted." if self.kept_promise else "NOTHING WAS ANSWERED 200."

    def rows(self) -> list[tuple[str, int | str, str]]:
        """What, how many, and what that means."""
        return [
            ("sent", self.sent, "by the load, through nginx"),
            ("answered 200", self.answered, "each is a promise"),
            ("not answered 200", self.refused, "nothing was promised"),
            ("kept by nginx", self.kept, "no collector could store it: taken in at the end (ingest)"),
            ("stored", self.stored, "by two of the three brokers at least"),
            ("pending", self.pending, "stored, not delivered yet"),
            ("delivered", self.delivered, "by the forwarders"),
            ("counted", self.counted, f"by the vendor; identical copies that did not count: {self.copies:,}"),
            ("missing", "…" if self.missing is None else self.missing, "answered 200, and never counted"),
        ]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(box=None, show_header=False, padding=(0, 1))
        for what, n, meaning in self.rows():
            style = "" if what != "missing" else "bold red" if self.missing else "bold green"
            table.add_row(Text(what, style), Text(f"{n:>9,}" if isinstance(n, int) else f"{n:>9}", style), Text(meaning, "dim"))
        return table


def parts_line(parts: Sequence[Part], leader: str) -> Text:
    """Who is there, and who leads."""
    text = Text()
    for part in parts:
        leads = "*" if part.name == leader else ""
        text.append(f"{part.name}{leads}", "green" if part.alive else "bold white on red").append("  ")
    return text
