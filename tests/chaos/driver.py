"""The driver: keep-alive connections that send named beacons at a steady rate, and note each answer, when it came and how long
it took."""

import asyncio
import contextlib
import ssl
import time

PAST_HEAD = b"\r\n\r\n"


class Driver:
    """Runs on an event loop of the caller's. A name is noted as answered only after the whole 200 was read."""

    def __init__(
        self,
        port: int,
        rate: float,
        connections: int = 16,
        prefix: str = "/e",
        tls: ssl.SSLContext | None = None,
        host: str = "shop.example",
        more: str = "",
    ) -> None:
        self.port, self.rate, self.connections, self.prefix = port, rate, connections, prefix
        self._tls, self._host, self._more = tls, host, more
        self.answered: list[str] = []
        """The promised beacons: nothing else may be missing in the end."""
        self.answered_at: list[float] = []
        """When (monotonic) each of them was answered, in order."""
        self.refusals: list[tuple[float, str]] = []
        """When (monotonic) which beacon was answered 503, in order. No promise was made of these, but they may be stored."""
        self.broken = 0
        self.phase = ""
        self.took_ms: dict[str, list[float]] = {}
        """Phase → times to the whole answer."""
        self._sent = 0
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self._tag = f"{time.time_ns():x}"

    @property
    def refused(self) -> int:
        """How many were answered 503."""
        return len(self.refusals)

    def start(self) -> None:
        """Begin; the rate is shared by the connections."""
        self._began = time.monotonic()
        self._tasks = [asyncio.create_task(self._connection()) for _ in range(self.connections)]

    async def stop(self) -> None:
        """End after the answers under way."""
        self._stop = True
        _, pending = await asyncio.wait(self._tasks, timeout=30)
        for task in pending:
            task.cancel()

    async def _connection(self) -> None:
        while not self._stop:
            try:
                async with asyncio.timeout(10):
                    name = self._host if self._tls else None
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._tls, server_hostname=name)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                await self._talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.broken += 1
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._stop:
            due = self._began + self._sent / self.rate
            self._sent += 1
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            elif wait < -1:  # what could not be sent while the proxy was down is not made up for
                self._began, self._sent = time.monotonic(), 0
            name = f"{self._tag}.{self._sent}.{time.monotonic_ns():x}"
            phase, began = self.phase, time.perf_counter()
            target = f"{self.prefix}?_n={name}&_p=p{self._sent % 997}&Plan=Pro{self._more}"
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
            async with asyncio.timeout(30):
                head = await reader.readuntil(PAST_HEAD)
                await reader.readexactly(43)
            if head.startswith(b"HTTP/1.1 200"):
                self.answered.append(name)
                self.answered_at.append(time.monotonic())
                self.took_ms.setdefault(phase, []).append((time.perf_counter() - began) * 1000)
            else:
                self.refusals.append((time.monotonic(), name))


def quantile(values: list[float], q: float) -> float:
    """That quantile, rounded; 0 of nothing."""
    return round(sorted(values)[min(len(values) - 1, int(len(values) * q))], 2) if values else 0.0
