"""A vendor that takes its time: `python -m benchmarks.vendor FD DELAY_MS` answers every request with the GIF after that delay."""

import asyncio
import socket
import sys

import uvloop

from proxy.collector.pixel import GIF

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: image/gif\r\nContent-Length: %d\r\n\r\n" % len(GIF) + GIF


class Connection(asyncio.Protocol):
    """Knows requests by the empty line after their head; bodies are left out of account (none is sent)."""

    delay_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for _ in heads:
            asyncio.get_running_loop().call_later(self.delay_s, self._transport.write, ANSWER)


async def _main(fd: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, sock=socket.socket(fileno=fd))
    await server.serve_forever()


if __name__ == "__main__":
    Connection.delay_s = float(sys.argv[2]) / 1000
    uvloop.run(_main(int(sys.argv[1])))
