"""`doctor`: looks at a running installation and says of each thing whether it is well, and how to mend it.

A check is a file with one function and one entry in CHECKS; it yields findings and knows nothing of the others. Each runs in a
thread with a limit of its own, so that a disk or a network that does not answer is a finding, not a hang.
"""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.text import Text

from proxy import settings
from proxy.cli.doctor import (
    admin,
    canary,
    clock,
    configuration,
    cookies,
    disk,
    exposure,
    forwarded,
    hosts,
    ledger,
    public,
    script,
    spool,
)
from proxy.cli.doctor import upstream as upstreams
from proxy.cli.doctor.finding import Finding, Result, skipped, wrong
from proxy.cli.doctor.installation import Installation
from proxy.cli.options import Runs
from proxy.cli.tail import harmless
from proxy.spool.port import SpoolError


class Check(NamedTuple):
    """One thing to look at."""

    name: str
    limit_s: float
    look: Callable[[Installation], Iterator[Finding]]


CHECKS = (
    Check("settings", 5, configuration.look),
    Check("spool", 8, spool.look),
    Check("disk", 5, disk.look),
    Check("clock", 10, clock.look),
    Check("upstream", 10, upstreams.look),
    Check("admin", 8, admin.look),
    Check("public address", 10, public.look),
    Check("script", 5, script.look),
    Check("admin exposed", 8, exposure.look),
    Check("cookies", 7, cookies.look),
    Check("client address", 8, forwarded.look),
    Check("hosts", 8, hosts.look),
    Check("canary", 20, canary.look),
    Check("ledger", 8, ledger.look),
)
"""In this order; `public address` says whether the ones that go through it can. Two minutes in all."""

COLOURS = {Result.OK: "green", Result.WARNING: "yellow", Result.WRONG: "bold red", Result.SKIPPED: "dim"}


def run(
    config: Path | None, url: str, site_url: str, ca: Path | None, canary_name: str, as_json: bool, runs: Runs = Runs.SERVE
) -> int:
    """The exit status: 1 when something is wrong. Raises SettingsError for an option that makes no sense."""
    for option, value in (("--url", url), ("--site-url", site_url)):
        if value and not _is_url(value):
            raise settings.SettingsError(f"{option}: found {value!r}; expected an address such as https://www.shop.example/x7")
    if ca is not None and not ca.is_file():
        raise settings.SettingsError(f"--ca: found {ca}; expected a PEM file with the certificate authority")
    if canary_name and not url:
        raise settings.SettingsError("--canary: found no --url; expected the public address to send it to")
    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        return _report(
            [wrong(str(error), "mend the setting, then run doctor again; `beacon-proxy check` says the same").of("settings")],
            as_json,
        )
    try:
        installation = Installation(loaded, url.rstrip("/"), site_url, ca, canary_name, runs)
    except OSError as error:
        raise settings.SettingsError(f"--ca: cannot use {ca}: {error.strerror or error}; expected a PEM file") from None
    return _report(_examine(installation, Console(stderr=True)), as_json)


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and not parts.query
            and parts.username is None
            and parts.port != 0
        )
    except ValueError:
        return False


def _examine(installation: Installation, told: Console) -> Iterator[Finding]:
    """All checks, one after the other; what is looked at just now is shown where a person watches."""
    for check in CHECKS:
        with told.status(f"looking at: {check.name} (at most {check.limit_s:g} s)"):
            found = list(within(check, installation))
        yield from found


def within(check: Check, installation: Installation) -> Iterator[Finding]:
    """Its findings as they come, and no longer than its limit."""
    found: queue.Queue[Finding | None] = queue.Queue()

    def look() -> None:
        try:
            for finding in check.look(installation):
                found.put(finding)
        except (httpx.HTTPError, OSError, SpoolError) as error:
            found.put(wrong(f"{error or type(error).__name__}", "mend what it names, then run doctor again"))
        except Exception as error:  # the doctor's own mistake is not the patient's
            found.put(skipped(f"this check itself failed: {type(error).__name__}: {error}"))
        found.put(None)

    threading.Thread(target=look, daemon=True).start()
    deadline = time.monotonic() + check.limit_s
    while True:
        try:
            finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield wrong(
                f"no end within {check.limit_s:g} s", "what does not answer there holds up beacons, too; look at it first"
            ).of(check.name)
            return
        if finding is None:
            return
        yield finding.of(check.name)


def _report(findings: Iterable[Finding], as_json: bool) -> int:
    """Print them; the exit status."""
    counts = dict.fromkeys(Result, 0)
    kept = []
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        counts[finding.result] += 1
        kept.append(finding)
        if not as_json:
            for line in _lines(finding):
                console.print(line)
    if as_json:
        told = [{"check": f.check, "result": f.result, "found": f.found, "mend": f.mend} for f in kept]
        print(json.dumps({"wrong": counts[Result.WRONG], "warnings": counts[Result.WARNING], "findings": told}))
    else:
        console.print(", ".join(f"{n} {result}" for result, n in counts.items() if n) + ".")
    sys.stdout.flush()
    return 1 if counts[Result.WRONG] else 0


def _lines(finding: Finding) -> Iterator[Text]:
    for n, said in enumerate(finding.found.splitlines()):
        line = Text()
        line.append(f"{finding.result if n == 0 else '':<9}", style=COLOURS[finding.result])
        line.append(f"{finding.check if n == 0 else '':<16}", style="bold")
        line.append(harmless(said))
        yield line
    if finding.mend:
        yield Text(f"{'':25}mend: {harmless(finding.mend)}")
