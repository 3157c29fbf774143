"""The experiments. Each starts `beacon-proxy serve` as a user does, does it harm, and says what it found as plain data."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.chaos.driver import Driver, quantile
from tests.chaos.upstream import FAULTS
from tests.conftest import ProxyProcess, children, free_port, listening, wait_for

Progress = Callable[[float, str], None]
"""Told the share that is done, and what is going on."""
Found = dict[str, Any]
MIB = 1024 * 1024
CALM = "ok"


class Upstream:
    """The faulty vendor's process, and the line to its control port."""

    def __init__(self) -> None:
        self.port, control = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([sys.executable, "-m", "tests.chaos.upstream", str(self.port), str(control)])
        wait_for(lambda: listening(control), "the faulty vendor")
        self._line = socket.create_connection(("127.0.0.1", control)).makefile("rwb")

    def ask(self, command: str) -> Any:
        """The answer to `fault NAME`, `report` or `names`."""
        self._line.write(command.encode() + b"\n")
        self._line.flush()
        return json.loads(self._line.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def faulty_vendor() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    try:
        yield upstream
    finally:
        upstream.stop()


def _balance(status: Found) -> int:
    """0 when the ledger balances."""
    ended = status["delivered"] + sum(status["dropped"].values()) + status["dead"]
    return int(status["received"] - ended - status["pending"])


async def settled(proxy: ProxyProcess, patience_s: float) -> Found:
    """The status once nothing is pending. Dead letters are replayed on the way, as an operator would. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while True:
        status = await asyncio.to_thread(proxy.status)
        if status["dead"] and not status["pending"]:
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "proxy", "dead", "replay"],
                env=proxy.environment,
                check=True,
                capture_output=True,
            )
        elif not status["pending"]:
            return status
        if time.monotonic() > deadline:
            raise TimeoutError(f"the backlog did not drain within {patience_s} s: {status}")
        await asyncio.sleep(0.5)


def verdict(driver: Driver, upstream: Upstream, status: Found) -> Found:
    """What every experiment must show."""
    report = upstream.ask("report")
    missing = set(driver.answered) - set(upstream.ask("names"))
    return {
        "answered_200": len(driver.answered),
        "answered_503": driver.refused,
        "broken_connections": driver.broken,
        "missing_upstream": len(missing),
        "extra_copies": report["copies"],
        "differing_copies": report["differing"],
        "ledger_off_by": _balance(status),
        "received": status["received"],
        "delivered": status["delivered"],
    }


async def kills(place: Path, progress: Progress, n: int = 200, rate: float = 400.0) -> Found:
    """kill -9 of the tree, of a collector, of the forwarder, at random instants under load; half with each durability."""
    found: Found = {"experiment": "kills", "kills": n}
    victims = {"tree": 0, "collector": 0, "forwarder": 0}
    async with faulty_vendor() as upstream:
        port = free_port()
        driver = Driver(port, rate)
        driver.start()
        for half, durability in enumerate(("disk", "os")):

            def start(durability: str = durability) -> ProxyProcess:
                return ProxyProcess(place / "spool", upstream.url, port=port, durability=durability, workers="2")

            proxy = await asyncio.to_thread(start)
            for i in range(n // 2):
                progress((half * (n // 2) + i) / n, f"durability {durability}: {len(driver.answered):,} answered")
                await asyncio.sleep(random.uniform(0.1, 1.2))
                victim = random.choice(list(victims))
                victims[victim] += 1
                if victim == "tree":
                    proxy.kill()
                    proxy = await asyncio.to_thread(start)
                else:
                    pid = child_of(proxy, victim)
                    if pid:
                        os.kill(pid, signal.SIGKILL)
            if half == 0:
                proxy.kill()
        await driver.stop()
        progress(1.0, "draining")
        status = await settled(proxy, 120)
        found |= {"victims": victims, **verdict(driver, upstream, status)}
        found["exit_status"] = await asyncio.to_thread(proxy.stop)
    return found


def child_of(proxy: ProxyProcess, role: str, share: float | None = None) -> int:
    """The process of one of that role; 0 if it is just being restarted. `share`: which of them, from 0 to 1; else at random."""
    found = []
    for pid in children(proxy.process.pid):
        with contextlib.suppress(OSError):
            if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                found.append(pid)
    return sorted(found)[int((random.random() if share is None else share) * len(found))] if found else 0


async def faults(place: Path, progress: Progress, beacons: int = 100_000, seconds: float = 300.0) -> Found:
    """Beacons at a steady rate through a random schedule of upstream faults, a calm phase after each."""
    async with faulty_vendor() as upstream:
        proxy = await asyncio.to_thread(
            ProxyProcess, place / "spool", upstream.url, attempt_timeout="2", backoff_base="0.2", backoff_cap="5"
        )
        driver = Driver(proxy.port, beacons / seconds)
        driver.phase = "warm-up"
        driver.start()
        await asyncio.sleep(2)
        began, schedule = time.monotonic(), []
        while len(driver.answered) < beacons:
            pending = [fault for fault in FAULTS if fault != CALM]
            random.shuffle(pending)
            for fault in pending:
                for phase, length in ((CALM, seconds / 30), (fault, random.uniform(seconds / 60, seconds / 20))):
                    driver.phase = phase
                    schedule.append((round(time.monotonic() - began, 1), phase))
                    upstream.ask(f"fault {phase}")
                    until = time.monotonic() + length
                    while time.monotonic() < until and len(driver.answered) < beacons:
                        progress(min(1.0, len(driver.answered) / beacons), f"upstream: {phase}")
                        await asyncio.sleep(0.2)
                if len(driver.answered) >= beacons:
                    break
        await driver.stop()
        upstream.ask("fault ok")
        progress(1.0, "draining")
        status = await settled(proxy, 600)
        calm = driver.took_ms.get(CALM, [])
        faulty = [took for phase, times in driver.took_ms.items() if phase not in (CALM, "warm-up") for took in times]
        return {
            "experiment": "faults",
            "seconds": round(time.monotonic() - began, 1),
            "faults": [phase for _, phase in schedule if phase != CALM],
            **verdict(driver, upstream, status),
            "gif_p50_ms": {"calm": quantile(calm, 0.5), "faults": quantile(faulty, 0.5)},
            "gif_p99_ms": {"calm": quantile(calm, 0.99), "faults": quantile(faulty, 0.99)},
            "gif_p99_ms_by_fault": {phase: quantile(times, 0.99) for phase, times in sorted(driver.took_ms.items())},
            "exit_status": await asyncio.to_thread(proxy.stop),
        }


async def backlog(place: Path, progress: Progress, beacons: int = 1_000_000) -> Found:
    """A backlog of that many: start to first GIF, memory beside that of an empty spool, and the rate at which it drains."""
    from proxy.hit import Hit
    from proxy.spool.port import SpoolConfig
    from proxy.spool.sqlite.lane import Lane

    found: Found = {"experiment": "backlog", "beacons": beacons}
    async with faulty_vendor() as upstream:
        empty = await asyncio.to_thread(ProxyProcess, place / "empty", upstream.url)
        await asyncio.sleep(3)
        found["rss_mib_empty"] = _rss(empty)
        await asyncio.to_thread(empty.stop)

        def fill() -> None:
            config = SpoolConfig("", "os")
            lane = Lane(place / "spool", config)
            now = time.time_ns() // 1_000_000
            for first in range(0, beacons, 5000):
                batch = [
                    Hit("e", f"_n=b{n}&_p=p{n % 997}&Plan=Pro".encode(), b"", "default", "shop.example", "", "UA", "", "", now)
                    for n in range(first, min(first + 5000, beacons))
                ]
                lane._commit(batch, {})  # type: ignore[arg-type]
                progress(0.3 * first / beacons, "filling the spool")
            lane.close()

        await asyncio.to_thread(fill)
        upstream.ask("fault closed")
        began = time.monotonic()
        proxy = await asyncio.to_thread(ProxyProcess, place / "spool", upstream.url)
        found["start_to_first_gif_s"] = round(time.monotonic() - began, 2)
        await asyncio.sleep(3)
        upstream.ask("fault ok")
        rates, most, before = [], _rss(proxy), upstream.ask("report")["acknowledged"]
        while before < beacons:
            await asyncio.sleep(2)
            now = upstream.ask("report")["acknowledged"]
            rates.append((now - before) / 2)
            before = now
            most = {role: max(rss, most.get(role, 0)) for role, rss in _rss(proxy).items()}
            progress(0.3 + 0.7 * now / beacons, f"draining, {rates[-1]:,.0f}/s")
        rates = rates[2:-1]  # the breaker's last wait, the slow start, and the end
        tenth = max(1, len(rates) // 10)
        found |= {
            "rss_mib_most": most,
            "drain_per_s_at_the_beginning": round(sum(rates[:tenth]) / tenth),
            "drain_per_s_at_the_end": round(sum(rates[-tenth:]) / tenth),
            "drain_per_s": round(sum(rates) / len(rates)),
        }
        status = await settled(proxy, 60)
        found |= {"delivered": status["delivered"], "ledger_off_by": _balance(status)}
        found["exit_status"] = await asyncio.to_thread(proxy.stop)
    return found


def _rss(proxy: ProxyProcess) -> dict[str, float]:
    """Resident MiB of each child, by role."""
    return {role: round(int(fields["VmRSS"].split()[0]) / 1024, 1) for role, fields in _statuses(proxy).items()}


def _fds(proxy: ProxyProcess) -> dict[str, int]:
    found = {}
    for pid in children(proxy.process.pid):
        with contextlib.suppress(OSError):
            found[Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[3]] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def _statuses(proxy: ProxyProcess) -> dict[str, dict[str, str]]:
    found = {}
    for pid in children(proxy.process.pid):
        with contextlib.suppress(OSError, IndexError):
            role = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[3]
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found[role] = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return found


async def soak(place: Path, progress: Progress, minutes: float = 30.0, rate: float = 1500.0) -> Found:
    """Long load with a fault every so often: memory and descriptors after the first minute, and at the end."""
    async with faulty_vendor() as upstream:
        proxy = await asyncio.to_thread(ProxyProcess, place / "spool", upstream.url, attempt_timeout="2", backoff_cap="5")
        driver = Driver(proxy.port, rate)
        driver.start()
        began, end = time.monotonic(), minutes * 60
        samples: list[tuple[float, dict[str, float], dict[str, int]]] = []
        most_pending, switched, fault = 0, 0.0, CALM
        while (elapsed := time.monotonic() - began) < end:
            if elapsed - switched > (20 if fault == CALM else 4):
                switched, fault = elapsed, random.choice(FAULTS) if fault == CALM else CALM
                upstream.ask(f"fault {fault}")
            await asyncio.sleep(2)
            samples.append((elapsed, _rss(proxy), _fds(proxy)))
            if len(samples) % 15 == 0:
                most_pending = max(most_pending, (await asyncio.to_thread(proxy.status))["pending"])
            progress(elapsed / end, f"{len(driver.answered):,} answered, upstream {fault}, RSS {samples[-1][1]} MiB")
        await driver.stop()
        upstream.ask("fault ok")
        status = await settled(proxy, 600)
        warm = [sample for sample in samples if sample[0] >= min(60, end / 5)]
        tenth = max(1, len(warm) // 10)
        return {
            "experiment": "soak",
            "minutes": minutes,
            "rate": rate,
            **verdict(driver, upstream, status),
            "most_pending_seen": most_pending,
            "rss_mib_after_first_minute": _mean([sample[1] for sample in warm[:tenth]]),
            "rss_mib_at_the_end": _mean([sample[1] for sample in warm[-tenth:]]),
            "rss_mib_most": {role: max(sample[1].get(role, 0) for sample in warm) for role in warm[0][1]},
            "fds_after_first_minute": _mean([sample[2] for sample in warm[:tenth]]),
            "fds_at_the_end": _mean([sample[2] for sample in warm[-tenth:]]),
            "exit_status": await asyncio.to_thread(proxy.stop),
        }


def _mean(samples: list[Any]) -> dict[str, float]:
    return {role: round(sum(sample.get(role, 0) for sample in samples) / len(samples), 1) for role in samples[0]}
