"""`proxy.asgi:app` where somebody else's server or application runs it."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, clean_environment, free_port, kill_tree, wait_for
from test_doctor import examined, wrong_in

from proxy.cli.options import Runs

HOST = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from proxy.asgi import app, lifespan


async def hello(request):
    return PlainTextResponse("hello from the host")


routes = [Route("/hello", hello), Mount("/inside", app=app)]
with_lifespan = Starlette(routes=routes, lifespan=lifespan)
without_lifespan = Starlette(routes=routes)
deeper = Starlette(routes=[Mount("/outer", app=Starlette(routes=routes))], lifespan=lifespan)
"""


class UvicornProcess:
    """Plain uvicorn, as its own documentation starts it."""

    def __init__(self, app: str, directory: Path, environment: dict[str, str]) -> None:
        self.port, self.environment = free_port(), environment
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / f"uvicorn-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(self.port)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> "UvicornProcess":
        wait_for(self._up, "uvicorn")
        return self

    def _up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/hello", timeout=5).status_code in (200, 404)
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture
def uvicorn(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[Callable[..., UvicornProcess]]:
    """Starts uvicorn on an application, settings by keyword. Whatever was started is ended."""
    (tmp_path / "host_shop.py").write_text(HOST)
    started: list[UvicornProcess] = []

    def start(app: str, **settings: str) -> UvicornProcess:
        settings = {"upstream": sandbox.url, "spool": f"sqlite:{tmp_path / 'spool'}", "backoff_base": "0.1", **settings}
        environment = clean_environment(
            PYTHONPATH=str(tmp_path), **{f"BEACON_PROXY_{name.upper()}": value for name, value in settings.items()}
        )
        started.append(UvicornProcess(app, tmp_path, environment))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            kill_tree(process.process.pid)
        process.process.wait()


Uvicorn = Callable[..., UvicornProcess]


@pytest.mark.parametrize("spool", ["sqlite", "memory:"])
@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
def test_one_process_collects_and_delivers(
    uvicorn: Uvicorn, sandbox: SandboxProcess, tmp_path: Path, spool: str, engine: str
) -> None:
    """The smallest installation: one uvicorn, one application, no other process."""
    where = {"spool": spool} if spool == "memory:" else {}
    process = uvicorn("proxy.asgi:app", api_key=API_KEY, embedded_forwarder="true", engine=engine, **where).wait()
    for n in range(30):
        answer = httpx.get(f"{process.url}/e?_n={n}&_p=me")
        assert (answer.status_code, len(answer.content)) == (200, 43)
        assert API_KEY not in answer.text + str(answer.headers)
    beacons = sandbox.wait(30)
    assert sorted(int(beacon["params"]["_n"]) for beacon in beacons) == list(range(30))
    assert {beacon["params"]["_k"] for beacon in beacons} == {API_KEY}
    process.stop()
    log = process.log.read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert API_KEY not in log


def test_what_an_embedded_forwarder_did_not_deliver_waits_for_the_next(
    uvicorn: Uvicorn, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """A restart of the application during the vendor's outage."""
    settings = {"api_key": API_KEY, "embedded_forwarder": "true"}
    first = uvicorn("proxy.asgi:app", upstream="http://127.0.0.1:9", **settings).wait()
    assert httpx.get(f"{first.url}/e?_n=patient&_p=me").status_code == 200
    first.stop()
    uvicorn("proxy.asgi:app", **settings).wait()
    assert sandbox.wait(1)[0]["params"]["_n"] == "patient"


def test_without_the_embedded_forwarder_no_key_is_needed_and_forward_delivers(
    uvicorn: Uvicorn, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """The application that faces the internet need not know the key."""
    process = uvicorn("proxy.asgi:app").wait()
    assert httpx.post(f"{process.url}/s", data={"_p": "me", "Plan": "Pro"}).status_code == 200
    assert sandbox.beacons() == []
    forward = ProxyProcess(tmp_path / "spool", sandbox.url, command="forward")
    try:
        assert sandbox.wait(1)[0]["params"]["_k"] == API_KEY
        for one, runs in ((process.environment, Runs.APP), (forward.environment, Runs.FORWARD)):
            assert wrong_in(examined(one, runs)) == {}
    finally:
        forward.kill()


def test_an_embedded_forwarder_without_the_key_does_not_start(uvicorn: Uvicorn) -> None:
    """Told at the start and in plain words, not at the first lost beacon."""
    process = uvicorn("proxy.asgi:app", embedded_forwarder="true")
    assert process.process.wait(timeout=20) != 0
    assert "api_key: missing" in process.log.read_text()


@pytest.mark.parametrize(
    ("app", "settings", "base"),
    [
        ("host_shop:with_lifespan", {}, "/inside"),
        ("host_shop:with_lifespan", {"prefix": "/x7"}, "/inside/x7"),
        ("host_shop:deeper", {}, "/outer/inside"),
    ],
)
def test_mounted_in_another_application(
    uvicorn: Uvicorn, sandbox: SandboxProcess, app: str, settings: dict[str, str], base: str
) -> None:
    """A guest in somebody's application: its own paths work, the host's too, and nothing else changes."""
    process = uvicorn(app, api_key=API_KEY, embedded_forwarder="true", **settings).wait()
    assert httpx.get(f"{process.url}{base}/e?_n=get&_p=me").status_code == 200
    assert (
        httpx.post(f"{process.url}{base}/e?_n=post", content="_p=me", headers={"content-type": "text/plain"}).status_code == 200
    )
    assert httpx.head(f"{process.url}{base}/s").headers["content-length"] == "43"
    assert httpx.delete(f"{process.url}{base}/a").status_code == 405
    assert {httpx.get(f"{process.url}{path}?_n=no&_p=me").status_code for path in ("/e", f"{base}/z", f"{base}{base}/e")} == {404}
    hello = process.url + base.partition("/inside")[0] + "/hello"
    assert httpx.get(hello).text == "hello from the host"
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(2)} == {"get", "post"}
    process.stop()
    assert "Traceback" not in process.log.read_text()


def test_mounted_without_a_lifespan_it_still_stores(uvicorn: Uvicorn, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Most frameworks tell a mounted application nothing of the lifespan: the spool is opened at the first beacon."""
    process = uvicorn("host_shop:without_lifespan").wait()
    assert httpx.get(f"{process.url}/inside/e?_n=quiet&_p=me").status_code == 200
    assert httpx.get(f"{process.url}/hello").text == "hello from the host"
    process.stop()
    forward = ProxyProcess(tmp_path / "spool", sandbox.url, command="forward")
    try:
        assert sandbox.wait(1)[0]["params"]["_n"] == "quiet"
    finally:
        forward.kill()


FORKS = """
import os, sys, threading
from proxy.spool.embedded import EmbeddedIntake
from proxy.spool.port import SpoolConfig
intake = EmbeddedIntake(lambda: SpoolConfig("sqlite:" + sys.argv[1]))
ours = intake()
with intake._lock:  # another thread is just opening
    child = os.fork()
    if not child:
        os._exit(intake() is ours)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), intake() is ours)
"""


def test_a_process_that_is_forked_opens_a_spool_of_its_own(tmp_path: Path) -> None:
    """Whatever its parent was doing then."""
    done = subprocess.run([sys.executable, "-c", FORKS, str(tmp_path / "spool")], capture_output=True, text=True, timeout=20)
    assert (done.stdout.split(), done.stderr) == (["0", "True"], "")
