"""A finding: what was looked at, how it is, and what to do about it."""

from enum import StrEnum

import msgspec


class Result(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """One."""

    result: Result
    found: str
    mend: str = ""
    check: str = ""

    def of(self, check: str) -> "Finding":
        """With the check's name."""
        return msgspec.structs.replace(self, check=check)


def ok(found: str) -> Finding:
    """It is well."""
    return Finding(Result.OK, found)


def warning(found: str, mend: str) -> Finding:
    """It works, but will not always."""
    return Finding(Result.WARNING, found, mend)


def wrong(found: str, mend: str) -> Finding:
    """It does not do what it should."""
    return Finding(Result.WRONG, found, mend)


def skipped(why: str) -> Finding:
    """It was not looked at."""
    return Finding(Result.SKIPPED, why)
