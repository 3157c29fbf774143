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


def test_room_is_made_in_advance_without_writing_a_byte(tmp_path: Path) -> None:
    """A checkpoint of the forwarder may extend the file at the same moment: zeros of SQLite's size hint destroyed there the
    last bytes of 274 of 358,800 beacons."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_spool import Lane, SpoolConfig, hit\n"
        "from proxy.spool.sqlite import lane as module; module.TIGHT_BYTES = 2**60\n"
        "lane = Lane(sys.argv[1], SpoolConfig('', 'os')); lane._db.pragma('wal_autocheckpoint', 0)\n"
        "for n in range(200): lane.append_blocking(hit(str(n) + 'x' * 4000))\n"
        "import os; os._exit(0)"
    )
    directory, trace = tmp_path / "spool", tmp_path / "trace"
    command = [
        *(need("strace", "strace"), "-f", "-qq", "-o", str(trace), "-P", str(directory / "lane-0000.db")),
        *(
            "-e",
            "trace=pwrite64,write,fallocate,ftruncate",
            sys.executable,
            "-c",
            code,
            str(directory),
            str(Path(__file__).parent),
        ),
    ]
    assert subprocess.run(command, timeout=100).returncode == 0
    calls = [line.split()[1].partition("(")[0] for line in trace.read_text().splitlines()]
    assert set(calls) == {"fallocate"}
    assert (directory / "lane-0000.db").stat().st_blocks * 512 > 200 * 4096, "the blocks for what the log holds are there"


def test_a_collector_adopts_no_copy(tmp_path: Path) -> None:
    """What is stored in a copy is answered 200 and delivered by nobody."""
    stored(tmp_path, "a")
    copied(tmp_path, 1)
    first, second = Lane(tmp_path), Lane(tmp_path)
    assert [first.path.name, second.path.name] == ["lane-0000.db", "lane-0002.db"]
    first.close()
    second.close()


def test_a_lane_that_is_renamed_is_delivered_under_its_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of the old name must not keep the file from that of the new one."""
    monkeypatch.setattr("proxy.spool.sqlite.outlet.REST_S", 60.0)
    stored(tmp_path, "a", "b")
    outlet = SqliteOutlet(tmp_path)
    for path in tmp_path.glob("lane-0000.db*"):
        path.rename(path.with_name(path.name.replace("0000", "0005")))
    assert names(outlet.claim(10, 0)) == ["a", "b"]
    outlet.close()


def test_a_lane_that_another_process_is_opening_or_recovering_is_waited_for(tmp_path: Path) -> None:
    """`status` beside a start, or a log that is read after a kill: no reason to answer 503."""
    stored(tmp_path, "a")
    code = (
        "import sys; from proxy.spool.sqlite.survey import read_ledger; print('.', flush=True)\n"
        "for _ in range(400): read_ledger(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        while other.poll() is None:
            lane = Lane(tmp_path, SpoolConfig("", "os"))
            lane.append_blocking(hit("b"))
            lane.close()


def test_the_writer_outlives_whatever_happens_while_it_looks_after_its_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else beacons wait without an answer for ever."""
    from proxy.spool.group import GroupCommit

    monkeypatch.setattr("proxy.spool.group.TEND_S", 0.01)
    tended = []

    def tend() -> None:
        tended.append(1)
        raise OSError(30, "Read-only file system")

    group = GroupCommit(lambda batch, counts: None, lambda: None, tend=tend)
    wait_for(lambda: len(tended) > 2, "the writer to tend")
    group.append_blocking(hit("a"))
    group.close()


def test_a_beacon_waits_no_longer_for_a_writer_that_tends_than_for_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may hang there as well."""
    import threading

    from proxy.spool.group import GroupCommit

    monkeypatch.setattr("proxy.spool.group.TEND_S", 0.01)
    tends, goes_on = threading.Event(), threading.Event()

    def tend() -> None:
        tends.set()
        goes_on.wait(20)

    group = GroupCommit(lambda batch, counts: None, lambda: None, patience_s=0.2, tend=tend)
    assert tends.wait(5)
    with pytest.raises(SpoolRefused, match="hangs"):
        group.append_blocking(hit("a"))
    goes_on.set()
    group.close()


def test_beacons_that_wait_while_it_closes_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of a WSGI server would hang for good."""
    import threading

    from proxy.spool.group import Counts, GroupCommit

    begun, goes_on = threading.Event(), threading.Event()

    def commit(batch: list[object], counts: Counts) -> None:
        begun.set()
        goes_on.wait(20)
        raise SpoolRefused("full")

    group = GroupCommit(commit, lambda: None, patience_s=30)  # type: ignore[arg-type]
    group.count("default", "refused")
    assert begun.wait(5)
    refused: list[SpoolRefused] = []

    def append() -> None:
        try:
            group.append_blocking(hit("a"))
        except SpoolRefused as error:
            refused.append(error)

    waiting = threading.Thread(target=append)
    waiting.start()
    wait_for(lambda: group._hits, "the beacon")
    closing = threading.Thread(target=group.close)
    closing.start()
    wait_for(lambda: group.closing, "the close")
    goes_on.set()
    waiting.join(10)
    closing.join(10)
    assert len(refused) == 1
    assert not closing.is_alive()


def test_the_reserve_is_kept_again_without_a_beacon_or_a_forwarder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is red until it is there, and while it is red no beacon may come."""
    monkeypatch.setattr("proxy.spool.group.TEND_S", 0.05)
    lane = Lane(tmp_path)
    (tmp_path / "reserve").unlink()
    wait_for(lambda: (tmp_path / "reserve").exists(), "the reserve", 5)
    lane.close()
