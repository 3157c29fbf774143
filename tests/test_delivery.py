"""decide(): the verdict on an attempt. Pure, so every row of the table is a line here."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.delivery import MAX_RETRY_AFTER_MS, Answer, Final, Policy, Retry, decide, retry_after_ms
from proxy.outcome import Outcome

NOW = 1_700_000_000_000
POLICY = Policy()


def verdict(answer: Answer, attempt: int = 1, age: int = 0, jitter: float = 0.5, blamed: bool = True) -> Final | Retry:
    return decide(answer, attempt, age, POLICY, NOW, jitter, blamed=blamed)


@pytest.mark.parametrize("status", [200, 204, 299, 304])
def test_2xx_and_304_are_delivered(status: int) -> None:
    """The vendor's own SDK counts 304 as delivered."""
    assert verdict(Answer(status)) == Final(Outcome.DELIVERED, str(status))


@pytest.mark.parametrize(
    "answer", [Answer(s) for s in (408, 425, 429, 500, 502, 503, 504, 599)] + [Answer(failure="ConnectError")]
)
def test_what_a_retry_may_mend_is_retried(answer: Answer) -> None:
    """Failures without a status, and the statuses that say "later"."""
    assert verdict(answer) == Retry(NOW + 250, str(answer))


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 410, 414])
def test_other_3xx_and_4xx_are_dead_letters(status: int) -> None:
    """No retry mends them; they can be replayed once the mistake is."""
    assert verdict(Answer(status)) == Final(Outcome.REJECTED, str(status))


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 500), (2, 1000), (3, 2000), (7, 32_000), (8, 60_000), (19, 60_000)])
def test_back_off_doubles_to_its_cap_with_full_jitter(attempt: int, ceiling: int) -> None:
    """Full jitter: anything from 0 to the ceiling, so that retries don't march in step."""
    assert verdict(Answer(500), attempt, jitter=0.0) == Retry(NOW, "500")
    assert verdict(Answer(500), attempt, jitter=0.999999) == Retry(NOW + ceiling - 1, "500")


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    """RFC 9110, section 10.2.3."""
    assert verdict(Answer(503, retry_after="120")) == Retry(NOW + 120_000, "503")
    assert verdict(Answer(429, retry_after=formatdate(NOW / 1000 + 90, usegmt=True))) == Retry(NOW + 90_000, "429")
    assert retry_after_ms("999999999", NOW) == MAX_RETRY_AFTER_MS


def test_a_hit_older_than_max_age_is_dead_but_a_late_success_counts() -> None:
    """Age matters only once an attempt has failed."""
    old = POLICY.max_age_ms + 1
    assert verdict(Answer(500), age=old) == Final(Outcome.EXPIRED, "500")
    assert verdict(Answer(200), age=old) == Final(Outcome.DELIVERED, "200")


def test_a_hit_that_keeps_failing_alone_is_dead_after_max_attempts() -> None:
    """Others pass: it is the hit."""
    last = POLICY.max_attempts
    assert isinstance(verdict(Answer(500), last - 1), Retry)
    assert verdict(Answer(500), last) == Final(Outcome.EXHAUSTED, "500")


def test_a_hit_that_fails_with_all_others_has_no_attempt_counted() -> None:
    """The upstream's state is not the hit's fault: no attempt burnt, no back-off grown, but Retry-After honoured."""
    assert verdict(Answer(500), 10**6, jitter=0.999999, blamed=False) == Retry(NOW + 499, "500", counted=False)
    assert verdict(Answer(503, retry_after="9"), 10**6, blamed=False) == Retry(NOW + 9000, "503", counted=False)
    assert verdict(Answer(404), blamed=False) == Final(Outcome.REJECTED, "404")


@given(st.text(max_size=60))
def test_no_retry_after_header_can_break_the_verdict(header: str) -> None:
    """The header is somebody else's text."""
    assert 0 <= retry_after_ms(header, NOW) <= MAX_RETRY_AFTER_MS


@given(st.integers(0, 999), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_every_answer_has_a_verdict_within_bounds(status: int, attempt: int, jitter: float) -> None:
    """Total: no status, attempt or chance falls through."""
    found = verdict(Answer(status), attempt, jitter=jitter)
    assert isinstance(found, Final) or NOW <= found.due_ms <= NOW + POLICY.backoff_cap_ms
