"""The text of nginx's fallback log, cut into records, whole and half ones. What a record means is ingest.py's.

A full disk, a power cut or a log that was cut leave half a record, and the next one may be on the same line. So a record is found
by how it begins and ends, anywhere on a line. No value can look like that: `log_format beacon_lost` has escape=json, which puts a
backslash before every quote within a value.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

MAX_LINE_BYTES = 512 * 1024
"""The largest beacon a collector takes, each of its bytes escaped (\\u00XX), and its headers."""
START = b'{"time":"'
"""With this a record begins."""
HOLE = b"\0"
"""A power cut leaves these where the disk had not got the text yet. nginx writes one of a visitor's as \\u0000."""

_MARK = re.compile(  # each begins with a character of its own, so that what is between them is passed over fast
    rb"""\{"time":"
    | "(?<!\w":")\}    # the last quote of the last value; "name":"} is the first one of a value that begins with a brace
    | \0\0*
    | \\[\\"]           # an escaped quote is none; a backslash that is escaped itself escapes none
    """,
    re.VERBOSE,
)
_END = b'"}'


def records(stream: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Each record, whole or half, with the number of its line (the first is 1), and all that is between them, line ends too.

    Of one that is longer than `limit` bytes no more is kept than shows that it is.
    """
    line, rest = 1, b""
    while text := stream.readline(limit):
        *found, rest = _split(rest + text)
        yield from ((line, record) for record in found)
        if rest.endswith(b"\n"):
            yield line, rest
            line, rest = line + 1, b""
        elif rest.endswith(HOLE):
            rest = rest.rstrip(HOLE) + HOLE
        elif len(rest) > limit:
            rest = rest[:limit] + b" " + rest[1 - len(START) :]  # the next record's beginning may be half read
    if rest:
        yield line, rest


def is_half(record: bytes) -> bool:
    """Whether what cannot be read is what was left of a record, rather than something else."""
    if record.startswith(START):
        return not any(mark[0] == _END and mark.end() == len(record) for mark in _MARK.finditer(record))
    return START.startswith(record) or (record.endswith(_END) and not record.startswith(START[:2]))


def _split(text: bytes) -> list[bytes]:
    """Before each beginning, after each end of what has begun, and after each hole."""
    cuts = [0]
    for mark in _MARK.finditer(text):
        if mark[0] == START:
            cuts.append(mark.start())
        elif mark[0].startswith(HOLE) or (mark[0] == _END and text.startswith(START, cuts[-1])):
            cuts.append(mark.end())
    return [text[begin:end] for begin, end in pairwise([*cuts, len(text)]) if begin < end]
