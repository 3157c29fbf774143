"""A small steady load of numbered beacons, and what was answered to each."""

import asyncio
import contextlib
import itertools
import time

CONNECTIONS = 8
PATIENCE_S = 20.0
NUMBER = "Number"


class Load:
    """Through one port, as browsers send it. `answered` are the numbers that were answered 200."""

    def __init__(self, port: int, prefix: str, per_second: float) -> None:
        self._port, self._prefix, self._per_second = port, prefix, per_second
        self.sent = self.refused = self.broken = 0
        self.answered: set[str] = set()
        self._numbers = itertools.count(1)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until stopped."""
        await asyncio.gather(*(self._visitor(n) for n in range(CONNECTIONS)))

    def stop(self) -> None:
        self._stop.set()

    async def _visitor(self, n: int) -> None:
        pause = CONNECTIONS / self._per_second
        due = time.monotonic() + pause * n / CONNECTIONS
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), max(0.0, due - time.monotonic()))
                return
            due = max(due + pause, time.monotonic())
            await self._send(str(next(self._numbers)))

    async def _send(self, number: str) -> None:
        self.sent += 1
        target = f"{self._prefix}/e?_n=Viewed%20Product&_p=visitor{int(number) % 97}&{NUMBER}={number}"
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            self.broken += 1
            return
        if answer.startswith(b"HTTP/1.1 200 ") and b"GIF89a" in answer:
            self.answered.add(number)
        else:
            self.refused += 1
