"""`ingest`: what nginx kept while no collector answered is taken in as if it had come in then, and counts once."""

import io
import json
import os
import re
import secrets
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, clean_environment, wait_for
from hypothesis import example, given
from hypothesis import strategies as st
from nats_server import NatsServer

from proxy import settings
from proxy.cli.fallback_log import MAX_LINE_BYTES, START, records
from proxy.cli.ingest import LineReader, Request, Unusable, run
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.collector.stamp import FARTHEST_MS, Stamp, read_stamp
from proxy.hit import Hit
from proxy.spool import ledger_of, prepare
from proxy.spool.port import SpoolConfig

Serve = Callable[..., ProxyProcess]
THEN_MS = 1_730_000_000_123


def logged(number: int = 1, at_ms: int = THEN_MS, **over: str) -> bytes:
    """A line as nginx writes it: raw bytes stay what they are, quotes and control characters are escaped."""
    fields = {
        "time": "2024-10-27T03:33:20+00:00",
        "stamp": f"{at_ms // 1000}.{at_ms % 1000:03d} {number:032x}",
        "method": "GET",
        "scheme": "https",
        "host": "shop.example",
        "uri": f"/e?_n=Lost&n={number}",
        "address": "192.0.2.7",
        "user_agent": "Test/1.0",
        "referer": "https://shop.example/page",
        "cookie_km_ni": "",
        "cookie_km_ai": "",
        "length": "",
        "body": "",
        **over,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("latin-1")


def ingest(proxy: ProxyProcess, *arguments: str, said: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "ingest", *arguments], env=proxy.environment, input=said, capture_output=True, timeout=60
    )


def report(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


READER = LineReader(Collector(CollectorConfig(SpoolConfig("memory:"), prefixes=("/x7",))).paths, ())


def read(**over: str) -> Request | Unusable:
    return READER.read(logged(**{"uri": "/x7/e?_n=Lost", **over}))


def test_a_line_beside_serve_arrives_as_if_it_had_come_in_then(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Its own time, address, page and visitor; taken in again it is the same to the byte, and the vendor counts it once."""
    proxy = serve(address_property="_ip", addresses="truncate", redact="secret")
    log = tmp_path / "lost.jsonl"
    log.write_bytes(
        b"\n".join(
            [
                logged(1, uri="/e?_n=Lost&n=1&secret=x"),
                logged(2, method="POST", uri="/e?n=2", body='_n=Lost&quote="\\', length="16", cookie_km_ai="somebody%20known"),
                logged(3, uri="/e?_n=Lost&n=3&who=Zo\xc3\xab"),
            ]
        )
    )
    first = ingest(proxy, "--json", str(log))
    assert (first.returncode, first.stderr) == (0, b"")
    assert report(first) | {"dry_run": False, "lines": 3, "taken": 3, "dropped": {}, "not_taken": {}} == report(first)
    beacons = {beacon["params"]["n"]: beacon["params"] for beacon in sandbox.wait(3)}
    assert {(params["_t"], params["_d"], params["_ip"]) for params in beacons.values()} == {("1730000000", "1", "192.0.2.0")}
    assert (beacons["2"]["_p"], beacons["2"]["quote"], beacons["3"]["who"]) == ("somebody known", '"\\', "Zoë")
    assert "secret" not in beacons["1"]
    assert len(beacons["1"]["_p"]) == 24
    assert beacons["1"]["_p"] != beacons["3"]["_p"]

    again = ingest(proxy, str(log))
    assert (again.returncode, again.stdout) == (0, b"3 lines: 3 taken, 0 dropped, 0 cannot be taken.\n")
    sandbox.wait(6)
    assert {name: sandbox.report()[name] for name in ("counted", "duplicates")} == {"counted": 3, "duplicates": 3}
    status = wait_for(lambda: (found := proxy.status())["delivered"] == 6 and found, "the ledger")
    assert (status["received"], status["refused"]) == (6, 0)


def test_consent_and_origins_apply_as_at_the_collector(serve: Serve, tmp_path: Path) -> None:
    """Who objected then is forgotten now, and counted by the reason."""
    proxy = serve(upstream="http://127.0.0.1:9", origins="shop.example", consent_cookie="consent=yes")
    agreed = {"cookie_consent": "yes"}
    said = b"\n".join(
        [
            logged(1, **agreed),
            logged(2, **agreed, sec_gpc="1"),
            logged(3, **agreed, origin="https://elsewhere.example"),
            logged(4, cookie_consent="no"),
            logged(5),
        ]
    )
    dry = ingest(proxy, "--json", "--dry-run", "-", said=said)
    assert proxy.status()["received"] == 0
    done = ingest(proxy, "--json", "-", said=said)
    assert (dry.returncode, done.returncode) == (1, 1)
    assert report(dry) == report(done) | {"dry_run": True}
    assert report(done)["dropped"] == {"gpc": 1, "origin_denied": 1, "no_consent": 1}
    assert report(done)["not_taken"] == {"no_cookie": 1}
    status = proxy.status()
    assert (status["received"], status["pending"], status["dropped"]) == (4, 1, report(done)["dropped"])


def test_what_cannot_be_taken_is_counted_and_named_by_line_without_a_visitors_data(serve: Serve, tmp_path: Path) -> None:
    """One bad line costs nothing but itself."""
    proxy = serve(upstream="http://127.0.0.1:9")
    log = tmp_path / "lost.jsonl"
    log.write_bytes(
        b"\n".join(
            [
                b'{"uri":"/e?_p=someone@example.com"',
                b"\xff\xfe\x00",
                b"",
                logged(1),
                logged(2, uri="/elsewhere?_p=someone@example.com"),
                logged(3, method="DELETE"),
                logged(4, stamp="now"),
                logged(5, method="POST", body="_n=Cu", length="500"),
                b"[" * 100_000,
                b"x" * (MAX_LINE_BYTES + 100_000),
                logged(6),
            ]
        )
    )
    done = ingest(proxy, str(log))
    assert done.returncode == 1
    said = (done.stdout + done.stderr).decode()
    assert "10 lines: 2 taken, 0 dropped, 8 cannot be taken." in said
    assert f"{log}, line 1: malformed" in said
    assert f"{log}, line 5: no_beacon" in said
    assert "and 3 more" in said
    assert "example.com" not in said
    assert "Traceback" not in said
    assert proxy.status()["pending"] == 2


def test_a_full_spool_stops_it_and_it_says_where_to_go_on(serve: Serve, tmp_path: Path) -> None:
    """Every line before is stored; from that line on the rest goes in when there is room."""
    proxy = serve(upstream="http://127.0.0.1:9", max_bytes="1MiB")
    log = tmp_path / "lost.jsonl"
    text = "x" * 6000
    log.write_bytes(b"\n".join(logged(n, uri=f"/e?_n=Lost&n={n}&v={text}") for n in range(1, 601)))
    done = ingest(proxy, "--json", str(log))
    stopped = report(done)["stopped"]
    assert done.returncode == 1
    assert "max_bytes" in stopped["why"]
    assert f"beacon-proxy ingest --from-line {stopped['line']} {log}" in done.stderr.decode()
    assert report(done)["taken"] == stopped["line"] - 1
    assert 0 < report(done)["taken"] <= proxy.status()["pending"] < 600
    proxy.environment["BEACON_PROXY_MAX_BYTES"] = "1GiB"
    rest = ingest(proxy, "--json", "--from-line", str(stopped["line"]), str(log))
    assert (rest.returncode, report(rest)["taken"]) == (0, 600 - report(done)["taken"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--from-line", "3", "one", "two"], "expected one"),
        (["--from-line", "0", "one"], "from-line"),
        ([], "FILE"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """Exit status 2, no traceback, nothing stored."""
    (tmp_path / "spool").mkdir()
    environment = clean_environment(BEACON_PROXY_SPOOL=f"sqlite:{tmp_path}/spool")
    done = subprocess.run([sys.executable, "-m", "proxy", "ingest", *arguments], env=environment, capture_output=True, timeout=60)
    said = " ".join(done.stderr.decode().replace("│", " ").split())
    assert (done.returncode, expected in said, "Traceback" in said) == (2, True, False)


def test_a_spool_that_nobody_delivers_from_is_refused(tmp_path: Path) -> None:
    """Whoever stands in the wrong directory would believe the beacons on their way."""
    for spool, expected in ((f"sqlite:{tmp_path}/elsewhere", "none yet"), ("memory:", "memory:")):
        environment = clean_environment(BEACON_PROXY_SPOOL=spool)
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "ingest", "-"], env=environment, input=b"", capture_output=True, timeout=60
        )
        assert (done.returncode, expected in done.stderr.decode()) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_spool_is_refused_with_the_way_to_do_it(serve: Serve, tmp_path: Path) -> None:
    """A lane of root's would be one that the service cannot read."""
    proxy = serve()
    os.chown(tmp_path / "spool", 65534, -1)
    done = ingest(proxy, "-")
    assert done.returncode == 2
    assert "sudo -u nobody beacon-proxy ingest -" in done.stderr.decode()
    os.chown(tmp_path / "spool", 0, -1)


def test_a_body_keeps_every_byte_and_a_cut_one_is_not_taken() -> None:
    """An identity that was cut off could be somebody else's."""
    whole = read(method="POST", body="_p=\xff\x01\n", length="6")
    assert isinstance(whole, Request)
    assert whole.body == b"_p=\xff\x01\n"
    assert read(method="POST", body="_p=", length="6") is Unusable.CUT


def test_paths_are_read_as_the_server_reads_them() -> None:
    """What a collector would have answered with the GIF is a beacon, and nothing else is."""
    request = read(uri="/x7/%65?a=b#c d&_n=\xc3\xab")
    assert isinstance(request, Request)
    assert (request.kind, request.query) == ("e", b"a=b%23c%20d&_n=%C3%AB")
    for uri in ("/e?_n=a", "/x7/e/?_n=a", "/x7/", "", "//x7/e", "/x7/k.js"):
        assert read(uri=uri) is Unusable.NO_BEACON


@given(st.binary(max_size=300) | st.builds(lambda a, b, c: a + b + c, st.just(logged()[:150]), st.binary(), st.just(b'"}')))
@example(b'{"a":' * 500)
@example(b'{"uri":"\\ud800"}')
@example(b'{"uri":"/x7/e","method":"GET","stamp":"\\u20ac"}')
def test_any_bytes_are_a_request_or_a_reason(raw: bytes) -> None:
    """A log may be cut, mixed up, or written by somebody else; no line is fatal."""
    assert isinstance(READER.read(raw), Request | Unusable)


TEXT = st.text(st.characters(max_codepoint=255, exclude_characters=" \t\r\n#?"), max_size=50)


@given(query=TEXT, body=TEXT, agent=TEXT, method=st.sampled_from(["GET", "POST"]), at_ms=st.integers(10**12, 2 * 10**12))
def test_a_written_line_is_read_back_to_the_byte(query: str, body: str, agent: str, method: str, at_ms: int) -> None:
    """Else what was ingested would differ from what a collector stored, and count twice."""
    line = logged(7, at_ms, method=method, uri=f"/x7/s?{query}", body=body, length=str(len(body)), user_agent=agent)
    request = READER.read(line)
    assert isinstance(request, Request)
    assert (request.kind, request.body, request.at_ms) == ("s", body.encode("latin-1"), at_ms)
    assert request.headers.get(b"user-agent", b"") == agent.encode("latin-1")
    assert request.headers[b"x-beacon-stamp"] == f"{at_ms // 1000}.{at_ms % 1000:03d} {7:032x}".encode()


WHOLE, OTHER = logged(1), logged(2, method="POST", body='{"time":"\\"}\n\x00', length="14")
HALF = logged(3)[:200]
TAIL = logged(4)[200:]
TOO_MUCH = logged(5, body="x" * MAX_LINE_BYTES * 2)[:-2]
HOLE = bytes(5000)


@pytest.mark.parametrize(
    ("log", "taken", "not_taken"),
    [
        pytest.param(HALF + WHOLE, 1, [(1, "half")], id="a full disk, once"),
        pytest.param(OTHER + b"\n" + HALF + HALF + WHOLE + b"\n", 2, [(2, "half"), (2, "half")], id="a full disk, twice"),
        pytest.param(WHOLE + OTHER + b"\n", 2, [], id="only the newline did not fit"),
        pytest.param(b"\n" + HALF + b"\n" + WHOLE + b"\n\n" + OTHER + b"\n", 2, [(2, "half")], id="a newline at both ends"),
        pytest.param(OTHER[:-7] + WHOLE, 1, [(1, "half")], id="cut in an escape of six characters"),
        pytest.param(OTHER[: OTHER.index(b"\\") + 1] + WHOLE, 1, [(1, "half")], id="cut in an escape of two"),
        pytest.param(WHOLE[:9] + WHOLE, 1, [(1, "half")], id="cut where the first value begins"),
        pytest.param(b"{" + WHOLE, 1, [(1, "half")], id="cut after one byte"),
        pytest.param(b"{\n" + WHOLE, 1, [(1, "half")], id="cut after one byte, a line of its own"),
        pytest.param(TOO_MUCH + WHOLE, 1, [(1, "too_long")], id="a half one without measure"),
        pytest.param(TOO_MUCH + TOO_MUCH + WHOLE + OTHER, 2, [(1, "too_long"), (1, "too_long")], id="two without measure"),
        pytest.param(TAIL + b"\n" + WHOLE + b"\n" + HALF, 1, [(1, "half"), (3, "half")], id="a log cut at both ends"),
        pytest.param(WHOLE + TAIL + b"\n" + OTHER, 2, [(1, "half")], id="two cut logs as one"),
        pytest.param(WHOLE + b"\n" + HOLE + OTHER + b"\n", 2, [(2, "hole")], id="a power cut between lines"),
        pytest.param(HALF + HOLE + TAIL + b"\n" + WHOLE, 1, [(1, "half"), (1, "half")], id="a power cut within two lines"),
        pytest.param(HALF + HOLE + WHOLE + HOLE, 1, [(1, "half"), (1, "hole")], id="a power cut within a line, and one after"),
        pytest.param(HALF + bytes(3 * MAX_LINE_BYTES) + WHOLE, 1, [(1, "half")], id="a large hole after a half one"),
        pytest.param(bytes(3 * MAX_LINE_BYTES) + b"\n" + WHOLE, 1, [(1, "hole")], id="a large hole"),
        pytest.param(WHOLE + b"\r\n\r\n" + HALF + b"\r\n" + OTHER + b"\r\n", 2, [(3, "half")], id="line ends of Windows"),
        pytest.param(HALF + b"\r" + WHOLE + b"\r", 1, [(1, "half")], id="line ends of an old Macintosh"),
        pytest.param(b"\xef\xbb\xbf" + WHOLE, 1, [(1, "malformed")], id="an editor's mark at the beginning"),
    ],
)
def test_a_whole_record_is_taken_whatever_is_beside_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log: bytes,
    taken: int,
    not_taken: list[tuple[int, str]],
) -> None:
    """Its visitor was answered 200. What is left of another is counted as not taken, by its line."""
    monkeypatch.setenv("BEACON_PROXY_SPOOL", f"sqlite:{tmp_path}/spool")
    (tmp_path / "log").write_bytes(log)
    status = run([str(tmp_path / "log")], settings.load(None), dry_run=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(example["line"], example["why"]) for example in found["examples"]] == not_taken
    assert (found["taken"], found["lines"], status) == (taken, taken + len(not_taken), 1 if not_taken else 0)


def test_the_half_record_at_a_files_end_leaves_the_next_file_alone(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """A log that was cut, and the one that followed it: together they would make a beacon that no visitor sent."""
    proxy = serve()
    (tmp_path / "lost.2").write_bytes(logged(1) + b"\n" + HALF)
    (tmp_path / "lost.1").write_bytes(TAIL + b"\n" + logged(2))
    done = ingest(proxy, "--json", str(tmp_path / "lost.2"), str(tmp_path / "lost.1"))
    examples = [(Path(example["file"]).name, example["line"], example["why"]) for example in report(done)["examples"]]
    assert examples == [("lost.2", 2, "half"), ("lost.1", 1, "half")]
    assert {beacon["params"]["n"] for beacon in sandbox.wait(2)} == {"1", "2"}


def test_from_line_goes_on_where_several_records_are_on_a_line(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """The line that is named is taken in from its beginning; what had been taken of it counts once."""
    proxy = serve(upstream="http://127.0.0.1:9", max_bytes="1MiB")
    log = tmp_path / "lost.jsonl"
    text = "x" * 6000
    log.write_bytes(b"".join(logged(n, uri=f"/e?_n=Lost&n={n}&v={text}") + b"\n" * (n % 50 == 0) for n in range(1, 601)))
    stopped = report(ingest(proxy, "--json", str(log)))["stopped"]
    assert 1 < stopped["line"] < 12
    proxy.stop()
    serve(max_bytes="1GiB", port=proxy.port)
    proxy.environment["BEACON_PROXY_MAX_BYTES"] = "1GiB"
    rest = ingest(proxy, "--json", "--from-line", str(stopped["line"]), str(log))
    assert (rest.returncode, report(rest)["taken"]) == (0, 600 - 50 * (stopped["line"] - 1))
    wait_for(lambda: sandbox.report()["counted"] == 600, "each at the vendor, once")


HOSTILE = st.lists(
    st.sampled_from(['{"time":"', '"}', '{"', "\\", '"', "{", "}", "\0", "\n", "\r", "é", "\\u0022"]), max_size=8
).map("".join)
"""What a visitor may write into an address, a header or a body to pass for a record."""
RECORD = st.builds(lambda uri, agent, body: logged(6, uri=uri, user_agent=agent, body=body), HOSTILE, HOSTILE, HOSTILE)


def found_in(log: bytes, limit: int = MAX_LINE_BYTES) -> list[bytes]:
    """The records of a log, whole or half, without blanks."""
    return [record for _, raw in records(io.BytesIO(log), limit) if (record := raw.strip(b"\0\r\n"))]


@given(RECORD)
def test_no_value_can_look_like_the_beginning_of_a_record(record: bytes) -> None:
    """Else a visitor could smuggle a beacon with another's address and time into the log."""
    assert found_in(record) == [record]
    assert record.count(START) == 1


@given(RECORD, RECORD, st.data())
def test_a_record_may_be_cut_anywhere_and_the_next_one_is_whole(cut: bytes, whole: bytes, data: st.DataObject) -> None:
    """In the middle of an escape, of a name, of its first byte: a full disk does not ask."""
    half = cut[: data.draw(st.integers(1, len(cut) - 1))]
    assert found_in(half + whole) == [half, whole]
    assert READER.read(half) is Unusable.HALF
    assert READER.read(whole) is not Unusable.HALF


@given(RECORD, RECORD, st.data())
def test_a_record_whose_beginning_is_gone_is_never_taken(cut: bytes, whole: bytes, data: st.DataObject) -> None:
    """A log that was cut at its front: the rest of a record could be read as another visitor's."""
    rest = cut[data.draw(st.integers(1, len(cut) - 1)) :]
    found = found_in(whole + rest + b"\n" + whole)
    assert (found[0], b"".join(found[1:-1]), found[-1]) == (whole, rest, whole)
    assert all(READER.read(part) in (Unusable.HALF, Unusable.MALFORMED) for part in found[1:-1])


@given(
    st.lists(
        st.tuples(
            st.one_of(
                RECORD,
                st.builds(lambda record, end: record[:end], RECORD, st.integers(len(START), 60)),
                st.builds(lambda much: logged(8, body="x" * much)[:-2], st.integers(0, 6000)),
            ),
            st.sampled_from([b"", b"\n", b"\r\n", b"\n\n", bytes(9), bytes(5000)]),
        ),
        max_size=6,
    ),
    st.integers(0, 40),
)
def test_where_a_log_is_read_in_pieces_does_not_matter(log: list[tuple[bytes, bytes]], more: int) -> None:
    """Beginnings, ends and holes lie across the pieces, too. Each record comes once, in order, by its line."""
    limit = max([len(record) for record, _ in log if record.endswith(b'"}')], default=300) + more
    text, expected, line = b"", [], 1
    for record, between in log:
        text += record + between
        expected.append((line, record))
        line += between.count(b"\n")
    found = [(number, raw.strip(b"\0\r\n")) for number, raw in records(io.BytesIO(text), limit)]
    found = [(number, record) for number, record in found if record]
    assert [number for number, _ in found] == [number for number, _ in expected]
    for (_, record), (_, meant) in zip(found, expected, strict=True):
        assert record == meant if len(meant) <= limit else limit < len(record) <= 2 * limit + len(START)


def test_a_half_record_of_any_length_has_a_whole_one_after_it() -> None:
    """Wherever the piece that is read ends: before, in or after the beginning of the whole one."""
    limit = len(WHOLE)
    for length in range(len(START), 3 * limit):
        half, whole = found_in(TOO_MUCH[:length] + WHOLE, limit)
        assert whole == WHOLE
        assert half == TOO_MUCH[:length] if length <= limit else len(half) > limit


@given(st.binary(max_size=100) | st.lists(st.sampled_from([START, b'"}', b"\\", b'"', b"\0", b"\n", b"x"])).map(b"".join))
@example(b"\0\n\0")
def test_nothing_in_a_log_is_passed_over(log: bytes) -> None:
    """Whatever it is, it is taken or reported, in its order; of a hole it is enough that it is one."""

    def one_for_each_hole(text: bytes) -> bytes:
        return re.sub(rb"\0+", b"\0", text)

    found = b"".join(raw for _, raw in records(io.BytesIO(log), max(len(log), 1)))
    assert one_for_each_hole(found) == one_for_each_hole(log)


@pytest.mark.parametrize("fill", [b"x", b"\0", HALF], ids=["text", "a hole", "half records"])
def test_a_line_without_an_end_does_not_fill_the_memory(fill: bytes) -> None:
    """A disk's worth of anything."""
    block = fill * (2**20 // len(fill))

    class Endless(io.RawIOBase):
        left = 32 * len(block)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            size = min(len(buffer), len(block), self.left)
            buffer[:size] = block[:size]
            self.left -= size
            return size

    tracemalloc.start()
    try:
        for _ in records(io.BufferedReader(Endless())):
            pass
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def collected(stamp: bytes, peer: str = "127.0.0.1", now_ms: int = THEN_MS) -> Hit:
    collector = Collector(CollectorConfig(SpoolConfig("memory:"), trusted_proxies=("127.0.0.0/8",)))
    hit = collector.collect("e", b"_n=a", b"", {b"x-beacon-stamp": stamp}, peer, now_ms).found
    assert isinstance(hit, Hit)
    return hit


def test_two_collectors_make_the_same_of_a_stamped_request() -> None:
    """The first may have stored it and lost its answer; the copy at the second must count for nothing."""
    stamp = b"1730000000.123 0123456789abcdef0123456789abcdef"
    assert collected(stamp) == collected(stamp, now_ms=THEN_MS + 9_000)
    assert collected(stamp).received_ms == THEN_MS
    assert collected(stamp).identity != collected(stamp.replace(b"9", b"8")).identity
    assert "0123456789abcdef" not in collected(stamp).identity


@pytest.mark.parametrize(
    ("stamp", "peer", "now_ms"),
    [
        (b"1730000000.123 0123456789abcdef0123456789abcdef", "192.0.2.1", THEN_MS),
        (b"1730000000.123 0123456789abcdef0123456789abcdef", "127.0.0.1", THEN_MS + FARTHEST_MS + 1),
        (b"1730000000.123 0123456789abcdef0123456789abcdeg", "127.0.0.1", THEN_MS),
        (b"1730000000 0123456789abcdef0123456789abcdef", "127.0.0.1", THEN_MS),
        (b"", "127.0.0.1", THEN_MS),
    ],
)
def test_a_stamp_that_is_not_believed_changes_nothing(stamp: bytes, peer: str, now_ms: int) -> None:
    """A visitor's own stamp, or one far from our clock."""
    assert collected(stamp, peer, now_ms).received_ms == now_ms
    assert collected(stamp, peer, now_ms).identity != collected(stamp, peer, now_ms).identity


@given(st.binary(max_size=60))
def test_any_bytes_are_a_stamp_or_none(raw: bytes) -> None:
    """Read from a header."""
    assert isinstance(read_stamp(raw), Stamp | None)


def test_it_takes_a_lane_of_its_own_while_serve_answers(serve: Serve, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Neither waits for the other, and the ledger balances over both."""
    proxy = serve()
    log = tmp_path / "lost.jsonl"
    log.write_bytes(b"\n".join(logged(n, at_ms=time.time_ns() // 1_000_000) for n in range(1, 2001)))
    with subprocess.Popen([sys.executable, "-m", "proxy", "ingest", str(log)], env=proxy.environment, stdout=-3) as running:
        sent = 0
        with httpx.Client() as client:
            while running.poll() is None:
                assert client.get(f"{proxy.url}/e?_n=Live&_p=me&n={sent}").status_code == 200
                sent += 1
        assert running.returncode == 0
    wait_for(lambda: sandbox.report()["counted"] == 2000 + sent, "all at the vendor")
    status = wait_for(lambda: (found := proxy.status())["delivered"] == 2000 + sent and found, "the ledger")
    assert (status["received"], status["pending"], status["dead"]) == (2000 + sent, 0, 0)
    assert (tmp_path / "spool" / "lane-0001.db").exists()


def test_lines_go_to_the_spool_of_many_machines_too(nats_server: NatsServer, tmp_path: Path) -> None:
    """Its address is no directory of this machine's. No lane of the fallback is opened: it would be this user's."""
    config = nats_server.spool(secrets.token_hex(4))
    lost = tmp_path / "lost.jsonl"
    lost.write_bytes(logged() + b"\n")

    def take_in() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "proxy", "ingest", str(lost)]
        return subprocess.run(
            command,
            env=clean_environment(BEACON_PROXY_SPOOL=config.url, BEACON_PROXY_FALLBACK=f"sqlite:{tmp_path / 'fallback'}"),
            capture_output=True,
            text=True,
            timeout=60,
        )

    before = take_in()
    assert (before.returncode, f"there is none yet at {config.url}" in before.stderr) == (2, True)
    prepare(config)
    done = take_in()
    assert (done.returncode, done.stderr) == (0, "")
    assert ledger_of(config).pending == 1
    assert not (tmp_path / "fallback").exists()
