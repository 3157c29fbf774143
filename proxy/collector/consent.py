"""Whether this visitor may be tracked: global privacy control, do-not-track, an opt-out cookie, a consent cookie.

Asked before anything is stored, and before any cookie is set.
"""

from collections.abc import Mapping

from proxy.collector.config import ConsentRules
from proxy.collector.identity import cookie_value
from proxy.outcome import Outcome


def objection(rules: ConsentRules, headers: Mapping[bytes, bytes]) -> Outcome | None:
    """Why the beacon must be forgotten; None if it need not be."""
    if rules.gpc and headers.get(b"sec-gpc", b"").strip() == b"1":
        return Outcome.GPC
    if rules.dnt and headers.get(b"dnt", b"").strip() == b"1":
        return Outcome.DNT
    if rules.opt_out_cookie or rules.consent_cookie:
        cookies = headers.get(b"cookie", b"")
        if rules.opt_out_cookie and _present(cookies, rules.opt_out_cookie):
            return Outcome.OPT_OUT
        if rules.consent_cookie and not _present(cookies, rules.consent_cookie):
            return Outcome.NO_CONSENT
    return None


def _present(cookies: bytes, wanted: str) -> bool:
    """NAME: there, with a value other than none, 0, false, no. NAME=VALUE: there with that value."""
    name, equals, expected = wanted.partition("=")
    value = cookie_value(cookies, name.encode("ascii"))
    if value is None:
        return False
    return value == expected.encode("ascii") if equals else value.lower() not in (b"", b"0", b"false", b"no")
