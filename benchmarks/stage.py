"""The processes that are measured, each on the core it belongs to, started and ended."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.checkout import OURS, Checkout
from proxy.hit import Hit
from proxy.settings.names import PREFIX

MEASURED, OTHER = 0, max(os.sched_getaffinity(0))
"""The core of what is measured, and that of load and vendor."""
EVERYWHERE = tuple(os.sched_getaffinity(0))
Found = dict[str, dict[str, float]]
"""What a turn found: its parts, and the figures of each."""
NGINX = """
daemon off; worker_processes 1; error_log stderr crit; pid {place}/nginx.pid; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
  uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; keepalive_requests 1000000000;
  {body}
}}
"""


class Missing(Exception):
    """A tool is not on this machine; the message says what to install."""


def tool(name: str) -> str:
    """Its path. Raises Missing."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not on this machine: apt-get install {name}")
    return found


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """A listening socket on a free port of 127.0.0.1, to be handed to a server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        yield listening


def port_of(listening: socket.socket) -> int:
    """Its port."""
    return int(listening.getsockname()[1])


def free_port() -> int:
    """One that nobody listens on now."""
    with listener() as listening:
        return port_of(listening)


@contextlib.contextmanager
def process(
    command: Sequence[str], cores: Sequence[int], config: bytes = b"", fds: Sequence[int] = (), **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on those cores, killed at the end. Its standard input gets `config` and stays open."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        pass_fds=fds,
        env={**environment, **environ},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    assert started.stdin is not None
    try:
        started.stdin.write(config)
        started.stdin.flush()
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdin.close()


@contextlib.contextmanager
def bare(what: str, workers: Sequence[int] = (MEASURED,)) -> Iterator[int]:
    """A server that stores nothing: "bare" or "starlette", a process on each core of `workers`; its port."""
    with listener() as listening, contextlib.ExitStack() as stack:
        fd = listening.fileno()
        for core in workers:
            stack.enter_context(process([sys.executable, "-m", "benchmarks.bare", what, str(fd)], [core], fds=[fd]))
        yield port_of(listening)


@contextlib.contextmanager
def collectors(spool: Path, durability: str, workers: Sequence[int] = (MEASURED,), version: Checkout = OURS) -> Iterator[int]:
    """Collectors as `serve` of that version starts them, one on each core of `workers`; their port. Its own defaults hold for
    what is not given."""
    config = msgspec.json.encode({"spool": {"url": f"sqlite:{spool}", "durability": durability}}) + b"\n"
    with listener() as listening, contextlib.ExitStack() as stack:
        fd = listening.fileno()
        for core in workers:
            command = [sys.executable, "-m", "proxy.cli.child", "collector", str(fd)]
            stack.enter_context(process(command, [core], config, [fd], **version.environ()))
        yield port_of(listening)


@contextlib.contextmanager
def forwarder(
    spool: Path, upstream: str, cores: Sequence[int] = (MEASURED,), version: Checkout = OURS, **settings: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A forwarder as `serve` of that version starts it, on those cores. Its own defaults hold for what is not given."""
    site = {"upstream": upstream, "api_key": "benchmark-key"}
    config = {"spool": {"url": f"sqlite:{spool}"}, "sites": {"default": site}, **settings}
    command = [sys.executable, "-m", "proxy.cli.child", "forwarder"]
    with process(command, cores, msgspec.json.encode(config) + b"\n", **version.environ()) as started:
        yield started


def turn(version: Checkout, name: str, spool: Path, hits: Sequence[Hit], beacons: int, durability: str = "os") -> Found:
    """A turn of turn.py, by that version, alone on the measured core. Raises subprocess.CalledProcessError."""
    script = Path(__file__).with_name("turn.py")
    done = subprocess.run(
        [sys.executable, str(script), str(version.root), name, str(spool), durability, str(beacons)],
        input=msgspec.json.encode(hits).decode(),
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, **version.environ()},
        preexec_fn=lambda: os.sched_setaffinity(0, [MEASURED]),
    )
    found: Found = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def serve(spool: Path, upstream: str, **settings: str) -> Iterator[tuple[int, int]]:
    """The whole, as a user starts it, on every core: its port, and its pid."""
    port, admin = free_port(), free_port()
    given = {"api_key": "benchmark-key", "upstream": upstream, "spool": f"sqlite:{spool}", "log_level": "warning"}
    given |= {"port": str(port), "admin_port": str(admin), **settings}
    environ = {PREFIX + name.upper(): value for name, value in given.items()}
    with process([sys.executable, "-m", "proxy", "serve"], EVERYWHERE, **environ) as started:
        wait_until_ready(f"http://127.0.0.1:{admin}/readyz")
        try:
            yield port, started.pid
        finally:
            started.terminate()
            started.wait(15)


def wait_until_ready(url: str, patience_s: float = 15.0) -> None:
    """Until the URL answers 200."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (OSError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not answer 200 within {patience_s} s") from None
            time.sleep(0.01)


@contextlib.contextmanager
def nginx(body: str, core: int, probe: str) -> Iterator[None]:
    """nginx with that inside its http block; ready when `probe` answers."""
    program = tool("nginx")
    with tempfile.TemporaryDirectory(prefix="beacon-proxy-bench-") as place:
        config = Path(place, "nginx.conf")
        config.write_text(NGINX.format(place=place, body=body))
        with process([program, "-p", place, "-c", str(config)], [core]) as started:
            try:
                wait_until_ready(probe)
                yield
            finally:
                started.terminate()
                started.wait(10)


@contextlib.contextmanager
def vendor(delay_ms: float = 0.0) -> Iterator[str]:
    """An upstream on the other core: nginx's own GIF, or one that takes its time; its URL."""
    if delay_ms:
        with listener() as listening:
            fd = listening.fileno()
            with process([sys.executable, "-m", "benchmarks.vendor", str(fd), str(delay_ms)], [OTHER], fds=[fd]):
                yield f"http://127.0.0.1:{port_of(listening)}"
        return
    port = free_port()
    with nginx(
        f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ empty_gif; }} }}", OTHER, f"http://127.0.0.1:{port}/"
    ):
        yield f"http://127.0.0.1:{port}"


def rss_mb(pid: int) -> float:
    """Resident memory, in MB (10⁶ bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def processes(pid: int, role: str) -> list[int]:
    """The pids of a process's children of that role: "collector", "forwarder" or "admin"."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if arguments[2:4] == ["proxy.cli.child", role]:
            found.append(int(child))
    return found


def processor_s(pids: Sequence[int]) -> float:
    """Processor time that they have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(user) + int(system) for _, *_, user, system in (of[:13] for of in fields)) / os.sysconf("SC_CLK_TCK")
