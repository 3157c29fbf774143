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
    process: int
    intake: Intake
    closing: contextlib.ExitStack


class EmbeddedIntake:
    """Call it for the intake of this process, from any thread. Raises SpoolError, and what `config` raises."""

    def __init__(self, config: Callable[[], SpoolConfig]) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._inherited: list[_Opened | None] = []
        """What a fork has brought along belongs to its parent: it is neither used nor let go here."""
        os.register_at_fork(after_in_child=self._begin_anew)
        atexit.register(self.close)

    def __call__(self) -> Intake:
        opened = self._opened
        if opened is None or opened.process != os.getpid():  # a server may fork without telling Python
            with self._lock:
                opened = self._opened
                if opened is None or opened.process != os.getpid():
                    self._inherited.append(opened)
                    opened = self._opened = self._open()
        return opened.intake

    def close(self) -> None:
        """This process's, if it was opened; the next call opens it again."""
        opened = self._opened
        if opened is not None and opened.process == os.getpid():
            self._opened = None
            opened.closing.close()

    def _begin_anew(self) -> None:
        self._inherited.append(self._opened)
        self._opened, self._lock = None, threading.Lock()  # another thread of the parent may have held it

    def _open(self) -> _Opened:
        config = self._config()
        with contextlib.ExitStack() as closing:
            intake = open_intake(config)
            closing.callback(intake.close)
            if config.fallback:
                from proxy.spool.fallback.mover import moving

                closing.enter_context(moving(config, among_others=True))
            return _Opened(os.getpid(), intake, closing.pop_all())
