"""The whole as a user starts it: what it sustains, what it weighs, how soon it is up."""

import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stage
from benchmarks.line import Effort, Line
from benchmarks.load import BEACON, HEADERS, steady
from proxy.settings.names import PREFIX
from proxy.spool import ledger_of
from proxy.spool.port import SpoolConfig

RATE = 5_500.0
SECONDS = 60
STARTS = 5


def measure(effort: Effort, place: Path) -> Iterator[Line]:
    """Beacons a second with the backlog bounded; memory at the end of it; start to first GIF."""
    seconds = SECONDS * min(1.0, max(effort.scale, 0.03))
    memory: dict[str, float] = {}
    pending: list[int] = []
    with tempfile.TemporaryDirectory(dir=place) as spool, stage.vendor() as upstream:
        config = SpoolConfig(f"sqlite:{spool}")
        with stage.serve(Path(spool), upstream) as (port, pid):
            load = threading.Thread(target=steady, args=(port, RATE, seconds, 64))
            began = time.monotonic()
            load.start()
            while load.is_alive():
                load.join(1.0)
                pending.append(ledger_of(config).pending)
            took = time.monotonic() - began
            delivered = ledger_of(config).total("delivered")
            memory = {role: stage.rss_mb(stage.processes(pid, role)[0]) for role in ("collector", "forwarder")}
    context = {"asked_per_second": RATE, "seconds": seconds, "pending_each_second": pending, "most_pending": max(pending)}
    what = f"the whole with load and vendor on two cores, delivered/s for {seconds:.0f} s"
    yield Line(what, f"at most {max(pending):,} waiting", 5_000, [delivered / took], "{:,.0f}".format, context=context)
    yield Line("memory of a collector, MB", "after that", 60, [memory["collector"]], "{:.0f}".format, False)
    yield Line("memory of the forwarder, MB", "after that", 90, [memory["forwarder"]], "{:.0f}".format, False)
    starts = [start_to_first_gif(place) for _ in range(max(1, int(STARTS * effort.scale)))]
    yield Line("start to the first GIF, s", "—", 0.6, starts, "{:.2f}".format, False)


def start_to_first_gif(place: Path) -> float:
    """Seconds from the command to the whole answer."""
    port, admin = stage.free_port(), stage.free_port()
    with tempfile.TemporaryDirectory(dir=place) as spool:
        given = {"api_key": "k", "upstream": "http://127.0.0.1:9", "spool": f"sqlite:{spool}", "log_level": "warning"}
        given |= {"port": str(port), "admin_port": str(admin)}
        began = time.monotonic()
        environ = {PREFIX + name.upper(): value for name, value in given.items()}
        with stage.process([sys.executable, "-m", "proxy", "serve"], stage.EVERYWHERE, **environ) as started:
            while time.monotonic() < began + 15:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                try:
                    connection.request("GET", BEACON, headers=HEADERS)
                    if connection.getresponse().read().startswith(b"GIF89a"):
                        break
                except OSError:
                    time.sleep(0.002)
                finally:
                    connection.close()
            took = time.monotonic() - began
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                pass  # killed by the stage
    return took
