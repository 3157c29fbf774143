"""Ids of messages: unique to whoever makes them, and numbered by him."""

import itertools
import secrets


class Ids:
    """Drawn at random once for each process and purpose; then it is counted, which costs less."""

    def __init__(self) -> None:
        self.prefix = secrets.token_urlsafe(9)
        self._numbers = itertools.count()

    def next(self) -> str:
        """One that was never given before."""
        return f"{self.prefix}{next(self._numbers):x}"
