"""One process of the cluster: started, killed, frozen, ended. Nothing of it outlives whoever made it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
_LIBC: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the child: the kernel kills it when the thread that started it ends, even one that was killed."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Part:
    """To be started from a thread that lives as long as the part shall: the main one."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._environ = environ
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once. What it says is appended to its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C is ours to translate, and a kill takes all that it started
                preexec_fn=_end_with_parent,
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9 of it and all that it started, as when a machine's power is cut."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def freeze(self) -> None:
        """It answers nothing, and its connections stay: a machine that hangs. Returns once it stands still, which takes its time
        on a busy machine."""
        self._signal(signal.SIGSTOP)
        if self.process is not None:
            with contextlib.suppress(ChildProcessError):  # it is dead
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        if self.alive and self.process is not None:
            self.process.terminate()

    def ended(self, patience_s: float = 12.0) -> int:
        """Its exit status once it has ended as it was asked; killed if it does not."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            self.kill()

    def pids(self) -> list[int]:
        """Of it and its children."""
        if self.process is None:
            return []
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
            return [self.process.pid, *(int(pid) for task in tasks for pid in (task / "children").read_text().split())]
        return []

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def end_all(parts: Sequence[Part]) -> None:
    """All at once, so that they wait for each other no longer than the slowest."""
    for part in parts:
        part.thaw()
        part.ask_to_end()
    for part in parts:
        part.ended()


def start_all(parts: Sequence[Part], started: Callable[[Part], None] = lambda part: None) -> None:
    """In turn; if one cannot be started, none is left."""
    try:
        for part in parts:
            part.start()
            started(part)
    except BaseException:
        end_all(parts)
        raise
