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
    """Back-off and age limits."""

    backoff_base_ms: int = 500
    backoff_cap_ms: int = 60_000
    max_age_ms: int = 7 * 24 * 3_600_000


class Final(msgspec.Struct, frozen=True):
    """The hit ends, in this outcome."""

    outcome: Outcome
    answer: str = ""
    trimmed: bool = False


class Retry(msgspec.Struct, frozen=True):
    """Again, not before `due_ms` (milliseconds since the epoch)."""

    due_ms: int
    answer: str = ""


Verdict = Final | Retry


def decide(answer: Answer, attempt: int, received_ms: int, policy: Policy, now_ms: int, jitter: float) -> Verdict:
    """The verdict on attempt number `attempt` (the first is 1). `jitter` is drawn from [0, 1)."""
    status = answer.status
    if 200 <= status < 300 or status == 304:
        return Final(Outcome.DELIVERED, str(answer))
    if status and status < 500 and status not in RETRYABLE_STATUS:
        return Final(Outcome.REJECTED, str(answer))
    if now_ms - received_ms > policy.max_age_ms:
        return Final(Outcome.EXPIRED, str(answer))
    ceiling = min(policy.backoff_cap_ms, policy.backoff_base_ms * 2 ** min(attempt - 1, 30))
    wait = int(ceiling * jitter)
    return Retry(now_ms + max(wait, retry_after_ms(answer.retry_after, now_ms)), str(answer))


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
