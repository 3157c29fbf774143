"""Names drawn by lot: every installation has names of its own, so that no list can know them.

Nothing here looks at a list or at settings.
"""

import secrets
from collections.abc import Callable, Container, Sequence

from proxy.hit import BATCH, KINDS
from proxy.lists.words import WORDS

RESERVED = ("_p", "_n", "_t", "_d")
"""The API's parameters that may have another name."""

Choose = Callable[[Sequence[str]], str]
"""Draws one: secrets.choice, or a seeded one in tests."""
_DIGITS = "23456789"


class Naming:
    """Draws names for one configuration, none of them twice."""

    def __init__(self, taken: Container[str] = (), choose: Choose = secrets.choice) -> None:
        """`taken`: words that are not to be drawn."""
        self._taken, self._choose = taken, choose
        self._drawn: set[str] = set()

    def prefix(self) -> str:
        """Such as /amber-fjord-27."""
        return f"/{self._word()}-{self._word()}-{self._choose(_DIGITS)}{self._choose(_DIGITS)}"

    def path_name(self) -> str:
        """Of an endpoint or the script, such as lark."""
        return self._word()

    def parameter(self) -> str:
        """Such as moss4: no word alone, since a page may have a property of that name."""
        return self._word() + self._choose(_DIGITS)

    def mark(self) -> str:
        """Before a name in base64url, such as reed8-."""
        return self.parameter() + "-"

    def _word(self) -> str:
        free = [word for word in WORDS if word not in self._drawn and word not in self._taken]
        word = self._choose(free or WORDS)
        self._drawn.add(word)
        return word


class Names:
    """All names of a new installation."""

    def __init__(self, naming: Naming) -> None:
        self.prefix = naming.prefix()
        self.script = naming.path_name()
        self.endpoints = {call: naming.path_name() for call in (*KINDS, BATCH)}
        """"e", "s", "a" or "b" → name."""
        self.parameters = {name: naming.parameter() for name in RESERVED}
        self.mark = naming.mark()
