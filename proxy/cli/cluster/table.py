"""What the demo shows: what happens, how the parts are, and what became of the beacons."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Column, Table
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
            ("kept by nginx", self.kept, "no collector could store it: ingested at the end"),
            ("stored", self.stored, "by two of the three brokers at least"),
            ("pending", self.pending, "stored, not delivered yet"),
            ("delivered", self.delivered, "by the forwarders"),
            ("counted", self.counted, f"by the vendor; identical copies on top: {self.copies:,}"),
            ("missing", "…" if self.missing is None else self.missing, "answered 200, and never counted"),
        ]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(*(Column(no_wrap=True) for _ in range(3)), box=None, show_header=False, padding=(0, 1))
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


class Scene:
    """All of it on one screen: of the events as many of the latest as there is room for, a line each."""

    def __init__(self, events: Sequence[str], parts: Sequence[Part], account: Account) -> None:
        self._events, self._parts, self._account = events, parts, account

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        below = Group(
            "",
            parts_line(self._parts, self._account.leader),
            Text("* leads the stream of beacons   red: killed, or not there yet", "dim", no_wrap=True),
            "",
            self._account.table(),
        )
        room = console.height - 1 - len(console.render_lines(below, options))  # the last line is the cursor's
        yield from (Text(event, no_wrap=True, overflow="ellipsis") for event in self._events[-max(1, room) :])
        yield below
