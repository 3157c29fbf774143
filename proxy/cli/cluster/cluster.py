"""Brokers, collectors and forwarders, as they belong together."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.admin.summary import read
from proxy.cli.cluster.brokers import Brokers
from proxy.cli.cluster.hosts import CollectorHost, ForwarderHost
from proxy.cli.cluster.part import Part, end_all, start_all
from proxy.spool.port import SpoolConfig

START_S = 30.0


class Cluster:
    """Three brokers, and so many of the others. An asynchronous context: at its end nothing of it runs."""

    def __init__(
        self, place: Path, upstream: str, brokers: Brokers, collectors: int = 2, forwarders: int = 2, **settings: object
    ) -> None:
        self.brokers = brokers
        given = {"spool": brokers.spool, "upstream": upstream, **settings}
        self.collectors = [CollectorHost(f"collector-{n + 1}", place, **given) for n in range(collectors)]  # type: ignore[arg-type]
        self.forwarders = [ForwarderHost(f"forwarder-{n + 1}", place, **given) for n in range(forwarders)]  # type: ignore[arg-type]
        self.spool = SpoolConfig(brokers.spool)

    @property
    def parts(self) -> list[Part]:
        return [*self.brokers.all, *self.collectors, *self.forwarders]

    async def __aenter__(self) -> "Cluster":
        """Raises TimeoutError or RuntimeError if it does not come up."""
        try:
            start_all(self.brokers.all)
            await self.wait(self.brokers.healthy, "the brokers")
            start_all([*self.collectors, *self.forwarders])
            await self.wait(lambda: all(host.ready() for host in self.collectors), "the collectors")
        except BaseException:
            self.end()
            raise
        return self

    async def __aexit__(self, *wrong: object) -> None:
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """First those that still have something to say to the brokers."""
        end_all([*self.collectors, *self.forwarders])
        end_all(self.brokers.all)

    async def wait(self, until: Callable[[], object], what: str, patience_s: float = START_S) -> None:
        """Until that is true, which may take its time to say so. Raises TimeoutError, and RuntimeError if a part dies."""
        deadline = time.monotonic() + patience_s
        while not await asyncio.to_thread(until):
            if dead := [part for part in self.parts if part.process is not None and not part.alive]:
                raise RuntimeError(f"{dead[0].name} ended: {dead[0].log.read_text()[-1000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {patience_s:g} s in vain for {what}")
            await asyncio.sleep(0.05)

    def status(self) -> dict[str, Any]:
        """What `status --json` prints. Raises SpoolError where nobody answers."""
        return read(self.spool)
