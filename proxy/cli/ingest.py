"""`ingest`: beacons that the web server kept in a log while no collector answered, taken in as if they came in then.

A record is one request, JSON, as nginx's `log_format beacon_lost` writes it (deploy/nginx/beacon-http.conf). `fallback_log` finds
the records in a log. Each goes the way of any request: the same rule decides what is dropped, the same spool takes it. Time and a
new visitor's identity come from the record's stamp, so one that is taken in twice, or was stored by a collector whose answer got
lost, is the same beacon to the byte, and counts once.

No visitor's data is printed: records are named by the number of their line.
"""

import asyncio
import os
import pwd
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from proxy.cli.fallback_log import HOLE, MAX_LINE_BYTES, is_half, records
from proxy.cli.plain import plain
from proxy.collector.batch import collect_batch
from proxy.collector.collect import Collected, Collector
from proxy.collector.server import escape_target
from proxy.collector.stamp import read_stamp
from proxy.hit import BATCH, Hit
from proxy.outcome import Outcome
from proxy.settings import Settings
from proxy.spool import begun, open_intake
from proxy.spool.port import Intake, SpoolConfig, SpoolError, SpoolRefused

TOGETHER = 256
"""Beacons that are given to the spool at once: they share a commit."""
EXAMPLES = 5
"""Lines that could not be taken, named one by one."""

HEADERS = {
    "host": b"host",
    "stamp": b"x-beacon-stamp",
    "address": b"x-forwarded-for",
    "scheme": b"x-forwarded-proto",
    "user_agent": b"user-agent",
    "referer": b"referer",
    "origin": b"origin",
    "accept_language": b"accept-language",
    "sec_gpc": b"sec-gpc",
    "dnt": b"dnt",
    "sec_ch_ua": b"sec-ch-ua",
    "sec_ch_ua_mobile": b"sec-ch-ua-mobile",
    "sec_ch_ua_platform": b"sec-ch-ua-platform",
}
"""Field of a line → header that the collector would have got from nginx."""
COOKIE = "cookie_"
"""Before a cookie's name in the name of its field."""


class Unusable(StrEnum):
    """Why a record is not taken, with what was expected instead."""

    expected: str

    def __new__(cls, value: str, expected: str) -> "Unusable":
        member = str.__new__(cls, value)
        member._value_ = value
        member.expected = expected
        return member

    TOO_LONG = "too_long", f"a record of at most {MAX_LINE_BYTES:,} bytes"
    HALF = "half", 'a whole record, from {"time":" to "} (was the disk full, or the log cut?); another one on that line is taken'
    HOLE = "hole", "no NUL bytes (a power cut leaves them where the disk had not got the text yet)"
    MALFORMED = "malformed", "a JSON object of strings, as log_format beacon_lost writes it"
    NO_BEACON = "no_beacon", "GET or POST to a beacon's path (is the setting prefix that of nginx's location?)"
    NO_STAMP = "no_stamp", 'a field "stamp" with time and number ($beacon_stamp)'
    CUT = "cut", 'a body of the length that "length" says (is client_body_buffer_size as large as client_max_body_size?)'
    NO_COOKIE = "no_cookie", 'fields for the cookies of opt_out_cookie and consent_cookie, such as "cookie_NAME":"$cookie_NAME"'


class Request(NamedTuple):
    """A record understood: what Collector.collect asks for."""

    kind: str
    query: bytes
    body: bytes
    headers: dict[bytes, bytes]
    at_ms: int


class Place(NamedTuple):
    """A line of a file; the first is 1."""

    file: str
    line: int


class Report(msgspec.Struct):
    """What became of the lines; this is what --json prints."""

    dry_run: bool
    lines: int = 0
    """Records, whole or half. Each has a line of its own, unless a half one joined the next."""
    taken: int = 0
    dropped: dict[str, int] = {}
    not_taken: dict[str, int] = {}
    examples: list[dict[str, str | int]] = []
    stopped: dict[str, str | int] | None = None
    """Where the spool refused, and why; everything before is stored, that line and what follows is to be ingested again."""


class LineReader:
    """The rule for a record under one configuration. Pure; any bytes end as a Request or as Unusable."""

    def __init__(self, paths: Mapping[str, str], cookie_tests: Iterable[str]) -> None:
        """`cookie_tests`: the cookies that decide about consent, as settings name them (NAME or NAME=VALUE)."""
        self._paths = paths
        self._needed = {COOKIE + test.partition("=")[0] for test in cookie_tests if test}

    def read(self, raw: bytes) -> Request | Unusable:
        """`raw`: one of fallback_log.records(), without its line end."""
        if raw.startswith(HOLE):
            return Unusable.HOLE
        raw = raw.rstrip(HOLE)
        if len(raw) > MAX_LINE_BYTES:
            return Unusable.TOO_LONG
        try:
            # nginx writes a header's bytes as they came, be they UTF-8 or not. As latin-1 each stays itself.
            fields = msgspec.json.decode(raw.decode("latin-1").encode("utf-8"), type=dict[str, str])
        except (msgspec.DecodeError, RecursionError):
            return Unusable.HALF if is_half(raw) else Unusable.MALFORMED
        kept = {name: _bytes(value) for name, value in fields.items()}
        target = kept.get("uri", b"")
        _, target, _ = escape_target(b"GET %s HTTP/1.1" % target).split(b" ", 2)
        path, _, query = target.partition(b"?")
        kind = self._paths.get(unquote(path.decode("latin-1")))
        if kind is None or fields.get("method") not in ("GET", "POST"):
            return Unusable.NO_BEACON
        stamp = read_stamp(kept.get("stamp", b""))
        if stamp is None:
            return Unusable.NO_STAMP
        body = kept.get("body", b"")
        length = fields.get("length", "")
        if length and length != str(len(body)):
            return Unusable.CUT
        if not self._needed <= fields.keys():
            return Unusable.NO_COOKIE
        headers = {header: kept[name] for name, header in HEADERS.items() if kept.get(name)}
        cookies = [
            _bytes(name.removeprefix(COOKIE)) + b"=" + kept[name] for name in kept if name.startswith(COOKIE) and kept[name]
        ]
        if cookies:
            headers[b"cookie"] = b"; ".join(cookies)
        return Request(kind, query, body, headers, stamp.at_ms)


def _bytes(text: str) -> bytes:
    """The bytes that nginx wrote. A line from elsewhere may escape what is beyond them (\\u20ac): that is UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


class Ingestion:
    """One run over one or more files."""

    def __init__(self, settings: Settings, intake: Intake | None) -> None:
        """`intake` None: nothing is stored, it is only counted what would be."""
        config = settings.collector()
        self.report = Report(dry_run=intake is None)
        self._collector = Collector(config)
        self._reader = LineReader(self._collector.paths, (config.consent.opt_out_cookie, config.consent.consent_cookie))
        self._intake = intake
        self._waiting: list[tuple[Place, Collected]] = []
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()

    def line(self, place: Place, raw: bytes) -> bool:
        """Take one record in; False when the spool refused and it is no use to go on."""
        raw = raw.strip()
        if not raw:
            return True
        self.report.lines += 1
        request = self._reader.read(raw)
        if isinstance(request, Unusable):
            _count(self.report.not_taken, request)
            if len(self.report.examples) < EXAMPLES:
                self.report.examples.append(
                    {"file": place.file, "line": place.line, "why": request, "expected": request.expected}
                )
            return True
        # As nginx would have brought it, over a Unix socket: that is a peer whose forwarding headers are believed.
        kind, query, body, headers, at_ms = request
        if kind == BATCH:
            beacons = collect_batch(self._collector, query, body, headers, "", at_ms).beacons
        else:
            beacons = [self._collector.collect(kind, query, body, headers, "", at_ms)]
        self._waiting += [(place, one) for one in beacons]
        return len(self._waiting) < TOGETHER or self.flush()

    def flush(self) -> bool:
        """Store what has gathered; False when the spool refused."""
        waiting, self._waiting = self._waiting, []
        refusals = self._runner.run(self._append([collected.found for _, collected in waiting]))
        for (place, (site, found, _)), refusal in zip(waiting, refusals, strict=True):
            if refusal is not None:
                self.report.stopped = {"file": place.file, "line": place.line, "why": str(refusal)}
                return False
            if isinstance(found, Outcome):
                _count(self.report.dropped, found)
                if self._intake is not None:
                    self._intake.drop(site, found)
            else:
                self.report.taken += 1
        return True

    async def _append(self, found: list[Hit | Outcome]) -> list[SpoolRefused | None]:
        return await asyncio.gather(*(self._store(one) for one in found))

    async def _store(self, found: Hit | Outcome) -> SpoolRefused | None:
        if self._intake is not None and isinstance(found, Hit):
            try:
                await self._intake.append(found)
            except SpoolRefused as refused:
                return refused
        return None


def run(files: list[str], settings: Settings, from_line: int = 1, dry_run: bool = False, as_json: bool = False) -> int:
    """The exit status: 0 all taken, 1 something was not. Raises SpoolError, or OSError for a file that cannot be read."""
    if not dry_run:
        _look_at_spool(settings)
    with ExitStack() as stack:
        streams = [(file, sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))) for file in files]
        intake = None if dry_run else open_intake(_spool(settings))
        try:
            ingestion = Ingestion(settings, intake)
            stack.callback(ingestion.close)
            _all_lines(ingestion, streams, from_line, as_json)
        finally:
            if intake is not None:
                intake.close()
    report = ingestion.report
    print(msgspec.json.encode(report).decode("utf-8") if as_json else _words(report))
    if report.stopped is not None:
        _say_where_to_go_on(report.stopped, files)
    return 1 if report.not_taken or report.stopped else 0


def _all_lines(ingestion: Ingestion, streams: list[tuple[str, BinaryIO]], from_line: int, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        for file, stream in streams:
            size = os.fstat(stream.fileno()).st_size if file != "-" else None
            task = bar.add_task("from standard input" if file == "-" else Path(file).name, total=size)
            for number, raw in records(stream):
                if number >= from_line and not ingestion.line(Place(file, number), raw):
                    return
                bar.advance(task, len(raw))
        ingestion.flush()


def _spool(settings: Settings) -> SpoolConfig:
    """Without the fallback: whoever runs this may be another than the service's user, who could not read a lane of his."""
    return replace(settings.spool_config(), fallback="")


def _look_at_spool(settings: Settings) -> None:
    """It must be the spool of `serve`, and what is written there must be for `serve` to read. Raises SpoolError."""
    config = _spool(settings)
    scheme, _, place = config.url.partition(":")
    if scheme == "memory":
        raise SpoolError("spool: found memory:, which nobody would deliver from; expected sqlite:DIR, the spool of `serve`")
    if not begun(config):
        where = Path(place).absolute() if scheme == "sqlite" else config.url
        raise SpoolError(f"spool: there is none yet at {where}; expected the spool of `serve`. Start it once before")
    if scheme != "sqlite":
        return  # nothing is written here
    owner = os.stat(place).st_uid
    if owner != os.geteuid():
        name = next((entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == owner), str(owner))
        raise SpoolError(
            f"spool: {place} belongs to the user {name}, who could not read what another writes there; "
            f"run this as that user, the log by standard input: sudo cat FILE | sudo -u {name} beacon-proxy ingest -"
        )


def _words(report: Report) -> str:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(report.dropped.items()))
    would = "would be " if report.dry_run else ""
    text = f"{report.lines:,} lines: {report.taken:,} {would}taken, {sum(report.dropped.values()):,} {would}dropped"
    text += f" ({dropped}), " if dropped else ", "
    text += f"{sum(report.not_taken.values()):,} cannot be taken."
    for example in report.examples:
        text += f"\n  {example['file']}, line {example['line']}: {example['why']}; expected {example['expected']}"
    if (more := sum(report.not_taken.values()) - len(report.examples)) > 0:
        counts = ", ".join(f"{why} {n:,}" for why, n in sorted(report.not_taken.items()))
        text += f"\n  and {more:,} more; in all: {counts}"
    return text


def _say_where_to_go_on(stopped: Mapping[str, str | int], files: list[str]) -> None:
    file = str(stopped["file"])
    rest = files[files.index(file) + 1 :]
    file = plain(file)
    print(f"beacon-proxy: stopped at {file}, line {stopped['line']}: the spool refuses: {stopped['why']}", file=sys.stderr)
    print("beacon-proxy: what comes before is stored. Go on when the spool takes beacons again (/readyz):", file=sys.stderr)
    print(f"beacon-proxy:   beacon-proxy ingest --from-line {stopped['line']} {file}", file=sys.stderr)
    if rest:
        print(f"beacon-proxy:   beacon-proxy ingest {plain(' '.join(rest))}", file=sys.stderr)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
