"""A steady load, in a process of its own: `python -m benchmarks.steady PORT RATE SECONDS CONNECTIONS PREFIX` prints JSON.

Beacons are sent when they are due, not when the answer before came: a server that stalls is seen to stall. The time of a beacon
that had to wait for a connection counts from when it was due.
"""

import asyncio
import json
import sys
import time
from collections import deque

import uvloop

from benchmarks.load import BEACON, HEADERS

HEAD = "\r\n".join(["HTTP/1.1", *(f"{name}: {value}" for name, value in HEADERS.items()), "", ""])
TICK_S = 0.001


class Load:
    """The connections, and what they saw."""

    def __init__(self, prefix: str) -> None:
        self.request = f"GET {prefix}{BEACON} {HEAD}".encode()
        self.idle: deque[Connection] = deque()
        self.queue: deque[float] = deque()
        self.took_ms: list[float] = []
        self.wrong = 0

    def free(self, connection: "Connection") -> None:
        """It has its answer, and takes the next beacon that waits."""
        if self.queue:
            connection.send(self.queue.popleft())
        else:
            self.idle.append(connection)

    def due(self, at: float) -> None:
        """Send one, or let it wait for a connection."""
        if self.idle:
            self.idle.popleft().send(time.perf_counter())
        else:
            self.queue.append(at)


class Connection(asyncio.Protocol):
    """One beacon at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._sent = 0.0
        self._left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._load.free(self)

    def send(self, began: float) -> None:
        self._sent = began
        self._answer = b""
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, whole, body = self._answer.partition(b"\r\n\r\n")
        if whole and len(body) >= 43:
            self._load.took_ms.append((time.perf_counter() - self._sent) * 1000)
            self._load.wrong += not head.startswith(b"HTTP/1.1 200 ")
            self._load.free(self)


async def run(port: int, rate: float, seconds: float, connections: int, prefix: str) -> Load:
    """The load, at its end."""
    load, loop = Load(prefix), asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
    began, sent = time.perf_counter(), 0
    while (now := time.perf_counter()) < began + seconds:
        for n in range(sent, int((now - began) * rate)):
            load.due(began + n / rate)
            sent = n + 1
        await asyncio.sleep(TICK_S)
    deadline = time.perf_counter() + 10
    while len(load.took_ms) < sent and time.perf_counter() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    load.wrong += sent - len(load.took_ms)
    return load


if __name__ == "__main__":
    port, rate, seconds, connections, prefix = sys.argv[1:6]
    done = uvloop.run(run(int(port), float(rate), float(seconds), int(connections), prefix))
    times = sorted(done.took_ms)
    p50, p99 = (round(times[int(len(times) * share)], 3) for share in (0.5, 0.99))
    print(
        json.dumps(
            {"per_second": len(times) / float(seconds), "p50_ms": p50, "p99_ms": p99, "sent": len(times), "wrong": done.wrong}
        )
    )
