"""The experiments: each gives what it found as plain data."""

import asyncio
import random
import time
from pathlib import Path

from tests.cluster.laboratory import Found, Laboratory, Progress, laboratory


async def kills(place: Path, progress: Progress, n: int = 100, rate: float = 300.0) -> Found:
    """kill -9 of a collector host, a forwarder, the broker that leads, any broker, in an order by lot. One broker at a time."""
    victims = dict.fromkeys(("collector", "forwarder", "leader", "broker"), 0)
    async with laboratory(place, rate, relays=False) as lab:
        began = time.monotonic()
        for turn in range(n):
            victim = random.choice(list(victims))
            victims[victim] += 1
            progress(turn / n, f"{lab.answered:,} answered; kill -9 of a {victim}")
            await asyncio.sleep(random.uniform(0.1, 1.2))
            await _killed(lab, victim)
        took = time.monotonic() - began
        progress(1.0, "draining")
        return {"experiment": "kills", "kills": n, "victims": victims, "seconds": round(took, 1), **await lab.account()}


async def _killed(lab: Laboratory, victim: str) -> None:
    if victim == "leader":
        part = await lab.leader()
    else:
        some = {"collector": lab.cluster.collectors, "forwarder": lab.cluster.forwarders, "broker": lab.brokers.all}[victim]
        part = random.choice(some)  # type: ignore[arg-type]
    part.kill()
    await asyncio.sleep(random.uniform(0, 1.0))
    part.start()
    if part in lab.brokers.all:
        await lab.healthy()


async def outage(place: Path, progress: Progress, seconds: float = 60.0, rate: float = 300.0) -> Found:
    """All brokers gone for that long, with the load on."""
    async with laboratory(place, rate, relays=False) as lab:
        await lab.load_for(3.0)
        before = lab.answered
        progress(0.1, f"{before:,} answered; the brokers are gone")
        await lab.brokers_killed(seconds)
        during = lab.answered - before
        progress(0.8, f"{lab.answered:,} answered; the brokers are back")
        await lab.load_for(5.0)
        progress(0.9, "draining")
        return {"experiment": "outage", "seconds": seconds, "answered_200_meanwhile": during, **await lab.account()}


async def mishaps(place: Path, progress: Progress, rate: float = 300.0) -> Found:
    """Frozen, cut off, full, restarted in turn, all killed."""
    async with laboratory(place, rate) as lab:
        rounds: dict[str, Found] = {}
        every = (
            lab.leader_killed,
            lab.leader_frozen,
            lab.leader_cut_off,
            lab.collectors_broker_cut_off,
            lab.disk_filled,
            lab.brokers_restarted_in_turn,
            lab.all_killed,
        )
        some = [mishap for mishap in every if lab.has_small_disk or mishap != lab.disk_filled]
        for turn, mishap in enumerate(some):
            name = mishap.__name__
            progress(turn / len(some), f"{lab.answered:,} answered; {name.replace('_', ' ')}")
            lab.longest_gap_s, refused, began = 0.0, _refused(lab), time.monotonic()
            await mishap(8.0)
            await lab.load_for(2.0)
            rounds[name] = {
                "seconds": round(time.monotonic() - began, 1),
                "longest_time_without_a_200_s": round(lab.longest_gap_s, 2),
                "answered_503": _refused(lab) - refused,
            }
        progress(1.0, "draining")
        found = await lab.account()
        del found["longest_time_without_a_200_s"]
        return {"experiment": "mishaps", "mishaps": rounds, **found}


def _refused(lab: Laboratory) -> int:
    return sum(driver.refused for driver in lab.drivers)
