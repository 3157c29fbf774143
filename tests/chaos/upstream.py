"""A vendor with switchable faults: `python -m tests.chaos.upstream PORT CONTROL_PORT`.

Beacons come to PORT. On CONTROL_PORT a line is a command: `fault NAME`, `report`, `names`; the answer is one line of JSON.
It remembers each beacon by its `_n`: whether it was acknowledged (a whole 200 written), how many copies came, and whether they
were identical to the byte.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import sys
from hashlib import blake2b

GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")


def _answer(status: str, *headers: str, body: bytes = GIF) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: image/gif", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


OK = _answer("200 OK")
REFUSALS = {
    "500": _answer("500 Internal Server Error"),
    "503": _answer("503 Service Unavailable", "Retry-After: 1"),
    "429": _answer("429 Too Many Requests", "Retry-After: 1"),
    "404": _answer("404 Not Found"),
    "302": _answer("302 Found", "Location: http://127.0.0.1:9/elsewhere"),
    "garbage": b"\x16\x03\x01\x00\x00 this is no HTTP\r\n\r\n",
}
TAKEN_BUT_NOT_SAID = ("hang", "reset", "half")
"""The vendor has the beacon, and the proxy cannot know: the resend must be the same bytes."""
FAULTS = ("ok", *REFUSALS, *TAKEN_BUT_NOT_SAID, "slow", "flaky", "closed")
NAME = re.compile(rb"[?&]_n=([^& ]+)")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Vendor:
    """What came, and what is wrong just now."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.hold = socket.socket()  # keeps the port ours while we do not listen: another could take it, and keep us out
        self.hold.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.hold.bind(("127.0.0.1", port))
        self.fault = "ok"
        self.digests: dict[bytes, bytes] = {}
        self.acknowledged: set[bytes] = set()
        self.requests = self.copies = self.differing = self.in_flight = self.most_in_flight = 0
        self.connections: set[Connection] = set()
        self.server: asyncio.Server | None = None

    async def switch(self, fault: str) -> None:
        """Make that fault the present one; those that hang are let go."""
        was, self.fault, self.most_in_flight = self.fault, fault, 0
        if fault == "closed" and self.server is not None:
            self.server.close()
            self.server = None
        if was == "hang" or fault == "closed":
            for connection in list(self.connections):
                connection.transport.abort()
        if fault != "closed" and self.server is None:
            self.server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self), "127.0.0.1", self.port, backlog=1024
            )

    def take(self, head: bytes, body: bytes) -> bytes:
        """Remember a beacon; its name."""
        target = head.split(b" ", 2)[1]
        found = NAME.search(target) or NAME.search(b"&" + body)
        name = found[1] if found else target
        digest = blake2b(target + b"\n" + body, digest_size=16).digest()
        before = self.digests.setdefault(name, digest)
        if name in self.acknowledged or before is not digest:
            self.copies += 1
        if before != digest:
            self.differing += 1
        return name

    def report(self) -> dict[str, int]:
        """Counts."""
        return {
            "requests": self.requests,
            "beacons": len(self.digests),
            "acknowledged": len(self.acknowledged),
            "copies": self.copies,
            "differing": self.differing,
            "most_in_flight": self.most_in_flight,
        }


class Connection(asyncio.Protocol):
    """HTTP/1.1, as much as the forwarder's requests need."""

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.buffer = b""
        self.busy = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.vendor.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.vendor.connections.discard(self)
        self.vendor.in_flight -= self.busy

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[: end + 2]
            length = int(found[1]) if (found := LENGTH.search(head)) else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        vendor = self.vendor
        vendor.requests += 1
        self.busy += 1
        vendor.in_flight += 1
        vendor.most_in_flight = max(vendor.most_in_flight, vendor.in_flight)
        fault = vendor.fault
        if fault == "flaky":
            fault = random.choice(["ok", "ok", "ok", "500", "reset"])
        if fault in REFUSALS:
            self.write(REFUSALS[fault])
            if fault == "garbage":
                self.transport.close()
            return
        name = vendor.take(head, body)
        if fault == "reset":
            self.transport.abort()
        elif fault == "half":
            self.transport.write(OK[: len(OK) // 2])
            self.transport.close()
        elif fault == "slow":
            asyncio.get_running_loop().call_later(random.uniform(0.2, 1.0), self.acknowledge, name)
        elif fault != "hang":
            self.acknowledge(name)

    def acknowledge(self, name: bytes) -> None:
        if not self.transport.is_closing():
            self.write(OK)
            self.vendor.acknowledged.add(name)

    def write(self, answer: bytes) -> None:
        self.busy -= 1
        self.vendor.in_flight -= 1
        self.transport.write(answer)


async def _serve(port: int, control_port: int) -> None:
    vendor = Vendor(port)
    await vendor.switch("ok")

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().split():
            answer: object = vendor.report()
            if line[0] == "fault":
                await vendor.switch(line[1])
            elif line[0] == "names":
                answer = [name.decode("latin-1") for name in vendor.acknowledged]
            writer.write(json.dumps(answer).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(control, "127.0.0.1", control_port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the experiment, which ends this process
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
