"""Between each two brokers stands a relay, so that one can be cut off from the others while its clients still reach it."""

import asyncio
import contextlib
import socket


class Relay:
    """Takes connections on a port of its own and passes them on, unless it is cut."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, sock=self._listener)

    def cut(self, cut: bool) -> None:
        """Whether nothing passes from now on. Connections that there are end."""
        self._cut = cut
        for writer in list(self._writers) if cut else ():
            writer.transport.abort()

    def close(self) -> None:
        self.cut(True)
        if self._server is not None:
            self._server.close()
        self._listener.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there = None
        try:
            if not self._cut:
                back, there = await asyncio.open_connection("127.0.0.1", self._to)
                self._writers.add(there)
                await asyncio.gather(_pump(reader, there), _pump(back, writer))
        except OSError:
            pass  # one end is gone, and the other with it
        finally:
            for one in filter(None, (writer, there)):
                self._writers.discard(one)
                one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
        await writer.drain()
    raise ConnectionResetError


class Relays:
    """All of them, by who dials and who is dialled."""

    def __init__(self) -> None:
        self._all: dict[tuple[int, int], Relay] = {}

    def reach(self, me: int, peer: int, port: int) -> int:
        """A Reach."""
        self._all[me, peer] = Relay(port)
        return self._all[me, peer].port

    async def start(self) -> None:
        for relay in self._all.values():
            await relay.start()

    def cut_off(self, broker: int, cut: bool = True) -> None:
        """From all others, or not any more."""
        for between, relay in self._all.items():
            if broker in between:
                relay.cut(cut)

    def close(self) -> None:
        for relay in self._all.values():
            with contextlib.suppress(OSError):
                relay.close()
