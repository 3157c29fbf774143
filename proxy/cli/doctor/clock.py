"""Is this machine's clock right? Each beacon's time is its receipt here."""

import ctypes
import sys
from collections.abc import Iterator

import httpx

from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation

TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronised."""
FAR_S, TOO_FAR_S = 2.0, 60.0
MEND = "let a time service keep it: `timedatectl set-ntp true`, or install chrony"


def look(installation: Installation) -> Iterator[Finding]:
    synchronised = _synchronised()
    if synchronised is None:
        yield skipped("whether it is synchronised: this system does not say")
    elif synchronised:
        yield ok("the kernel says that it is synchronised")
    else:
        yield warning("the kernel says that nothing synchronises it (in a container: ask its host)", MEND)
    for url in (*installation.upstreams(), *([installation.public[0]] if installation.url else [])):
        try:
            asked = installation.ask(f"{url}/", "HEAD")
        except httpx.HTTPError:
            yield skipped(f"compared with {url}: it does not answer")
        else:
            yield compared(url, asked.clock_off_s)


def compared(url: str, off_s: float | None) -> Finding:
    """`off_s`: that clock less ours."""
    if off_s is None:
        return skipped(f"compared with {url}: it tells no time")
    which = "behind" if off_s > 0 else "ahead of"
    if abs(off_s) > TOO_FAR_S:
        return wrong(f"it is {abs(off_s):,.0f} s {which} that of {url}: beacons get a wrong time", MEND)
    if abs(off_s) > FAR_S:
        return warning(f"it is {abs(off_s):.1f} s {which} that of {url}", MEND)
    return ok(f"it agrees with that of {url}, within {FAR_S:g} s")


def _synchronised() -> bool | None:
    if not sys.platform.startswith("linux"):
        return None
    timex = (ctypes.c_char * 512)()  # more than a struct timex has; modes = 0 only reads
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR
