"""A process of `serve`: `python -m proxy.cli.child collector FD | forwarder | mover | admin FD [--beat FD]`; and `trial`, which
only loads what a forwarder would load, to see whether it can.

Its configuration comes as one JSON line on standard input, so no key stands in any environment or argument list. Standard input
then stays open: its end means that the supervisor is gone, and the process stops by itself. Each role imports what it needs and
no more, no command line and no settings code either, to be up quickly and small. With --beat it writes a byte there once it does
its work, and then each second, so that the supervisor knows it ready, and knows when it hangs.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from proxy.admin.config import AdminConfig
from proxy.collector.config import CollectorConfig
from proxy.enrich import EnricherError
from proxy.forward.config import CannotTrace, ForwarderConfig
from proxy.log import configure, log, own_process
from proxy.spool import open_intake, open_outlet
from proxy.spool.fallback.config import MoverConfig
from proxy.spool.port import ForwarderRunning, Outlet, SpoolError

EX_CONFIG = 78
"""Exit status for what a restart cannot mend (sysexits.h): the supervisor stops and says so."""


def _when_told(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM, or when the supervisor is gone. SIGINT from a terminal is the supervisor's to translate."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)

    def supervisor_gone() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop()

    loop.add_reader(0, supervisor_gone)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGCHLD))


BEAT_S = 1.0


async def _beat(fd: int, at_work: Callable[[], bool]) -> None:
    """Tell the supervisor that the event loop turns."""
    os.set_blocking(fd, False)
    while True:
        if at_work():
            with contextlib.suppress(OSError):  # it is busy, or gone
                os.write(fd, b".")
        await asyncio.sleep(BEAT_S if at_work() else 0.01)


@contextlib.asynccontextmanager
async def _beating(fd: int | None, at_work: Callable[[], bool] = lambda: True) -> AsyncIterator[None]:
    task = asyncio.create_task(_beat(fd, at_work)) if fd is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def run_collector(config: CollectorConfig, fd: int, beat: int | None = None) -> None:
    """Serve beacons on the listening socket `fd` until told to stop."""
    from proxy.collector.asgi import CollectorApp
    from proxy.collector.express import Express
    from proxy.collector.server import LINGER_S, make_server

    intake = open_intake(config.spool)
    try:
        app = CollectorApp(config, intake)
        serving = make_server(app, config.shutdown_grace_s, Express(app, intake), LINGER_S)
        _when_told(serving.stop)
        async with _beating(beat, lambda: serving.started):
            await serving.serve(sockets=[socket.socket(fileno=fd)])
    finally:
        intake.close()


async def run_admin(config: AdminConfig, fd: int, beat: int | None = None) -> None:
    """Serve the admin listener on the socket `fd` until told to stop."""
    from proxy.admin.app import make_app
    from proxy.admin.page.look import Look
    from proxy.collector.server import make_server

    look = Look(config.spool)
    serving = make_server(make_app(config, look), 3)
    _when_told(serving.stop)
    async with _beating(beat, lambda: serving.started), look.kept():
        await serving.serve(sockets=[socket.socket(fileno=fd)])


async def run_mover(config: MoverConfig, beat: int | None = None) -> None:
    """Move what is in the fallback into the spool until told to stop."""
    from proxy.spool.fallback.mover import STUCK_S, Mover

    mover = Mover(config.spool)
    _when_told(mover.stop)
    async with _beating(beat, lambda: time.monotonic() - mover.turned < STUCK_S):
        await asyncio.to_thread(mover.run)


async def run_forwarder(
    config: ForwarderConfig, until: Callable[[Callable[[], None]], None], beat: int | None = None, patient: bool = False
) -> None:
    """Deliver until told to stop; `until(stop)` arranges the telling. Waits while another forwarder holds the spool, and,
    `patient`, while it cannot be used for whatever reason.
    """
    from proxy.forward.forwarder import Forwarder
    from proxy.forward.priority import step_back

    stopping = asyncio.Event()
    until(stopping.set)
    async with _beating(beat):
        outlet = await _outlet_when_free(config, stopping, patient)
        if outlet is None:
            return
        forwarder = Forwarder(config, outlet)
        step_back()
        stopper = asyncio.create_task(stopping.wait())
        stopper.add_done_callback(lambda _: forwarder.stop())
        await forwarder.run()
        stopper.cancel()


async def _outlet_when_free(config: ForwarderConfig, stopping: asyncio.Event, patient: bool) -> Outlet | None:
    """None if stopped before."""
    logged: set[str] = set()
    while not stopping.is_set():
        try:
            return open_outlet(config.spool)
        except SpoolError as held:
            if not patient and not isinstance(held, ForwarderRunning):
                raise
            if (reason := str(held)) not in logged:
                log.warning("forwarder waits", reason=reason)
            logged.add(reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 1.0)
    return None


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    own_process()
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65_536)
        if not chunk:
            return EX_CONFIG
        line += chunk
    role, *arguments = sys.argv[1:]
    beat = int(arguments[arguments.index("--beat") + 1]) if "--beat" in arguments else None
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            if role == "collector":
                config = msgspec.json.decode(line, type=CollectorConfig)
                configure(config.log_level, config.log_format)
                runner.run(run_collector(config, int(arguments[0]), beat))
            elif role == "admin":
                admin = msgspec.json.decode(line, type=AdminConfig)
                configure(admin.log_level, admin.log_format)
                runner.run(run_admin(admin, int(arguments[0]), beat))
            elif role == "mover":
                moving = msgspec.json.decode(line, type=MoverConfig)
                configure(moving.log_level, moving.log_format)
                runner.run(run_mover(moving, beat))
            elif role == "trial":
                from proxy.forward.trial import try_out

                try_out(msgspec.json.decode(line, type=ForwarderConfig))
            else:
                forwarding = msgspec.json.decode(line, type=ForwarderConfig)
                configure(forwarding.log_level, forwarding.log_format)
                runner.run(run_forwarder(forwarding, _when_told, beat, patient=bool(forwarding.spool.fallback)))
    except (SpoolError, EnricherError, CannotTrace) as error:
        if role == "trial":
            print(error, file=sys.stderr)  # for whoever tries, who tells it in his own words
        else:
            log.error("cannot run as configured", reason=str(error))
        return EX_CONFIG
    except OSError as error:
        if error.filename is None:
            raise
        log.error("cannot go on", file=error.filename, reason=error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
