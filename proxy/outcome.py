"""Every way a hit can end. One closed enum feeds the ledger, metrics, logs and the docs table; there is no second list.

An Outcome belongs to exactly one Ending. The ledger balances over them: received = delivered + dropped + dead + pending.
"""

from enum import StrEnum


class Ending(StrEnum):
    """The columns of the ledger in which a received hit can end."""

    DELIVERED = "delivered"
    DROPPED = "dropped"
    DEAD = "dead"


class Outcome(StrEnum):
    """One ending of a hit, with its meaning in plain words (the docs table is made from this)."""

    ending: Ending
    meaning: str

    def __new__(cls, value: str, ending: Ending, meaning: str) -> "Outcome":
        member = str.__new__(cls, value)
        member._value_ = value
        member.ending = ending
        member.meaning = meaning
        return member

    DELIVERED = "delivered", Ending.DELIVERED, "The upstream answered 2xx or 304."

    NO_PERSON = "no_person", Ending.DROPPED, "No `_p`, or (alias) one of the two identities is missing."
    NO_NAME = "no_name", Ending.DROPPED, "An event without `_n`."
    PERSON_TOO_LONG = (
        "person_too_long",
        Ending.DROPPED,
        "An identity over 255 characters. It is not shortened: a shortened identity could be somebody else's.",
    )
    TOO_LARGE = "too_large", Ending.DROPPED, "Query and body together are over 60 KiB."
    TOO_MANY = "too_many_parameters", Ending.DROPPED, "More than 1,000 parameters."
    NO_BEACON = "no_beacon", Ending.DROPPED, "A line of a batch that is no beacon."
    TOO_MANY_BEACONS = "too_many_beacons", Ending.DROPPED, "A batch of more than 100 beacons; it counts once."
    GPC = "gpc", Ending.DROPPED, "The browser sends the opt-out signal `Sec-GPC` (setting `honour_gpc`)."
    DNT = "dnt", Ending.DROPPED, "The browser sends `DNT: 1` (setting `honour_dnt`)."
    OPT_OUT = "opt_out", Ending.DROPPED, "The visitor has the opt-out cookie (setting `opt_out_cookie`)."
    NO_CONSENT = "no_consent", Ending.DROPPED, "The visitor has no consent cookie (setting `consent_cookie`)."
    ORIGIN_DENIED = "origin_denied", Ending.DROPPED, "It comes from a page that the site's `origins` don't list."
    RATE_LIMITED = "rate_limited", Ending.DROPPED, "Its address sent more than `rate_limit` a minute."
    BOT = "bot", Ending.DROPPED, "A robot, by its user agent (setting `bots`)."
    UNKNOWN_HOST = "unknown_host", Ending.DROPPED, "The host belongs to no site, and there is no default site."

    DISCARDED = "discarded", Ending.DROPPED, "A dead letter that the operator threw away (`dead discard`)."

    REJECTED = "rejected", Ending.DEAD, "The upstream answered with a permanent refusal (a 3xx or 4xx that no retry mends)."
    EXHAUSTED = "exhausted", Ending.DEAD, "It failed `max_attempts` times while others were delivered."
    EXPIRED = "expired", Ending.DEAD, "Not delivered within `max_age`."
    UNKNOWN_SITE = "unknown_site", Ending.DEAD, "The site it was received for is no longer configured."
    UNREADABLE = (
        "unreadable",
        Ending.DEAD,
        "The stored record cannot be understood by this version, or handling it failed (the log says how).",
    )
