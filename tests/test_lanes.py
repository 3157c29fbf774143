"""Which file is which lane, and who may empty it; a SQLite that keeps what it committed; a commit of unknown outcome."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need, wait_for
from test_spool import DELIVERED, hit, names

from proxy.outcome import Outcome
from proxy.spool.port import RECEIVED, REFUSED, ForwarderRunning, Settlement, SpoolConfig, SpoolError, SpoolRefused
from proxy.spool.sqlite import database, file
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.survey import read_ledger

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks that come each second in service come at once."""
    for name in ("lane.LOOK_S", "lane.REOPEN_S", "outlet.LOOK_S", "outlet.REST_S"):
        monkeypatch.setattr(f"proxy.spool.sqlite.{name}", 0.0)


def stored(directory: Path, *what: str) -> None:
    """A lane of its own, with these beacons."""
    lane = Lane(directory, SpoolConfig("", "os"))
    for name in what:
        lane.append_blocking(hit(name))
    lane.close()


def copied(directory: Path, number: int) -> Path:
    """A copy of the first lane under another number's name."""
    copy = directory / f"lane-{number:04d}.db"
    shutil.copy(directory / "lane-0000.db", copy)
    if (log := file.companions(directory / "lane-0000.db")[0]).exists():
        shutil.copy(log, file.companions(copy)[0])
    return copy


def test_a_copy_of_a_lane_is_refused_by_name_and_counted_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lanes with one number lost 13 of 1,514 beacons and sent 136 twice, and the ledger said that all was well."""
    stored(tmp_path, "a", "b", "c")
    copy = copied(tmp_path, 100)
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(10, 0)
    assert names(claims) == ["a", "b", "c"]
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    ledger = outlet.ledger()
    assert (ledger.total(RECEIVED), ledger.total(Outcome.DELIVERED), ledger.pending) == (3, 3, 0)
    assert ledger.unread == (copy.name,)
    assert re.search(rf"{copy} bears the number.*lanes recover", capsys.readouterr().err)
    outlet.close()


def test_a_copied_directory_is_not_delivered_beside_the_original(tmp_path: Path) -> None:
    """Another path, and a lock of its own: 713 beacons were delivered twice."""
    stored(tmp_path / "spool", "a", "b")
    original = SqliteOutlet(tmp_path / "spool")
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    with pytest.raises(ForwarderRunning, match="copy"):
        SqliteOutlet(tmp_path / "copy")
    original.close()
    SqliteOutlet(tmp_path / "copy").close()


def test_a_directory_that_was_replaced_under_a_forwarder_has_one_forwarder(tmp_path: Path) -> None:
    """The old one still holds the lock of the old directory; the name stands for a copy, of which another has the lock."""
    spool = tmp_path / "spool"
    stored(spool, "a", "b")
    first = SqliteOutlet(spool)
    spool.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", spool)
    with pytest.raises(ForwarderRunning):
        SqliteOutlet(spool)
    replaced = file.lock(spool / "forwarder.lock")
    assert replaced is not None
    assert first.claim(10, 0) == [], "another has the directory"
    os.close(replaced)
    assert names(first.claim(10, 0)) == ["a", "b"], "now it has it"
    first.close()


def test_a_sound_new_lane_is_not_set_aside_for_the_rotten_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector has set the rotten one aside and made a new one; the forwarder still holds the rotten file."""
    stored(tmp_path, *map(str, range(300)))
    lane_path = tmp_path / "lane-0000.db"
    monkeypatch.setattr("proxy.spool.sqlite.outlet.LOOK_S", 60.0)
    outlet = SqliteOutlet(tmp_path)
    claims = outlet.claim(10, 0)
    [reader] = outlet._readers.values()
    database.checkpoint(reader.db)
    reader.db.execute("PRAGMA shrink_memory")
    with lane_path.open("r+b") as opened:
        opened.write(b"rotten" * 7_000)
    assert file.set_aside(lane_path, file.inode(lane_path)) is not None
    stored(tmp_path, "sound")
    outlet.settle([Settlement(claim, DELIVERED) for claim in claims])
    assert len(file.set_aside_files(tmp_path)) == 1
    monkeypatch.setattr("proxy.spool.sqlite.outlet.LOOK_S", 0.0)
    assert names(outlet.claim(10, 0)) == ["sound"]
    outlet.close()


def test_a_lane_of_a_newer_schema_keeps_none_of_the_others_from_being_delivered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an upgrade that was taken back must not stop what this version can deliver."""
    first, second = Lane(tmp_path), Lane(tmp_path)
    first.append_blocking(hit("newer"))
    second.append_blocking(hit("ours"))
    first.close()
    second.close()
    db = file.open_file(first.path)
    db.pragma("user_version", 99)
    db.close()
    outlet = SqliteOutlet(tmp_path)
    assert names(outlet.claim(10, 0)) == ["ours"]
    assert re.search(r"lane cannot be read.*|schema 99", capsys.readouterr().err)
    outlet.close()


@pytest.mark.parametrize("version", ["3.7.0", "3.40.1", "3.46.1", "3.51.2"])
def test_a_sqlite_that_can_lose_what_it_committed_is_refused(version: str) -> None:
    """sqlite.org/wal.html: the WAL-reset race, from 3.7.0 to 3.51.2."""
    assert re.search(rf"SQLite {re.escape(version)} .*expected 3\.51\.3 or newer.*pip install", database.library_problem(version))


@pytest.mark.parametrize("version", ["3.51.3", "3.53.4", "3.54.1", "4.0.0"])
def test_a_sqlite_without_the_race_is_taken(version: str) -> None:
    """And the one at hand is one of them, wherever the tests run."""
    assert database.library_problem(version) == ""
    assert database.library_problem() == ""


def test_a_library_below_the_floor_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither collector nor forwarder, and `check` says it before they start."""
    from proxy.spool import look_at

    stored(tmp_path, "a")
    monkeypatch.setattr(database, "_PROBLEM", database.library_problem("3.40.1"))
    for use in (
        lambda: Lane(tmp_path),
        lambda: read_ledger(tmp_path),
        lambda: look_at(SpoolConfig(f"sqlite:{tmp_path}")),
    ):
        with pytest.raises(SpoolError, match=r"SQLite 3\.40\.1 can lose"):
            use()


def test_no_other_sqlite_library_is_in_the_house() -> None:
    """Two of them in one process break each other's locks on a file."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for folder in ("proxy", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(import|from) (sqlite3|pysqlite3|sqlean)\b", line)
    ]
    assert found == []


def test_every_connection_overwrites_what_it_deletes_in_the_same_way(tmp_path: Path) -> None:
    """Builds of SQLite differ in what they do unasked: Debian's overwrites emptied pages at once, others nothing at all."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    [reader] = outlet._readers.values()
    assert lane._db is not None
    assert [db.pragma("secure_delete") for db in (lane._db, reader.db)] == [2, 2]
    lane.append_blocking(hit("secret-of-a-visitor" * 3))
    outlet.settle([Settlement(claim, DELIVERED) for claim in outlet.claim(10, 0)])
    for n in range(200):
        lane.append_blocking(hit(f"later{n}" + "y" * 200))
    database.checkpoint(reader.db, truncate=True, wait_s=5)
    assert b"secret-of-a-visitor" not in lane.path.read_bytes()
    lane.close()
    outlet.close()


@pytest.mark.parametrize(("call", "when"), [*(("fdatasync", n) for n in (2, 5, 9)), *(("pwrite64", n) for n in (3, 16, 40, 65))])
def test_a_commit_whose_outcome_is_unknown_counts_once(tmp_path: Path, call: str, when: int) -> None:
    """The disk says EIO, once: what is in the file is answered as stored, what is not is refused, and each is counted once."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_spool import Lane, SpoolConfig, SpoolRefused, hit\n"
        "lane = Lane(sys.argv[1], SpoolConfig('', 'disk'))\n"
        "for n in range(20):\n"
        "    try: lane.append_blocking(hit(str(n))); print('stored', n)\n"
        "    except SpoolRefused: lane.refuse('default'); print('refused', n)\n"
        "lane.close()"
    )
    directory, trace = tmp_path / "spool", tmp_path / "trace"
    command = [
        *(need("strace", "strace"), "-f", "-qq", "-o", str(trace)),
        *("-P", str(directory / "lane-0000.db-wal"), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={when}"),
        *(sys.executable, "-c", code, str(directory), str(Path(__file__).parent)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert trace.read_text().count("EIO") == 1
    answered = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("stored")]
    refused = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("refused")]
    assert len(answered) + len(refused) == 20
    outlet = SqliteOutlet(directory)
    assert names(outlet.claim(100, 0)) == answered
    ledger = outlet.ledger()
    assert (ledger.total(RECEIVED), ledger.total(REFUSED), ledger.pending) == (len(answered), len(refused), len(answered))
    outlet.close()


def test_a_lane_that_lost_its_name_stores_nothing_in_the_file_that_is_gone(tmp_path: Path) -> None:
    """Answered 503 and there all the same when the directory comes back: it would be counted twice."""
    place, away = tmp_path / "spool", tmp_path / "away"
    lane = Lane(place)
    lane.append_blocking(hit("before"))
    place.rename(away)
    for n in range(3):
        with pytest.raises(SpoolRefused):
            lane.append_blocking(hit(f"refused{n}"))
        lane.refuse("default")
    away.rename(place)
    wait_for(lambda: read_ledger(place).total(REFUSED) == 3, "the refusals, counted once")
    ledger = read_ledger(place)
    assert (ledger.total(RECEIVED), ledger.pending) == (1, 1)
    lane.close()
