"""What the tests stand on: real processes and real sockets. The vendor is the sandbox, over HTTP; nothing else is pretended."""

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import pytest

from proxy.admin.summary import read
from proxy.cli.cluster import ports
from proxy.spool.port import SpoolConfig

# httpx reads all certificate authorities for each client, 17 ms of processor time, and hardly a test speaks TLS: once is enough.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

# How long an example takes is the machine's affair, on which other tests run.
hypothesis.settings.register_profile("proxy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("proxy")

# Processes start as they do at a user's, with their bytecode at hand, even where an environment says to keep none.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if TYPE_CHECKING:
    from in_thread import InThread
    from nats_server import NatsServer

API_KEY = "test-key-5f2c8e"
DEADLINE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str, timeout: float = DEADLINE_S) -> Any:
    """The condition's first true value; never a bare sleep."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout} s in vain for {what}")
        time.sleep(0.02)


listening = ports.listening
_worker, _workers = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_ports = itertools.cycle(range(10_100 + 4_800 * _worker // _workers, 10_100 + 4_800 * (_worker + 1) // _workers))


def free_port() -> int:
    """None that browsers refuse (10080), nor soon the same again, nor one that another worker gives, the kernel gives to an
    outgoing connection, or a demo draws."""
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(**over: str) -> dict[str, str]:
    """This machine's environment without any setting of the proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BEACON_PROXY_")}
    return {**kept, **over}


def kill_tree(pid: int) -> None:
    """kill -9 of a process and all below it, parents first so that nothing is restarted."""
    victims = [pid]
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
    for parent in victims:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                victims += [int(child) for child in (task / "children").read_text().split()]
    for victim in victims:
        with contextlib.suppress(OSError):
            os.kill(victim, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


class SandboxProcess:
    """The vendor's stand-in as a process."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([sys.executable, "-m", "proxy.sandbox", "--port", str(self.port)])
        wait_for(lambda: listening(self.port), "the sandbox")

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/received", timeout=10).json()
        return found

    def beacons(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.report()["beacons"]
        return found

    def wait(self, n: int) -> list[dict[str, Any]]:
        """At least `n` beacons, once they are there."""
        return wait_for(lambda: len(found := self.beacons()) >= n and found, f"{n} beacons upstream")  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def settings_of(spool: Path, upstream: str, **settings: Any) -> dict[str, Any]:
    """The proxy's settings as its environment has them; None for one that shall not be there."""
    return {
        "BEACON_PROXY_API_KEY": API_KEY,
        "BEACON_PROXY_UPSTREAM": upstream,
        "BEACON_PROXY_SPOOL": f"sqlite:{spool}",
        "BEACON_PROXY_ADMIN_PORT": "0",
        "BEACON_PROXY_ENRICHERS": "page,campaign",  # the others take a fifth of a second to load
        "BEACON_PROXY_BACKOFF_BASE": "0.1",
        "BEACON_PROXY_BACKOFF_CAP": "0.5",
        **{f"BEACON_PROXY_{name.upper()}": value for name, value in settings.items()},
    }


class ProxyProcess:
    """`beacon-proxy serve` (or another command) as a user starts it."""

    def __init__(
        self,
        spool: Path,
        upstream: str,
        command: str = "serve",
        port: int | None = None,
        log: Path | None = None,
        **settings: Any,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = clean_environment(**settings_of(spool, upstream, port=str(self.port), **settings))
        if self.environment["BEACON_PROXY_SPOOL"].startswith("nats:"):
            self.environment.setdefault("BEACON_PROXY_FALLBACK", f"sqlite:{spool}-fallback")
        self.environment = {name: value for name, value in self.environment.items() if value is not None}
        self.log = log or spool.parent / f"{spool.name}-{command}-{self.port}.log"
        with self.log.open("ab") as opened:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", command],
                env=self.environment,
                stdout=opened,
                stderr=opened,
                start_new_session=True,
            )
        if command == "serve":
            prefix = settings.get("prefix", "").partition(",")[0]
            try:
                wait_for(lambda: self._answers(f"{self.url}{prefix}/e"), "the proxy")
            except BaseException:  # the caller never gets this object, so nothing else could end the process
                if self.process.poll() is None:
                    self.kill()
                raise

    def _answers(self, url: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.head(url, timeout=5).status_code == 200
        return False

    def status(self) -> dict[str, Any]:
        """What `status --json` prints, read here: to ask often must not cost a process each time."""
        fallback = self.environment.get("BEACON_PROXY_FALLBACK", "")
        return read(SpoolConfig(self.environment["BEACON_PROXY_SPOOL"], fallback=fallback))

    def status_command(self) -> dict[str, Any]:
        """The command itself."""
        out = subprocess.run(
            [sys.executable, "-m", "proxy", "status", "--json"], env=self.environment, capture_output=True, check=True, timeout=30
        )
        found: dict[str, Any] = json.loads(out.stdout)
        return found

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=DEADLINE_S)

    def kill(self) -> None:
        kill_tree(self.process.pid)
        self.process.wait()


_shared: list[SandboxProcess] = []


@pytest.fixture
def sandbox() -> SandboxProcess:
    """A vendor that has seen nothing yet. One process serves all tests of a worker, until one of them stops it."""
    if not _shared or _shared[-1].process.poll() is not None:
        _shared.append(SandboxProcess())
    else:
        httpx.delete(f"{_shared[-1].url}/received", timeout=10)
    return _shared[-1]


@pytest.fixture(scope="session", autouse=True)
def _end_shared() -> Iterator[None]:
    yield
    _end_running()
    for process in _shared:
        process.stop()


_running: list[tuple[dict[str, Any], ProxyProcess]] = []
"""At most one, with its settings."""


def _end_running() -> None:
    while _running:
        _, proxy = _running.pop()
        if proxy.process.poll() is None:
            proxy.kill()


def _at_rest(proxy: ProxyProcess) -> bool:
    """Whether it lives, and all that it was given is delivered; if that takes longer, it is no good for others."""
    deadline = time.monotonic() + 5
    while proxy.process.poll() is None and time.monotonic() < deadline:
        if proxy.status()["pending"] == 0:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def running(sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ProxyProcess]:
    """Like `serve`, for tests that need no proxy of their own and change nothing in it. Others may have used it before: its
    ledger need not begin at zero, but nothing of theirs is pending. A worker keeps one, until other settings are asked for."""

    def get(**settings: Any) -> ProxyProcess:
        settings = {"upstream": sandbox.url, **settings}
        if _running and _running[0][0] == settings and _at_rest(_running[0][1]):
            httpx.delete(f"{sandbox.url}/received", timeout=10)
        else:
            _end_running()
            _running.append((settings, ProxyProcess(tmp_path_factory.mktemp("running") / "spool", **settings)))
        return _running[0][1]

    return get


@pytest.fixture
def serve(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[Callable[..., ProxyProcess]]:
    """Starts `beacon-proxy serve` towards the sandbox; settings by keyword. Whatever was started is ended."""
    started: list[ProxyProcess] = []

    def start(**settings: Any) -> ProxyProcess:
        settings = {"spool": tmp_path / "spool", "upstream": sandbox.url, **settings}
        started.append(ProxyProcess(**settings))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


@pytest.fixture
def inside(sandbox: SandboxProcess, tmp_path: Path) -> "Iterator[Callable[..., InThread]]":
    """Like `serve`, for tests to which processes are no matter: a tenth of a second instead of a whole one."""
    from in_thread import InThread

    started: list[InThread] = []

    def start(**settings: Any) -> InThread:
        environment = settings_of(**{"spool": tmp_path / "spool", "upstream": sandbox.url, **settings})
        started.append(InThread({name: str(value) for name, value in environment.items() if value is not None}))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each browser of test_script_browser.py is one worker's, who starts it once. Other tests go out some at a time, in order:
    what neighbours share is made once for them."""
    from xdist.scheduler import LoadScopeScheduling

    class OneBrowserOneWorker(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            if module.endswith("test_script_browser.py"):
                return "firefox" if "[firefox" in nodeid else "chromium"
            return f"{module} {self._place(nodeid) // 8}"

        def _place(self, nodeid: str) -> int:
            if not hasattr(self, "_places"):
                self._places = {name: place for place, name in enumerate(self.collection)}
            return self._places[nodeid]

    return OneBrowserOneWorker(config, log) if config.getvalue("dist") == "load" else None


def need(tool: str, package: str) -> str:
    """The path of a program from Debian; without it the test is skipped saying what to install, and under CI it fails."""
    import shutil

    path = shutil.which(tool)
    if path is None:
        message = f"{tool} is not on this machine: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[NatsServer]":
    """One for all tests of this process; each takes stream names of its own."""
    from nats_server import NatsServer

    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()
