"""Does the ledger balance, and does the spool drain?"""

from collections.abc import Iterator

from proxy.admin.report import read_report
from proxy.admin.summary import summary
from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation
from proxy.spool import begun, ledger_of, ledger_off

MOST_COUNTED = 200_000
OLD_S = 300


def look(installation: Installation) -> Iterator[Finding]:
    if installation.away:
        yield skipped(installation.away)
        return
    if installation.spool.url.startswith("memory:") or not begun(installation.spool):
        yield skipped("there is no spool that others can see")
        return
    told = read_report(installation.spool)
    found = summary(ledger_of(installation.spool), told)
    if told.is_running():
        yield ok("a forwarder is running" if told.forwarders == 1 else f"{told.forwarders} forwarders are running")
    else:
        since = "the last one was stopped" if told.upstreams else "none ever reported"
        if told.silent_ms is not None:
            since = f"the last one reported {told.silent_ms / 1000:,.0f} s ago"
        yield wrong(
            f"no forwarder is running ({since}): nothing is delivered",
            "start `beacon-proxy serve`, or `forward` beside a WSGI host"
            if installation.delivers
            else "start `beacon-proxy forward` on a host that has the key",
        )
    off = ledger_off(installation.spool, MOST_COUNTED)
    if off is None:
        yield skipped(f"whether it balances: more than {MOST_COUNTED:,} beacons would have to be counted")
    elif off:
        yield wrong(
            f"it is off by {off:,}: beacons are there that were not counted, or the reverse",
            "keep the spool as it is, and report it",
        )
    else:
        yield ok(f"it balances: received {found['received']:,} = delivered + dropped + dead + pending")
    if found["set_aside"]:
        yield wrong(
            f"corrupt lanes were set aside: {', '.join(found['set_aside'])}; their beacons are not delivered",
            "look at the disk, then save what they hold: `beacon-proxy lanes recover FILE`, each in the spool's directory",
        )
    if found["silent_sites"]:
        yield warning(
            f"the streams of these sites do not answer: {', '.join(found['silent_sites'])}; they are missing in the figures",
            "look at the spool's servers: `nats server report jetstream`",
        )
    if found["dead"]:
        yield warning(
            f"{found['dead']:,} dead letters",
            "`beacon-proxy dead list` shows why; then `dead replay` once the reason is mended, or `dead discard`",
        )
    oldest = found["oldest_pending_s"] or 0
    if oldest > OLD_S:
        yield warning(
            f"the oldest of {found['pending']:,} pending beacons has waited {oldest / 60:,.0f} minutes",
            "see the upstream check, and `beacon-proxy status` for how long the backlog will take",
        )
    for upstream, told in found["upstreams"].items():
        if told["state"] in ("open", "probing"):
            yield warning(
                f"{upstream} takes nothing just now ({told['last_failure'] or 'no answer'})",
                "the beacons wait; see the upstream check",
            )
