"""One filter list in the engine that browsers use (adblock-rust): does it block an address, and by which rule?

A visitor may have any lists, so each is asked alone, with its own exceptions. What a list says is input from elsewhere: whatever
its bytes are, it gives answers or CannotRead.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

TYPES = ("image", "ping", "xhr", "script")
"""How a page asks for an address: <img>, sendBeacon, fetch, <script>."""
JOIN = " <+> "


class CannotRead(Exception):
    """What was given cannot be used as a filter list; the message says why and what was expected."""


class NoEngine(Exception):
    """The package adblock (extra `lists`) is not installed."""


class Rule(NamedTuple):
    """What blocks."""

    list: str
    text: str


class FilterList:
    """A list, ready to be asked. Raises NoEngine or CannotRead."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._engine = _engine(name, text)
        self._alone: dict[str, Any] = {}

    def blocks(self, url: str, page: str, kind: str) -> Rule | None:
        """The rule that blocks `url`, asked for by `page` as one of TYPES; None if it passes. Raises CannotRead."""
        with _no_panic(self.name):
            answer = self._engine.check_network_urls(url, page, kind)
            return Rule(self.name, self._the_rule(answer.filter or "", url, page, kind)) if answer.matched else None

    def _the_rule(self, joined: str, url: str, page: str, kind: str) -> str:
        """The engine joins rules that look alike and names all of them; the one is found by asking each alone."""
        rules = joined.split(JOIN)
        for rule in rules if len(rules) > 1 else ():
            if rule not in self._alone:
                self._alone[rule] = _engine(self.name, rule)
            if self._alone[rule].check_network_urls(url, page, kind).matched:
                return rule
        return rules[0]


def _engine(name: str, text: str) -> Any:
    try:
        import adblock
    except ImportError:
        raise NoEngine("check-path needs the engine of browsers: pip install adblock") from None
    with _no_panic(name), _silence():
        rules = adblock.FilterSet(debug=True)
        rules.add_filter_list(text)
        engine = adblock.Engine(rules)
        engine.check_network_urls("https://a.example/", "https://a.example/", "image")  # some rules it falls over only now
        return engine


@contextlib.contextmanager
def _no_panic(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, CannotRead):
        raise
    except BaseException as error:  # a panic of the engine is no Exception
        raise CannotRead(f"{name}: the engine cannot read it ({type(error).__name__}); expected a filter list") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The engine tells a panic to standard error by itself, with a hundred lines that help nobody here."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
