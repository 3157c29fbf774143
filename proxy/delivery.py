"""What to do after an attempt: `decide` turns the upstream's answer into a verdict. Pure; time and chance are passed in.

The forwarder carries verdicts out and the spool records them; neither decides. The rules are DESIGN's table, tabulated in
docs/reliability.md.
"""

from email.utils import parsedate_to_datetime

import msgspec

from proxy.outcome import Outcome

RETRYABLE_STATUS = frozenset({408, 425, 429})
MAX_RETRY_AFTER_MS = 3_600_000
"""A longer Retry-After is taken as an hour: the upstream can say it again."""


class Answer(msgspec.Struct, frozen=True):
    """What came of one attempt: a status, or (status 0) the failure that prevented one."""

    status: int = 0
    failure: str = ""
    retry_after: str = ""
    """The header as sent: seconds or an HTTP date (RFC 9110, section 10.2.3)."""

    def __str__(self) -> str:
        return str(self.status) if self.status else self.failure


class Policy(msgspec.Struct, frozen=True):
    """Back-off, and the limits of patience."""

    backoff_base_ms: int = 500
    backoff_cap_ms: int = 60_000
    max_age_ms: int = 7 * 24 * 3_600_000
    max_attempts: int = 20
    """Failures that were the hit's own: others passed meanwhile."""


class Final(msgspec.Struct, frozen=True):
    """The hit ends, in this outcome."""

    outcome: Outcome
    answer: str = ""
    trimmed: bool = False


class Retry(msgspec.Struct, frozen=True):
    """Again, not before `due_ms` (milliseconds since the epoch); 0: the hit was only set aside, and has not failed."""

    due_ms: int
    answer: str = ""
    counted: bool = True
    """Whether this attempt counts against the hit; one that failed with the whole upstream does not."""


Verdict = Final | Retry


def delivered(answer: Answer) -> bool:
    """The vendor has it. 304 counts, as its own Android SDK counts it."""
    return 200 <= answer.status < 300 or answer.status == 304


def refused(answer: Answer) -> bool:
    """A permanent no to this hit, from an upstream that works."""
    return 200 <= answer.status < 500 and not delivered(answer) and answer.status not in RETRYABLE_STATUS


def decide(
    answer: Answer, attempt: int, age_ms: int, policy: Policy, now_ms: int, jitter: float, *, blamed: bool = True
) -> Verdict:
    """The verdict on attempt number `attempt` (the first is 1) of a hit of that age. `jitter` is drawn from [0, 1).

    `blamed`: a failure now is the hit's own, since the upstream takes others (see forward/pacing.py).
    """
    if delivered(answer):
        return Final(Outcome.DELIVERED, str(answer))
    if refused(answer):
        return Final(Outcome.REJECTED, str(answer))
    if age_ms > policy.max_age_ms:
        return Final(Outcome.EXPIRED, str(answer))
    if blamed and attempt >= policy.max_attempts:
        return Final(Outcome.EXHAUSTED, str(answer))
    doublings = min(attempt - 1, 30) if blamed else 0
    wait = int(min(policy.backoff_cap_ms, policy.backoff_base_ms * 2**doublings) * jitter)
    return Retry(now_ms + max(wait, retry_after_ms(answer.retry_after, now_ms)), str(answer), counted=blamed)


def retry_after_ms(header: str, now_ms: int) -> int:
    """Milliseconds from now that a Retry-After header asks for; 0 if there is none or it makes no sense."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        wait = int(header[:9]) * 1000
    else:
        try:
            wait = int(parsedate_to_datetime(header).timestamp() * 1000) - now_ms
        except (ValueError, OverflowError):
            return 0
    return min(max(wait, 0), MAX_RETRY_AFTER_MS)
