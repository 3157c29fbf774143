"""Two collectors and two forwarders against one of each: beacons a second, and processor time by part."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import stage
from benchmarks.load import BEACON, HEADERS
from proxy.cli.cluster.brokers import Brokers
from proxy.cli.cluster.cluster import Cluster
from proxy.spool import fallback_pending, spool_bytes
from proxy.spool.port import SpoolConfig
from tests.cluster.laboratory import Found, Progress

SECONDS = 6.0
CONNECTIONS = 32
"""For each collector."""
PATIENCE_S = 120.0


async def measure(place: Path, progress: Progress, rounds: int = 5) -> Found:
    """In turn; what counts is the ratio within a round."""
    turns: list[dict[int, Found]] = []
    for n in range(rounds):
        turn: dict[int, Found] = {}
        for many in (1, 2) if n % 2 == 0 else (2, 1):
            progress((len(turns) * 2 + len(turn)) / (2 * rounds), f"round {n + 1}: {many} of each")
            turn[many] = await _turn(place / f"{n}-{many}", many)
        turns.append(turn)
    ratios = {
        name: _spread([turn[2][name] / turn[1][name] for turn in turns])
        for name in ("answered_per_s", "delivered_per_s", "collector_us", "forwarder_us", "broker_us")
    }
    absolute = {name: {many: _spread([turn[many][name] for turn in turns], 1) for many in (1, 2)} for name in turns[0][2]}
    return {
        "experiment": "throughput",
        "what": "two collectors and forwarders over one of each; three brokers and replicas; load and vendor on the machine too",
        "rounds": rounds,
        "ratio_two_over_one": ratios,
        "found": absolute,
        "fallback": await _fallback(place / "fallback"),
        "raw": turns,
    }


def _spread(turns: Sequence[float], digits: int = 3) -> Found:
    found = [one for one in turns if one] or [0.0]  # nothing was left to be measured, where 0
    return {
        "min": round(min(found), digits),
        "median": round(statistics.median(found), digits),
        "max": round(max(found), digits),
    }


async def _turn(place: Path, many: int) -> Found:
    with stage.vendor() as upstream:
        brokers = Brokers(place)
        async with Cluster(place, upstream, brokers, many, many, log_level="warning") as cluster:
            before = _processor_s(cluster)
            began = time.monotonic()
            loads = [_wrk(host.port) for host in cluster.collectors]
            await asyncio.to_thread(_ended, loads)
            loaded_s = time.monotonic() - began
            status: Found = await asyncio.to_thread(cluster.status)
            answered = int(status["received"])
            left = int(status["pending"])
            size = await asyncio.to_thread(_bytes, cluster)
            while status["pending"] or status["delivered"] < answered:
                if time.monotonic() > began + PATIENCE_S:
                    raise TimeoutError(f"the backlog did not drain: {status}")
                await asyncio.sleep(0.2)
                status = await asyncio.to_thread(cluster.status)
            took = time.monotonic() - began
            after = _processor_s(cluster)
            memory = {f"{kind}_rss_mb": max(stage.rss_mb(pid) for pid in pids) for kind, pids in _pids(cluster).items()}
        spent = {kind: (after[kind] - before[kind]) / answered * 1e6 for kind in after}
        return {
            "answered": answered,
            "answered_per_s": answered / loaded_s,
            "delivered_per_s": answered / took,
            "left_after_load": left,
            "bytes_per_beacon": size / left if left else 0.0,
            **{f"{kind}_us": us for kind, us in spent.items()},
            **memory,
        }


async def _fallback(place: Path) -> Found:
    """What a beacon takes on a collector's disk while no broker is there, all of its files counted."""
    with stage.vendor() as upstream:
        brokers = Brokers(place)
        async with Cluster(place, upstream, brokers, 1, 0, log_level="warning") as cluster:
            for broker in brokers.all:
                broker.kill()
            began = time.monotonic()
            await asyncio.to_thread(_ended, [_wrk(cluster.collectors[0].port)])
            loaded_s = time.monotonic() - began
            held = place / "collector-1"
            waiting = await asyncio.to_thread(fallback_pending, SpoolConfig(brokers.spool, fallback=f"sqlite:{held}"))
            size = sum(path.stat().st_blocks * 512 for path in held.rglob("*") if path.is_file())
            return {"waiting": waiting, "answered_per_s": waiting / loaded_s, "bytes_per_beacon": size / waiting}


def _wrk(port: int) -> subprocess.Popen[bytes]:
    command = [stage.tool("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS:g}s"]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    return subprocess.Popen([*command, f"http://127.0.0.1:{port}{BEACON}"], stdout=subprocess.DEVNULL, stderr=sys.stderr)


def _ended(loads: Sequence[subprocess.Popen[bytes]]) -> None:
    for load in loads:
        try:
            load.wait(SECONDS + 30)
        finally:
            load.kill()


def _bytes(cluster: Cluster) -> int:
    """What the pending beacons take in one replica."""
    return spool_bytes(cluster.spool)


def _pids(cluster: Cluster) -> dict[str, list[int]]:
    """Of the processes that do the work, by kind of part."""
    hosts = [host.process.pid for host in cluster.collectors if host.process]
    return {
        "collector": [pid for host in hosts for pid in stage.processes(host, "collector")],
        "broker": [pid for broker in cluster.brokers.all for pid in broker.pids()],
        "forwarder": [
            *(pid for forwarder in cluster.forwarders for pid in forwarder.pids()),
            *(pid for host in hosts for pid in stage.processes(host, "forwarder")),  # none where the setting forward is off
        ],
    }


def _processor_s(cluster: Cluster) -> dict[str, float]:
    """So far, by kind of part; and of the busiest broker, which leads."""
    pids = _pids(cluster)
    return {
        **{kind: stage.processor_s(some) for kind, some in pids.items()},
        "busiest_broker": max(stage.processor_s([pid]) for pid in pids["broker"]),
    }
