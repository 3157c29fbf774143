"""How long the GIF takes: whatever state the upstream is in, while a backlog drains, and behind nginx."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import stage
from benchmarks.fill import fill
from benchmarks.line import Effort, Line, ratios
from benchmarks.load import BEACON, steady
from proxy.spool import ledger_of
from proxy.spool.port import SpoolConfig

RATE = 500.0
"""Beacons a second: much for a site, little for the machine."""
SECONDS = 3
"""Times the effort's seconds: a 99th percentile needs many."""
BACKLOG = 2_300_000
"""More than a million is left of it at the end."""
BEHIND = """
upstream collector {{ server 127.0.0.1:{collector}; keepalive 64; }}
upstream vendor {{ server {vendor}; keepalive 64; }}
server {{
  listen 127.0.0.1:{port} backlog=4096;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  location /ours/ {{ proxy_pass http://collector/; }}
  location /theirs/ {{ proxy_pass http://vendor/e?_k=key&$args; }}
}}
"""


def states(effort: Effort, place: Path) -> Iterator[Line]:
    """p99 with the upstream slow, down, or a backlog draining, against the upstream at 0 ms and no backlog.

    A core runs slower while its neighbour works, whatever it works at. So the backlog is also held against calm beside the
    forwarder of another spool, that drains the same backlog to the same vendor: that ratio tells what the backlog itself costs.
    """
    names = {
        "calm": "",
        "500 ms away": "upstream 500 ms away",
        "down": "upstream down",
        "backlog": "a backlog of a million draining",
        "neighbour": "",
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        full, other = Path(scratch, "full"), Path(scratch, "other")
        fill(full, int(BACKLOG * effort.scale))
        shutil.copytree(full, other)
        for _ in range(effort.rounds):
            for name, found in runs.items():
                os.sync()  # what the turn before left to be written is not this one's
                with ExitStack() as stack:
                    upstream = f"http://127.0.0.1:{stage.free_port()}"
                    if name != "down":
                        upstream = stack.enter_context(stage.vendor(500.0 if name == "500 ms away" else 0.0))
                    spool = full if name == "backlog" else Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
                    port, _ = stack.enter_context(stage.serve(spool, upstream, log_level="error"))
                    if name == "neighbour":
                        stack.enter_context(stage.forwarder(other, upstream, cores=stage.EVERYWHERE))
                    steady(port, RATE, 1)
                    found.append(steady(port, RATE, SECONDS * effort.seconds))
        left = ledger_of(SpoolConfig(f"sqlite:{full}")).pending
    calm, neighbour = "upstream at 0 ms, no backlog", "the same beside another spool's backlog"
    for name, base, against in (
        ("500 ms away", "calm", calm),
        ("down", "calm", calm),
        ("backlog", "calm", calm),
        ("backlog", "neighbour", neighbour),
    ):
        p99, p50 = (ratios(*([run[key] for run in runs[which]] for which in (name, base))) for key in ("p99_ms", "p50_ms"))
        context = {base: runs[base], name: runs[name], "p50": p50, **({"left": left} if name == "backlog" else {})}
        yield Line(f"GIF p99, {names[name]}", against, 1.3, p99, at_least=False, context=context)


def behind_nginx(effort: Effort, place: Path) -> Iterator[Line]:
    """p50 behind nginx with the vendor 50 ms away, against nginx that passes each beacon on."""
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(dir=place) as spool, stage.vendor(50.0) as vendor, ExitStack() as stack:
        collector, _ = stack.enter_context(stage.serve(Path(spool), vendor))
        port = stage.free_port()
        body = BEHIND.format(collector=collector, vendor=vendor.removeprefix("http://"), port=port)
        stack.enter_context(stage.nginx(body, stage.MEASURED, f"http://127.0.0.1:{port}/ours{BEACON}"))
        for _ in range(effort.rounds):
            for prefix, found in (("/ours", ours), ("/theirs", theirs)):
                found.append(steady(port, RATE, effort.seconds, 64, prefix)["p50_ms"])
    context = {"ours_p50_ms": ours, "proxy_pass_p50_ms": theirs}
    against = "nginx proxy_pass with the key in $args"
    yield Line(
        "GIF p50 behind nginx, upstream 50 ms away", against, 1 / 15, ratios(ours, theirs), "{:.3f}".format, False, context
    )
