"""`serve`: binds the sockets, starts collectors, forwarder and admin listener, restarts what dies, stops all in time.

The supervisor serves nothing itself. It holds the listening socket, so a restarted collector finds the queue of connections
where the dead one left it. Each child gets its configuration, and only the forwarder the key, by a pipe.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import msgspec

from proxy.admin.config import AdminConfig
from proxy.cli.child import EX_CONFIG
from proxy.log import log
from proxy.settings import PREFIX, Settings, SettingsError, variable
from proxy.spool import prepare

BACKLOG = 2048
BIND_PATIENCE_S = 3.0
"""How long to wait for the port of a predecessor that is just going."""
RESTART_PAUSE_S = 0.5
"""Before a child that died young is started again."""
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


@dataclass
class _Child:
    name: str
    arguments: list[str]
    config: bytes
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = field(default=0.0)


def bind(host: str, port: int, setting: str = "") -> socket.socket:
    """A listening socket. Raises SettingsError, naming the settings `{setting}host` and `{setting}port`, if it cannot be had."""
    deadline = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, port))
                listener.listen(BACKLOG)
            except BaseException:
                listener.close()
                raise
            return listener
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline:
                raise SettingsError(
                    f"{setting}host, {setting}port: cannot listen on {host}:{port}: {error.strerror}; "
                    f"expected a free port on an address of this machine. Stop what holds it, or set {setting}port "
                    f"({variable((setting + 'port',))}) to another."
                ) from None
            time.sleep(0.1)


class Supervisor:
    """Keeps the children of one `serve`."""

    def __init__(self, settings: Settings) -> None:
        if settings.spool.startswith("memory:"):
            raise SettingsError(
                "spool: found memory:, which lives in one process; `serve` runs several and expected sqlite:DIR. "
                "The memory spool is for proxy.asgi:app with embedded_forwarder."
            )
        self._grace = settings.shutdown_grace
        prepare(settings.spool_config())
        collector, forwarder = settings.collector(), settings.forwarder()
        admin = AdminConfig(settings.spool_config(), settings.log_level)
        self._listeners = [bind(settings.host, settings.port), bind(settings.admin_host, settings.admin_port, "admin_")]
        fd, admin_fd = (str(listener.fileno()) for listener in self._listeners)
        self.url, self.admin_url = (_url(listener) for listener in self._listeners)
        encode = msgspec.json.encode
        self._children = [
            _Child("forwarder", ["forwarder"], encode(forwarder) + b"\n"),
            *(_Child(f"collector-{n}", ["collector", fd], encode(collector) + b"\n") for n in range(settings.workers)),
            _Child("admin", ["admin", admin_fd], encode(admin) + b"\n"),
        ]

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status."""
        watched = STOP_SIGNALS | {signal.SIGCHLD}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        status = 0
        try:
            while True:
                self._start_due()
                got = signal.sigtimedwait(watched, 0.25)
                if got is not None and got.si_signo in STOP_SIGNALS:
                    break
                if not self._reap():
                    status = 1
                    break
        finally:
            for listener in self._listeners:
                listener.close()
            self._stop()
        return status

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.process is None and now >= child.due:
                child.started = now
                child.process = subprocess.Popen(
                    [sys.executable, "-m", "proxy.cli.child", *child.arguments],
                    stdin=subprocess.PIPE,
                    pass_fds=[int(argument) for argument in child.arguments[1:]],
                    env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
                )
                assert child.process.stdin is not None  # noqa: S101 - for the type checker
                try:
                    child.process.stdin.write(child.config)
                    child.process.stdin.flush()
                except BrokenPipeError:
                    pass  # it died at once: reaped below
                log.info("started", process=child.name, pid=child.process.pid)

    def _reap(self) -> bool:
        """Note who died. False when one cannot be helped by a restart."""
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                _close_pipe(child.process)
                child.process = None
                if code == EX_CONFIG:
                    log.error("stopping: a process cannot run as configured", process=child.name)
                    return False
                now = time.monotonic()
                child.due = now + (RESTART_PAUSE_S if now - child.started < 5 else 0)
                log.warning("died, will be restarted", process=child.name, status=code)
        return True

    def _stop(self) -> None:
        """All at once: collectors answer what they accepted, the forwarder ends what is in flight."""
        living = [child.process for child in self._children if child.process is not None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + self._grace - 0.5
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("killed: did not stop within shutdown_grace", pid=process.pid)
                process.kill()
                process.wait()
            _close_pipe(process)


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
