"""One event all the way: through the public address, into the spool, to the vendor. It counts there, so only when asked for."""

import time
from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from proxy.cli.doctor.finding import Finding, ok, skipped, wrong
from proxy.cli.doctor.installation import Installation, nonce
from proxy.forward.watch import RETRY
from proxy.outcome import Outcome
from proxy.spool import watching
from proxy.spool.port import Tapped
from proxy.spool.tap import DATAGRAM_BYTES

PATIENCE_S = 15.0
LOOK_S = 1.5
"""Collectors and forwarder look for a watcher once a second."""
PERSON, PROPERTY = "beacon-proxy-doctor", "doctor"


def look(installation: Installation) -> Iterator[Finding]:
    if not installation.canary:
        yield skipped("no event is sent unless --canary NAME asks for it: it would count at the vendor")
        return
    if installation.outside:
        yield skipped(installation.outside)
        return
    mark, last = nonce(), "not tried yet"
    with watching(installation.spool) as listener:
        time.sleep(LOOK_S)
        began = time.monotonic()
        asked = installation.beacon(f"_n={quote(installation.canary, safe='')}&_p={PERSON}&{PROPERTY}={mark}")
        answered = time.monotonic() - began
        if asked.status != 200:
            yield wrong(f"it is answered {asked.status}: not stored", "see /readyz of the admin listener, and nginx's error log")
            return
        while (left := began + PATIENCE_S - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                seen = msgspec.json.decode(listener.recv(DATAGRAM_BYTES), type=Tapped)
            except TimeoutError:
                break
            except msgspec.DecodeError:
                continue
            if seen.properties.get(PROPERTY) != mark:
                continue
            if seen.outcome == RETRY:
                last = f"tried {seen.attempt} times, last answer {seen.answer}"
                continue
            yield _ended(seen, answered, time.monotonic() - began)
            return
    outcome = asked.headers.get("x-beacon-outcome", "").partition(";")[0]
    told = f"the proxy says {outcome}; " if outcome else ""
    yield wrong(
        f"it was answered in {answered * 1000:.0f} ms, but not delivered within {PATIENCE_S:g} s ({told}{last})",
        "see the upstream and ledger checks, and `beacon-proxy tail --failing` while you send another",
    )


def _ended(seen: Tapped, answered_s: float, all_s: float) -> Finding:
    if seen.outcome != Outcome.DELIVERED:
        return wrong(f"it ended as {seen.outcome} ({seen.answer or 'not sent'})", "docs/outcomes.md says what that means")
    return ok(
        f"the GIF came after {answered_s * 1000:.0f} ms, the vendor had it {seen.age_ms} ms after receipt "
        f"(attempt {seen.attempt}, answer {seen.answer}), known here after {all_s * 1000:.0f} ms"
    )
