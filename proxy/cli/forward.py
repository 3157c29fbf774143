"""`forward`: a forwarder alone, told by signals when to stop; the service manager is told how it is."""

import asyncio
import faulthandler
import signal
from collections.abc import Callable

from proxy.cli.child import loop_factory, run_forwarder
from proxy.cli.service import Service
from proxy.forward.config import ForwarderConfig
from proxy.spool.fallback.mover import moving

HANG_S = 60.0
"""A forwarder whose event loop has not turned for so long ends, and says where it stood: whoever started it starts it anew."""


def run(config: ForwarderConfig) -> None:
    """Until SIGTERM or SIGINT. One that waits for its turn at the spool counts as ready: it stands by. Beside collectors that
    `serve` did not start, nobody else would move what is in this host's fallback.
    """
    service = Service()

    def until(stop: Callable[[], None]) -> None:
        def told() -> None:
            service.stopping()
            stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told)

    async def attended() -> None:
        tasks = [asyncio.create_task(service.attend()), asyncio.create_task(_turn())]
        try:
            with moving(config.spool):
                await run_forwarder(config, until)
        finally:
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(attended())


async def _turn() -> None:
    """Until cancelled. The time runs out in a thread of its own, which needs nothing of a program that hangs."""
    try:
        while True:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            await asyncio.sleep(HANG_S / 4)
    finally:
        faulthandler.cancel_dump_traceback_later()
