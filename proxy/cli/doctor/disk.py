"""How long the disk takes to say that it has something: every visitor's beacon waits for it."""

import contextlib
import os
import time
from collections.abc import Iterator

from proxy.cli.doctor.finding import Finding, ok, skipped, warning
from proxy.cli.doctor.installation import Installation, nonce

WRITES, SECONDS = 40, 3.0
SLOW_MS = 20.0


def look(installation: Installation) -> Iterator[Finding]:
    place = installation.directory
    if place is None or not place.is_dir():
        yield skipped("there is no spool on a disk")
        return
    probe = place / f"doctor-{nonce()}.probe"
    took: list[float] = []
    try:
        with probe.open("wb", buffering=0) as opened:
            began = time.monotonic()
            while len(took) < WRITES and time.monotonic() - began < SECONDS:
                before = time.perf_counter()
                opened.write(b"beacon " * 600)
                os.fsync(opened.fileno())
                took.append((time.perf_counter() - before) * 1000)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    yield judge(sorted(took), installation.settings.durability)


def judge(took_ms: list[float], durability: str) -> Finding:
    """Sorted."""
    median, p99 = took_ms[len(took_ms) // 2], took_ms[min(len(took_ms) - 1, int(len(took_ms) * 0.99))]
    found = f"fsync takes {median:.1f} ms (median of {len(took_ms)}), {p99:.1f} ms at the 99th percentile"
    if median <= SLOW_MS:
        return ok(found)
    if durability == "os":
        return ok(f"{found}; visitors do not wait for it (durability = os)")
    return warning(
        f"{found}: each visitor waits so long for the GIF, though never blocking the page",
        'put the spool on a faster disk (an SSD), or set durability = "os" if a power cut may cost the last seconds',
    )
