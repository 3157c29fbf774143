"""`serve`: binds the sockets, starts collectors, forwarder and admin listener, restarts what dies, stops all in time.

The supervisor serves nothing itself. It holds the listening socket (or the service manager does), so a restarted collector finds
the queue of connections where the dead one left it. Each child gets its configuration, and only the forwarder the key, by a pipe.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from proxy.admin.config import AdminConfig
from proxy.cli.child import EX_CONFIG
from proxy.cli.service import Service, held_sockets
from proxy.log import log
from proxy.settings import PREFIX, Settings, SettingsError, variable
from proxy.spool import prepare
from proxy.spool.fallback.config import MoverConfig

BACKLOG = 2048
BIND_PATIENCE_S = 3.0
"""How long to wait for the port of a predecessor that is just going."""
RESTART_PAUSE_S = 0.5
"""Before a child that died young is started again."""
HANG_S = 60.0
"""A child whose event loop has not turned for so long hangs, and is killed."""
ASLEEP_S = 5.0
"""A supervisor that was not called for so long was suspended, and its children with it: that is not their hanging."""
KILL_S = 1.0
"""A killed child whose disk hangs cannot die; it is not waited for longer."""
TRIAL_S = 10.0
"""Longest that a trial of new settings may take."""
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
Reload = Callable[[], Settings]
"""Reads the settings anew. Raises SettingsError."""


@dataclass
class _Child:
    name: str
    arguments: list[str]
    config: bytes | None
    """None: it is no longer wanted, and forgotten when it has ended."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    """When it may be started."""
    pulse: int = -1
    """Where it writes a byte each second."""
    beats: bool = False
    """Whether it has begun to: it does its work."""
    patience_from: float = 0.0
    """When it last did, or was started."""
    replaced: bool = False
    """It was told to end, so that one with a new configuration can take its place."""


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

    def __init__(self, settings: Settings, reload: Reload | None = None) -> None:
        if settings.spool.startswith("memory:"):
            raise SettingsError(
                "spool: found memory:, which lives in one process; `serve` runs several and expected sqlite:DIR. "
                "The memory spool is for proxy.asgi:app with embedded_forwarder."
            )
        self._settings, self._reload = settings, reload
        self._service = Service()
        self._felt = time.monotonic()
        prepare(settings.spool_config())
        configs = _configs(settings)  # before a port is taken: this is what may be wrong
        held = held_sockets()
        self._listeners = [
            held.get("public") or bind(settings.host, settings.port),
            held.get("admin") or bind(settings.admin_host, settings.admin_port, "admin_"),
        ]
        fd, admin_fd = (str(listener.fileno()) for listener in self._listeners)
        self.url, self.admin_url = (_url(listener) for listener in self._listeners)
        self._children = [
            *([_forwarder(configs)] if "forwarder" in configs else []),
            *(_Child(f"collector-{n}", ["collector", fd], configs["collector"]) for n in range(settings.workers)),
            *([_Child("mover", ["mover"], configs["mover"])] if settings.spool_config().fallback else []),
            _Child("admin", ["admin", admin_fd], configs["admin"]),
        ]

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status. SIGHUP: read the settings anew."""
        watched = STOP_SIGNALS | {signal.SIGCHLD, signal.SIGHUP}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        status = 0
        try:
            while True:
                self._start_due()
                got = signal.sigtimedwait(watched, 0.25)
                if got is not None and got.si_signo in STOP_SIGNALS:
                    break
                if got is not None and got.si_signo == signal.SIGHUP:
                    self._read_settings_anew()
                if not self._reap():
                    status = 1
                    break
                self._feel_pulses()
                self._service.alive()
        finally:
            self._service.stopping()
            for listener in self._listeners:
                listener.close()
            self._stop()
        return status

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.process is None and child.config is not None and now >= child.due:
                child.started = child.patience_from = now
                child.beats = child.replaced = False
                child.pulse, beat = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                child.process = subprocess.Popen(
                    [sys.executable, "-m", "proxy.cli.child", *child.arguments, "--beat", str(beat)],
                    stdin=subprocess.PIPE,
                    pass_fds=[beat, *(int(argument) for argument in child.arguments[1:])],
                    env=_environment(),
                )
                os.close(beat)
                assert child.process.stdin is not None  # noqa: S101 - for the type checker
                try:
                    child.process.stdin.write(child.config)
                    child.process.stdin.flush()
                except BrokenPipeError:
                    pass  # it died at once: reaped below
                log.info("started", process=child.name, pid=child.process.pid)

    def _feel_pulses(self) -> None:
        """Ready once all are at work; who has hung for long is killed, and restarted like any that died."""
        now = time.monotonic()
        slept, self._felt = now - self._felt, now
        for child in self._children:
            child.patience_from += slept if slept > ASLEEP_S else 0.0
            if child.process is None:
                continue
            try:
                if os.read(child.pulse, 4096):
                    child.beats, child.patience_from = True, now
            except BlockingIOError:
                if now - child.patience_from > HANG_S:
                    log.error("killed: it hangs", process=child.name, pid=child.process.pid)
                    child.process.kill()
                    child.patience_from = now  # a disk that hangs may keep it from dying
        if all(child.beats and not child.replaced for child in self._children):
            self._service.ready()

    def _read_settings_anew(self) -> None:
        """Replace the processes whose configuration changed. Where settings are wrong, or need a restart, all stays as it is."""
        if self._reload is None:
            return
        self._service.reloading()
        try:
            settings = self._reload()
            configs = _configs(settings)
            for name in ("spool", "fallback", "host", "port", "admin_host", "admin_port", "workers"):
                if getattr(settings, name) != getattr(self._settings, name):
                    raise SettingsError(f"{name}: a change of this setting needs a restart")
            if "forwarder" in configs:
                _try(configs["forwarder"])
        except SettingsError as error:
            log.error("settings not taken: all goes on as before", reason=str(error))
            return
        self._settings = settings
        changed = [child for child in self._children if child.config != configs.get(child.arguments[0])]
        for child in changed:
            child.config = configs.get(child.arguments[0])
            if child.process is not None:
                child.replaced = True
                child.process.terminate()
        if "forwarder" in configs and not any(child.name == "forwarder" for child in self._children):
            self._children.insert(0, _forwarder(configs))
        log.info("settings taken", replaced=[child.name for child in changed])

    def _reap(self) -> bool:
        """Note who died. False when one cannot be helped by a restart."""
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                _close_pipe(child.process)
                os.close(child.pulse)
                child.process, child.beats = None, False
                if code == EX_CONFIG and child.config is not None:
                    log.error("stopping: a process cannot run as configured", process=child.name)
                    return False
                now = time.monotonic()
                child.due = now + (RESTART_PAUSE_S if now - child.started < 5 and not child.replaced else 0)
                if not child.replaced:
                    log.warning("died, will be restarted", process=child.name, status=code)
        self._children = [child for child in self._children if child.process is not None or child.config is not None]
        return True

    def _stop(self) -> None:
        """All at once: collectors answer what they accepted, the forwarder ends what is in flight."""
        living = [child.process for child in self._children if child.process is not None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + self._settings.shutdown_grace - 0.5
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("killed: did not stop within shutdown_grace", pid=process.pid)
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILL_S)
            _close_pipe(process)


def _forwarder(configs: dict[str, bytes]) -> _Child:
    return _Child("forwarder", ["forwarder"], configs["forwarder"])


def _configs(settings: Settings) -> dict[str, bytes]:
    """What each role is told, as a line of JSON; only the forwarder's has keys. Raises SettingsError."""
    configs: dict[str, msgspec.Struct] = {
        "collector": settings.collector(),
        "mover": MoverConfig(settings.spool_config(), settings.log_level, settings.log_format),
        "admin": AdminConfig(settings.spool_config(), settings.site_names(), settings.log_level, settings.log_format),
    }
    if settings.forward:
        configs["forwarder"] = settings.forwarder()
    return {role: msgspec.json.encode(config) + b"\n" for role, config in configs.items()}


def _try(config: bytes) -> None:
    """Let a process of its own load what the forwarder would load, a database for example. Raises SettingsError if it cannot."""
    command = [sys.executable, "-m", "proxy.cli.child", "trial"]
    try:
        trial = subprocess.run(command, input=config, stderr=subprocess.PIPE, env=_environment(), timeout=TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        raise SettingsError(f"what they name was not loaded within {TRIAL_S:g} s") from None
    if trial.returncode:
        raise SettingsError(trial.stderr.decode("utf-8", "replace").strip())


def _environment() -> dict[str, str]:
    """A child's: no setting, since it may be a key."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def _url(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
