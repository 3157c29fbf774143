"""Whether this visitor may be tracked: global privacy control, do-not-track, an opt-out cookie, a consent cookie.

Asked before anything is stored, and before any cookie is set.
"""

from collections.abc import Mapping

from proxy.collector.config import ConsentRules
from proxy.collector.identity import cookie_value
from proxy.outcome import Outcome


def objection(rules: ConsentRules, headers: Mapping[bytes, bytes]) -> Outcome | None:
    """Why the beacon must be forgotten; None if it need not be."""
    if rules.gpc and b"1" in headers.get(b"sec-gpc", b""):
        return Outcome.GPC
    if rules.dnt and b"1" in headers.get(b"dnt", b""):
        return Outcome.DNT
    if rules.opt_out_cookie or rules.consent_cookie:
        cookies = headers.get(b"cookie", b"")
        if rules.opt_out_cookie and _present(cookies, rules.opt_out_cookie, empty=True):
            return Outcome.OPT_OUT
        if rules.consent_cookie and not _present(cookies, rules.consent_cookie, empty=False):
            return Outcome.NO_CONSENT
    return None


def _present(cookies: bytes, wanted: str, empty: bool) -> bool:
    """NAME: there, with a value other than 0, false, no; NAME=VALUE: there with that value (quotes around it are no part of it).

    `empty`: whether a cookie without a value counts. In doubt the visitor objects, so it does for an opt-out, not for a consent.
    """
    name, equals, expected = wanted.partition("=")
    value = cookie_value(cookies, name.encode("ascii"))
    if value is None:
        return False
    value = value.strip(b'"')
    if equals:
        return value == expected.encode("ascii")
    return empty if not value else value.lower() not in (b"0", b"false", b"no")
