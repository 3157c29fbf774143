"""What was read, as the page shows it: plain data, and the verdict in plain words. Pure; time is passed in.

Names are shown. Values and persons are visitors' affairs: they are left out unless asked for, and so is an alias' name, which is
a person's too.
"""

from typing import Any

import msgspec

from proxy import __version__
from proxy.admin.page.look import Letter, Reading
from proxy.admin.report import StatsReport, UpstreamReport
from proxy.admin.summary import NOBODY, in_words, summary
from proxy.histogram import Histogram
from proxy.outcome import Outcome
from proxy.spool.port import Tapped, beacons_wait

STUCK_MS = 10_000
"""A reading that is older means that the disk, or a server, does not answer."""
MOST_PROPERTIES = 24
"""Shown of one beacon; how many more there are is told."""
ENDINGS = {outcome.value: outcome.ending.value for outcome in Outcome}
FAILURES = {"Connect": "no connection", "Timeout": "no answer in time"}
"""What is in the name of a failure, as the HTTP engines give it, and what it means."""
MASKED = None
"""Stands for a value that is not shown."""


class Verdict(msgspec.Struct, frozen=True):
    """Is the promise kept? One line, and what there is to know about it."""

    level: str
    """"ok", "warn" (look into it; nothing is lost) or "bad" (beacons are not being taken)."""
    headline: str
    detail: str


def now(reading: Reading, now_ms: int, *, values: bool = False) -> dict[str, Any]:
    """Everything on the page but the charts' history. `values`: unmasked."""
    ledger, told = reading.ledger, reading.told
    found = summary(ledger, told)
    return {
        "at_ms": reading.at_ms,
        "version": __version__,
        "verdict": verdict(reading, found, now_ms),
        "unready": reading.unready,
        "ledger": found,
        "off": reading.off,
        "spool": {"bytes": reading.used_bytes, "max_bytes": reading.max_bytes},
        "outcomes": [
            {"outcome": outcome, "ending": outcome.ending, "meaning": outcome.meaning.replace("`", ""), "n": n}
            for outcome in Outcome
            if (n := ledger.total(outcome))
        ],
        "beacons_a_commit": _mean(reading.commits.batch_hits),
        "commit": _times(reading.commits.commit_seconds, reading.before[0].commit_seconds if reading.before else None),
        "upstreams": [_upstream(url, of, found["upstreams"][url], reading, now_ms) for url, of in sorted(told.upstreams.items())],
        "beacons": [_beacon(event, values) for event in told.last],
        "letters": [_letter(letter, values) for letter in reading.letters],
        "values": values,
    }


def away(failure: str, unready: str | None) -> dict[str, Any]:
    """What can be said while the spool's servers cannot be read: no figures, since old ones would pass for those of now.
    `unready`: None where it is not known whether beacons are taken.
    """
    taken = "Beacons are taken meanwhile. " if unready is not None else ""
    words = Verdict("warn", "The spool's servers cannot be read", f"{taken}{_sentence(failure)}")
    return {"version": __version__, "verdict": _not_taking(unready) if unready else words, "unready": unready}


def verdict(reading: Reading, found: dict[str, Any], now_ms: int) -> Verdict:
    """The worst that is so just now; `found` is the summary."""
    pending = beacons_wait(found["pending"])
    if now_ms - reading.at_ms > STUCK_MS:
        return Verdict(
            "bad", "The spool does not answer", "What you see below is old. Beacons are answered 503 while this lasts."
        )
    if reading.unready:
        return _not_taking(reading.unready)
    if reading.off:
        detail = (
            "Its own counts and the beacons it holds do not agree. Please report this; docs/reliability.md says what to keep."
        )
        return Verdict("bad", f"The ledger is off by {abs(reading.off):,}", detail)
    if found["set_aside"]:
        detail = f"{', '.join(found['set_aside'])}: `beacon-proxy lanes recover FILE` saves what is in it."
        return Verdict("warn", "A corrupt part of the spool was set aside", detail)
    if found["silent_sites"]:
        detail = f"{', '.join(found['silent_sites'])}: the figures are the last that were read, or missing."
        return Verdict("warn", "The stream of a site does not answer", detail)
    if reading.refused_lately:
        detail = "They were answered 503, in the last minute. Beacons are taken now."
        return Verdict("warn", f"{reading.refused_lately:,} beacons were refused", detail)
    if reading.ledger.fallback:
        detail = (
            "The spool's servers do not take all beacons, or did not until now. What waits here is moved over as they take it."
        )
        if found["doubtful"]:
            detail += f" The servers may have {found['doubtful']:,} of them already, so these are in no other figure."
        return Verdict("warn", f"{beacons_wait(reading.ledger.fallback)} on this host", detail)
    if not reading.told.is_running():
        return Verdict("warn", "No forwarder is running", f"{pending} safely on disk, and will be delivered by the next one.")
    left = [url for url, of in found["upstreams"].items() if of["state"] == NOBODY and not of["pending"]]  # by earlier settings
    if closed := [url for url, of in found["upstreams"].items() if of["state"] != "closed" and url not in left]:
        failure = _failure(reading.told.upstreams[closed[0]].last_failure).partition(" (")[0]
        return Verdict(
            "warn",
            f"The upstream takes nothing{failure and ': '}{failure}",
            f"{pending} safely on disk until {closed[0]} is back.",
        )
    if refusing := [of["refusal"] for of in found["upstreams"].values() if of["refusal"]]:
        detail = "Beacons are kept as dead letters. Is the key still good? Replay them when the reason is mended."
        return Verdict("warn", f"The upstream refuses every beacon: {refusing[0]}", detail)
    if found["dead"]:
        n = found["dead"]
        detail = "Beacons are taken and delivered. What ended undelivered is kept below, with the reason, until you decide."
        return Verdict("warn", f"{n:,} dead letters" if n != 1 else "1 dead letter", detail)
    if not found["received"]:
        return Verdict("ok", "Ready for the first beacon", "Everything runs; nothing has come yet.")
    return Verdict("ok", "Every beacon is kept and delivered", "Ready, and all that was received is accounted for.")


def _not_taking(unready: str) -> Verdict:
    return Verdict("bad", "Not taking beacons", f"{_sentence(unready)} New beacons are answered 503; what is stored is safe.")


def _upstream(url: str, of: UpstreamReport, found: dict[str, Any], reading: Reading, now_ms: int) -> dict[str, Any]:
    before = (reading.before[1] if reading.before else {}).get(url, StatsReport())
    return {
        "url": url,
        **found,
        "last_failure": _failure(found["last_failure"]),
        "words": in_words(found),
        "since_s": max(0, (now_ms - of.since_ms) // 1000) if of.since_ms else None,
        "sites": of.sites,
        "answer": _times(of.stats.attempt_seconds, before.attempt_seconds),
        "delivery": _times(of.stats.delivery_seconds, before.delivery_seconds),
    }


def _times(seconds: Histogram | None, before: Histogram | None) -> dict[str, Any] | None:
    """p50 and p99 of the last minute; where it has none, over all."""
    if seconds is None or not sum(seconds.counts):
        return None
    lately = seconds.since(before) if before is not None else seconds
    shown = lately if sum(lately.counts) else seconds
    return {"p50_s": shown.quantile(0.5), "p99_s": shown.quantile(0.99), "n": sum(shown.counts), "lately": shown is lately}


def _mean(histogram: Histogram) -> float | None:
    n = sum(histogram.counts)
    return histogram.sum / n if n else None


def _ending(outcome: str) -> str:
    """What became of a beacon, for the eye: one that is tried again is pending."""
    return ENDINGS.get(outcome, "pending")


def _beacon(event: Tapped, values: bool) -> dict[str, Any]:
    properties = list(event.properties.items())
    return {
        "at_ms": event.at_ms,
        "site": event.site,
        "outcome": event.outcome,
        "ending": _ending(event.outcome),
        "kind": event.kind,
        "name": event.name if values or event.kind != "a" else MASKED,
        "person": event.person if values or not event.person else MASKED,
        "properties": [(name, value if values else MASKED) for name, value in properties[:MOST_PROPERTIES]],
        "more": max(0, len(properties) - MOST_PROPERTIES),
        "answer": event.answer,
        "attempt": event.attempt,
        "age_ms": event.age_ms,
    }


def _letter(letter: Letter, values: bool) -> dict[str, Any]:
    masked = letter.kind == "a" and not values
    return {**msgspec.structs.asdict(letter), "name": MASKED if masked else letter.name}


def _failure(name: str) -> str:
    """ "503" → "it answers 503"; "ConnectError" → "no connection (ConnectError)"."""
    if name.isdecimal():
        return f"it answers {name}"
    return next((f"{words} ({name})" for part, words in reversed(FAILURES.items()) if part in name), name)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
