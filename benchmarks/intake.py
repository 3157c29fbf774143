"""Intake: how many beacons a second one collector on one core answers, against servers that store nothing or lose beacons.

All in turn (A B C A B C …), the server on one core and wrk on the other; what counts is the ratio in the same round.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import stage
from benchmarks.checkout import Checkout
from benchmarks.line import Effort, Line, ratios
from benchmarks.load import BEACON, CONNECTIONS, wrk

Server = Callable[[Path], AbstractContextManager[int]]
MIRROR = """
upstream vendor {{ server {vendor}; keepalive 64; }}
server {{
  listen 127.0.0.1:{port} backlog=4096;
  location / {{ mirror /mirrored; empty_gif; }}
  location = /mirrored {{
    internal; proxy_pass http://vendor/e?_k=key&$args; proxy_http_version 1.1; proxy_set_header Connection "";
  }}
}}
"""


@contextmanager
def mirror(_: Path) -> Iterator[int]:
    """nginx that answers by itself and sends a copy upstream, which is lost when the upstream is away."""
    with stage.vendor() as vendor:
        port = stage.free_port()
        body = MIRROR.format(vendor=vendor.removeprefix("http://"), port=port)
        with stage.nginx(body, stage.MEASURED, f"http://127.0.0.1:{port}{BEACON}"):
            yield port


def servers(other: Checkout | None) -> dict[str, Server]:
    """In the order of their turns: another version's collectors come right after ours."""
    found: dict[str, Server] = {"bare": lambda spool: stage.bare("bare")}
    for durability in ("os", "disk"):
        found[durability] = partial(stage.collectors, durability=durability)
        if other is not None:
            found[f"other {durability}"] = partial(stage.collectors, durability=durability, version=other)
    return {**found, "starlette": lambda spool: stage.bare("starlette"), "mirror": mirror}


def measure(effort: Effort, place: Path, other: Checkout | None = None) -> Iterator[Line]:
    """Four lines, and two more against another version."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers(other)}
    for _ in range(effort.rounds):
        for name, server in servers(other).items():
            with tempfile.TemporaryDirectory(dir=place) as spool, server(Path(spool)) as port:
                wrk(port, min(1.0, effort.seconds))
                runs[name].append(wrk(port, effort.seconds))
    rates = {name: [run["per_second"] for run in found] for name, found in runs.items()}
    against = {
        "bare": "bare uvicorn, the GIF and nothing stored",
        "starlette": "Starlette Route, the GIF and nothing stored",
        "mirror": "nginx mirror + empty_gif, which loses beacons",
    }
    compared = [("os", "bare", 0.75), ("disk", "bare", 0.60), ("disk", "starlette", 1.7), ("disk", "mirror", 1.5)]
    if other is not None:
        against |= {"other os": other.name, "other disk": other.name}
        compared += [("os", "other os", 1.0), ("disk", "other disk", 1.0)]
    for durability, base, reach in compared:
        what = f"intake on one core, durability={durability}"
        context = {durability: runs[durability], base: runs[base]}
        yield Line(what, against[base], reach, ratios(rates[durability], rates[base]), context=context)


def scaling(effort: Effort, place: Path) -> Iterator[Line]:
    """Two collectors on two cores against one on one.

    Where there are but two cores the load takes its share of them, as it does of bare servers: so also what two could do with a
    load from elsewhere, told by the processor time that a beacon costs a collector.
    """
    both = [stage.MEASURED, stage.OTHER]
    runs: dict[str, list[float]] = {name: [] for name in ("one", "two", "bare one", "bare two")}
    cost_us: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(effort.rounds):
        for name, found in runs.items():
            workers = both if name.endswith("two") else both[:1]
            with contextlib.ExitStack() as stack:
                spool = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
                server = stage.bare("bare", workers) if "bare" in name else stage.collectors(spool, "disk", workers)
                port = stack.enter_context(server)
                wrk(port, min(1.0, effort.seconds))
                pids = stage.processes(os.getpid(), "collector")
                before = stage.processor_s(pids)
                found.append(wrk(port, effort.seconds, 2 * CONNECTIONS)["per_second"])
                if name in cost_us:
                    cost_us[name].append((stage.processor_s(pids) - before) / (found[-1] * effort.seconds) * 1e6)
    bare = Line("", "", 0, ratios(runs["bare two"], runs["bare one"])).spread()
    against = f"one on one (two bare servers against one: {bare})"
    yield Line("two collectors on two cores, which the load shares", against, 1.8, ratios(runs["two"], runs["one"]), context=runs)
    yield Line(
        "two collectors, by the processor time a beacon costs",
        "one",
        1.8,
        [2 * ratio for ratio in ratios(cost_us["one"], cost_us["two"])],
        context={"us_a_beacon": cost_us},
    )
