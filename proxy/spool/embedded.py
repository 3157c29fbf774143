"""The collector's half of the spool inside somebody else's server, where no supervisor starts the processes.

Nothing is opened at import: a process opens its own when it is first asked for it, and so does one that was forked from it. With
it begins a mover of this host's fallback. Of all of them one moves, by the directory's lock, and the others stand by.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from proxy.spool import open_intake
from proxy.spool.port import Intake, SpoolConfig


class _Opened(NamedTuple):
    intake: Intake
    closing: contextlib.ExitStack


class EmbeddedIntake:
    """Call it for the intake of this process, from any thread. Raises SpoolError, and what `config` raises."""

    def __init__(self, config: Callable[[], SpoolConfig]) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._opened: dict[int, _Opened] = {}
        """By process. What a fork has brought along belongs to its parent: it is neither used nor let go here."""
        atexit.register(self.close)

    def __call__(self) -> Intake:
        opened = self._opened.get(os.getpid())
        if opened is None:
            with self._lock:
                opened = self._opened.get(os.getpid()) or self._open()
        return opened.intake

    def close(self) -> None:
        """This process's, if it was opened; the next call opens it again."""
        if (opened := self._opened.pop(os.getpid(), None)) is not None:
            opened.closing.close()

    def _open(self) -> _Opened:
        config, closing = self._config(), contextlib.ExitStack()
        intake = open_intake(config)
        closing.callback(intake.close)
        if config.fallback:
            from proxy.spool.fallback.mover import moving

            closing.enter_context(moving(config, among_others=True))
        opened = self._opened[os.getpid()] = _Opened(intake, closing)
        return opened
