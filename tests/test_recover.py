"""`lanes list|recover`: a lane that is not delivered any more comes back, whole as far as its pages are, and counts exactly."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess, clean_environment, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import MIB, fill, mounted

from proxy.delivery import Final, Retry
from proxy.hit import Hit
from proxy.outcome import Ending, Outcome
from proxy.spool.port import REFUSED, TRIMMED, DeadFilter, Settlement, SpoolConfig, SpoolError
from proxy.spool.sqlite import file
from proxy.spool.sqlite.dead import SqliteDeadLetters
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.lane import Lane
from proxy.spool.sqlite.outlet import SqliteOutlet
from proxy.spool.sqlite.recovery import Recovered, recover
from proxy.spool.sqlite.survey import audit, read_ledger

Serve = Callable[..., ProxyProcess]
NOWHERE = "http://127.0.0.1:9"
PAGE = 4096


def hit(name: str, size: int = 0, site: str = "default", id: str = "") -> Hit:
    query = f"_n={name}&_p=me&x={'x' * size}".encode()
    return Hit("e", query, b"", site, "shop.example", "192.0.2.1", "Browser/1", "", "", 1_700_000_000_000, id=id)


def a_lane(directory: Path, n: int, size: int = 0) -> Path:
    """With so many beacons, and no process on it."""
    lane = Lane(directory, SpoolConfig("", "os"))
    for first in range(0, n, 500):
        lane.append_blocking(*(hit(f"b{number}", size) for number in range(first, min(n, first + 500))))
    lane.close()
    return lane.path


def set_aside(path: Path) -> Path:
    """As a forwarder does that finds it corrupt."""
    aside = file.set_aside(path, file.inode(path))
    assert aside is not None
    return aside


def lanes(spool: ProxyProcess | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(BEACON_PROXY_SPOOL=f"sqlite:{spool}") if isinstance(spool, Path) else spool.environment
    return subprocess.run(
        [sys.executable, "-m", "proxy", "lanes", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def recovered(path: Path, directory: Path, certain_only: bool = False, dry_run: bool = False) -> Recovered:
    """The same in this process."""
    return recover(path, directory, Disk(directory), certain_only, dry_run, id, id)


def rows(path: Path, table: str) -> list[Any]:
    with contextlib.closing(apsw.Connection(str(path))) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def exhaust_names(disk: Path) -> list[Path]:
    """Files until the file system has no room for another name, though bytes are free."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            name = disk / f"name{len(made)}"
            name.touch()
            made.append(name)
    assert Disk(disk).free_bytes() > MIB
    return made


def leaves(path: Path, table: str) -> list[int]:
    """Numbers of the pages on which the table's rows are."""
    with contextlib.closing(apsw.Connection(str(path))) as db:
        query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno"
        return [number for (number,) in db.execute(query, (table,))]


def test_all_beacons_on_sound_pages_of_a_damaged_lane_are_delivered_while_serve_runs(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """A disk that lost some pages costs the beacons on them, and no other."""
    spool = tmp_path / "spool"
    proxy = serve(upstream=NOWHERE)
    with httpx.Client() as client:
        for number in range(400):
            assert client.get(f"{proxy.url}/e?_n=b{number}&_p=me&x={'x' * 300}").status_code == 200
    assert proxy.stop() == 0
    lane = spool / "lane-0000.db"
    lost: set[str] = set()
    pages = sorted(page for table in ("fresh", "waiting") for page in leaves(lane, table))
    for number in pages[len(pages) // 2 : len(pages) // 2 + 3]:
        with lane.open("r+b") as opened:
            opened.seek((number - 1) * PAGE)
            lost.update(re.findall(r"_n=(b\d+)&", opened.read(PAGE).decode("latin-1")))
            opened.seek((number - 1) * PAGE)
            opened.write(os.urandom(PAGE))
    assert 10 < len(lost) < 60

    again = serve()
    (name,) = wait_for(lambda: again.status()["set_aside"], "the damage to be found")
    assert (
        "beacon-proxy lanes recover"
        in subprocess.run([sys.executable, "-m", "proxy", "status"], env=again.environment, capture_output=True, text=True).stdout
    )
    done = lanes(again, "recover", spool / name, "--json")
    found = report(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert found["damaged_pages"] == 3
    assert found["missing"] == len(lost)
    wait_for(lambda: again.status()["pending"] == 0, "delivery")
    arrived = {beacon["params"]["_n"] for beacon in sandbox.beacons()}
    assert {f"b{number}" for number in range(400)} - lost <= arrived
    status = again.status()
    assert (status["set_aside"], status["dead"]) == ([], 0)
    assert status["received"] == status["delivered"] >= 400 - len(lost)
    assert audit(spool, 10**9) == 0


def test_a_copied_lane_gets_a_number_of_its_own_and_both_are_delivered(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """A file was copied within the spool, or brought one back beside its original: the forwarder takes but one."""
    spool = tmp_path / "spool"
    a_lane(spool, 20)
    for suffix in ("", "-wal"):
        shutil.copy(f"{spool}/lane-0000.db{suffix}", f"{spool}/lane-0001.db{suffix}")
    proxy = serve()
    wait_for(lambda: proxy.status()["delivered"] == 20, "delivery")
    assert proxy.status()["set_aside"] == ["lane-0001.db"]
    found = report(lanes(proxy, "recover", spool / "lane-0001.db", "--json"))
    assert (found["fresh"], found["certain"], found["doubtful"], found["counts_restored"]) == (20, 20, 0, False)
    status = wait_for(lambda: (now := proxy.status())["delivered"] == 40 and now, "delivery of the copy")
    assert (status["received"], status["pending"], status["set_aside"]) == (40, 0, [])
    assert {name: sandbox.report()[name] for name in ("counted", "duplicates")} == {"counted": 20, "duplicates": 20}
    assert found["lane"] == "lane-0002.db"
    assert not (spool / "lane-0001.db").exists()


def test_what_a_process_has_open_is_refused(serve: Serve, tmp_path: Path) -> None:
    """A lane that is delivered must not be taken away, nor read while it changes."""
    proxy = serve(upstream=NOWHERE)
    assert httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 200
    lane = tmp_path / "spool" / "lane-0000.db"
    os.link(lane, tmp_path / "another-name.db")
    for path in (lane, tmp_path / "another-name.db"):
        done = lanes(proxy, "recover", path)
        assert (done.returncode, done.stdout, "is in use" in done.stderr) == (2, "", True)
    assert proxy.status()["pending"] == 1
    assert [path.name for path in file.lane_files(lane.parent)] == ["lane-0000.db"]


def test_rows_and_counts_come_back_as_they_were(tmp_path: Path) -> None:
    """Attempts, due times and dead letters are what they were, and no counter falls when a lane is set aside and saved."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    lane.append_blocking(*(hit(f"b{number}", 100 * number, f"site{number % 2}") for number in range(60)))
    lane.drop("site0", Outcome.BOT)
    lane.refuse("site1")
    claims = outlet.claim(50, 0)
    verdicts = [
        Final(Outcome.DELIVERED, "200", trimmed=True),
        Retry(5_000_000_000_000, counted=True),
        Final(Outcome.REJECTED, "400"),
        Final(Outcome.NO_NAME),
    ]
    outlet.settle([Settlement(claim, verdicts[number % 4]) for number, claim in enumerate(claims)])
    lane.close()
    outlet.close()
    before = read_ledger(tmp_path)
    old = {table: rows(lane.path, table) for table in ("fresh", "waiting", "dead")}
    assert all(old.values())
    assert before.total(REFUSED) == before.total(Outcome.BOT) == 1
    assert before.total(TRIMMED) > 0

    found = recovered(set_aside(lane.path), tmp_path)
    assert found.is_whole
    assert found.counts_restored
    after = read_ledger(tmp_path)
    without_own = lambda counts: {site: {k: n for k, n in of.items() if n} for site, of in counts.items()}  # noqa: E731
    assert (without_own(after.counts), after.pending, after.unread) == (without_own(before.counts), before.pending, ())
    new = {table: rows(tmp_path / found.lane, table) for table in old}
    assert {table: [row[1:] for row in some] for table, some in new.items()} == {
        table: [row[1:] for row in some] for table, some in old.items()
    }
    assert audit(tmp_path, 10**9) == 0


def test_a_dead_letter_of_an_unknown_reason_is_kept_and_counted(tmp_path: Path) -> None:
    """Its reason may be damaged, or of another version; a letter that no count has would unbalance the ledger."""
    lane = a_lane(tmp_path, 1)
    with contextlib.closing(apsw.Connection(str(lane))) as db:
        db.execute("INSERT INTO dead SELECT id, 'default', 'rejecteq', '400', 9, 1, hit FROM fresh; DELETE FROM fresh")
    found = recovered(set_aside(lane), tmp_path)
    assert (found.dead, audit(tmp_path, 10**9)) == (1, 0)
    assert [letter.outcome for letter in SqliteDeadLetters(tmp_path).list(DeadFilter(), 10)] == ["unreadable"]


def test_ids_of_a_recovered_lane_never_meet_those_of_new_beacons(tmp_path: Path) -> None:
    """A row keeps its id when it moves between tables: if a new one had the id of one that waits, it would be lost."""
    lane, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    lane.append_blocking(*(hit(f"old{number}") for number in range(10)))
    later = Retry(0, counted=True)
    outlet.settle([Settlement(claim, later) for claim in outlet.claim(10, 0)])
    lane.close()
    outlet.close()
    recovered(set_aside(lane.path), tmp_path)
    again, outlet = Lane(tmp_path), SqliteOutlet(tmp_path)
    again.append_blocking(*(hit(f"new{number}") for number in range(10)))
    claims = outlet.claim(30, 0)
    outlet.settle([Settlement(claim, Final(Outcome.REJECTED, "400")) for claim in claims])
    letters = SqliteDeadLetters(tmp_path).list(DeadFilter(), 100)
    assert len({letter.hit.query for letter in letters if letter.hit}) == 20
    again.close()
    outlet.close()
    assert audit(tmp_path, 10**9) == 0


def test_doubtful_beacons_are_taken_unless_only_certain_ones_are_wanted(tmp_path: Path) -> None:
    """Delivered twice is absorbed, lost is lost: but an operator may know better."""
    spool = tmp_path / "spool"
    lane = Lane(tmp_path / "live")
    lane.append_blocking(*(hit(f"b{number}") for number in range(10)))
    copies = [tmp_path / name for name in ("one.db", "two.db")]
    for copy in copies:
        for suffix in ("", "-wal"):
            shutil.copy(f"{lane.path}{suffix}", f"{copy}{suffix}")
        with Path(f"{copy}-wal").open("r+b") as opened:
            opened.write(bytes(16))
    lane.close()
    file.make_directory(spool)
    certain = lanes(spool, "recover", copies[0], "--certain-only", "--json")
    assert (certain.returncode, report(certain)["left_out"], report(certain)["fresh"]) == (1, 10, 0)
    everything = lanes(spool, "recover", copies[1], "--json")
    found = report(everything)
    assert (everything.returncode, found["fresh"], found["certain"], found["doubtful"]) == (1, 10, 0, 10)
    assert found["log_damaged"]
    assert read_ledger(spool).pending == 10


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    """What an operator asks for before deciding."""
    aside = set_aside(a_lane(tmp_path, 30))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    dry = report(lanes(tmp_path, "recover", "--dry-run", "--json", aside))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    true = report(lanes(tmp_path, "recover", "--json", aside))
    changed = {"dry_run": False, "lane": true["lane"], "renamed_to": true["renamed_to"]}
    assert dry | changed == true
    assert (dry["fresh"], dry["lane"], true["lane"]) == (30, "", "lane-0000.db")


def test_a_second_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Taken twice, all would be sent twice, and counted twice."""
    aside = set_aside(a_lane(tmp_path, 30))
    renamed = report(lanes(tmp_path, "recover", "--json", aside))["renamed_to"]
    assert Path(renamed).name.startswith("lane-0000.db.recovered-")
    assert read_ledger(tmp_path).unread == ()
    for path, expected in (
        (aside, "No such file"),
        (renamed, "was recovered before"),
        (f"{renamed}-wal", "was recovered before"),
    ):
        done = lanes(tmp_path, "recover", path)
        assert (done.returncode, done.stdout, expected in done.stderr) == (2, "", True)
    assert read_ledger(tmp_path).pending == 30


def test_a_kill_in_the_middle_leaves_a_working_spool_and_the_next_run_succeeds(serve: Serve, tmp_path: Path) -> None:
    """Half a lane must never be delivered, nor stand in the way."""
    spool = tmp_path / "spool"
    aside = set_aside(a_lane(spool, 30_000, 900))
    proxy = serve(upstream=NOWHERE)
    begun = spool / "lane-0001.new"
    for most in (0, 4 * MIB):
        process = subprocess.Popen([sys.executable, "-m", "proxy", "lanes", "recover", str(aside)], env=proxy.environment)
        wait_for(lambda at=most: begun.exists() and begun.stat().st_size >= at, "the new lane")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [path.name for path in file.lane_files(spool)] == ["lane-0000.db"], "it was killed in the middle"
        assert httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 200
        assert proxy.status()["set_aside"] == [aside.name]
    done = lanes(proxy, "recover", aside)
    assert (done.returncode, done.stderr) == (0, "")
    assert (proxy.status()["received"], proxy.status()["pending"]) == (30_002, 30_002)
    assert audit(spool, 10**9) == 0
    assert not begun.exists()


def test_a_kill_between_the_new_lane_and_the_new_name_does_not_double_it(tmp_path: Path) -> None:
    """The one moment at which both files are there: the next run finds the lane, and only renames the file."""
    aside = set_aside(a_lane(tmp_path, 30))
    renamed = Path(recovered(aside, tmp_path).renamed_to)
    for suffix in ("", "-wal"):
        renamed.with_name(renamed.name + suffix).rename(f"{aside}{suffix}")  # as such a kill would have left it
    done = lanes(tmp_path, "recover", aside)
    assert (done.returncode, "An earlier run saved" in done.stdout, done.stderr) == (0, True, "")
    assert [path.name for path in file.lane_files(tmp_path)] == ["lane-0000.db"]
    assert (read_ledger(tmp_path).pending, read_ledger(tmp_path).unread) == (30, ())


def test_a_file_that_is_no_lane_is_left_as_it_is(tmp_path: Path) -> None:
    """A slip of the hand must not rename another file."""
    spool = tmp_path / "spool"
    a_lane(spool, 1)
    newer = spool / "lane-0005.db"
    shutil.copy(spool / "lane-0000.db", newer)
    with contextlib.closing(apsw.Connection(str(newer))) as db:
        db.execute(f"PRAGMA user_version = {file.SCHEMA_VERSION + 1}").fetchall()
    (tmp_path / "text").write_text("mine" * 5000)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, expected in (
        (tmp_path / "text", "nothing of a lane"),
        (tmp_path / "empty", "nothing of a lane"),
        (tmp_path / "pipe", "expected a lane's file"),
        (tmp_path, "expected a lane's file"),
        (tmp_path / "none", "No such file"),
        (spool / "lane-0000.db-wal", "expected the lane, lane-0000.db"),
        (newer, "newer version"),
    ):
        done = lanes(spool, "recover", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert path.exists() == (path.name != "none")
    assert len(file.lane_files(spool)) == 2


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lane with rows in each table and a log that is not in the file yet."""
    directory = tmp_path_factory.mktemp("busy")
    lane, outlet = Lane(directory, SpoolConfig("", "os")), SqliteOutlet(directory)
    lane.append_blocking(*(hit(f"b{number}", 40 * number, f"site{number % 3}") for number in range(90)))
    verdicts = [Final(Outcome.DELIVERED, "200"), Retry(7, counted=True), Final(Outcome.REJECTED, "400")]
    outlet.settle([Settlement(claim, verdicts[number % 3]) for number, claim in enumerate(outlet.claim(60, 0))])
    for suffix in ("", "-wal"):
        shutil.copy(f"{lane.path}{suffix}", directory / f"damaged.db{suffix}")
    lane.close()
    outlet.close()
    return directory / "damaged.db"


@given(
    damage=st.lists(st.tuples(st.sampled_from(["", "-wal"]), st.floats(0, 1), st.binary(min_size=1, max_size=5000)), max_size=6),
    certain_only=st.booleans(),
)
@settings(max_examples=60)
def test_whatever_the_damage_the_new_lane_balances(
    busy: Path, damage: list[tuple[str, float, bytes]], certain_only: bool
) -> None:
    """Nonsense on the disk must not become nonsense in the ledger, nor a traceback."""
    with tempfile.TemporaryDirectory() as place:
        spool, lane = Path(place, "spool"), Path(place, "lane.db")
        spool.mkdir()
        for suffix in ("", "-wal"):
            content = bytearray(Path(f"{busy}{suffix}").read_bytes())
            for _, at, junk in (one for one in damage if one[0] == suffix):
                start = int(at * len(content))
                content[start : start + len(junk)] = junk[: len(content) - start]
            Path(f"{lane}{suffix}").write_bytes(content)
        try:
            found = recovered(lane, spool, certain_only)
        except SpoolError:
            assert lane.exists()
            assert file.lane_files(spool) == []
        else:
            ledger = read_ledger(spool)
            assert audit(spool, 10**9) == 0
            assert ledger.pending == found.fresh + found.waiting
            assert sum(ledger.ending(Ending.DEAD).values()) == found.dead


def test_a_full_disk_says_so_and_leaves_all_as_it_is(tmp_path: Path) -> None:
    """And the file is where it was, to be taken when there is room: also where the room ends in the middle."""
    with mounted(tmp_path / "disk", "8M,nr_inodes=40") as disk:
        spool = disk / "spool"
        a_lane(spool, 1)
        aside = set_aside(a_lane(tmp_path / "elsewhere", 12_000, 900))
        done = lanes(spool, "recover", aside)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.search(r"the disk under .* is full; up to \d+\.\d MiB are needed", done.stderr)
        assert aside.exists()
        assert [path.name for path in spool.glob("lane-*.db*") if path.name[-4:] not in ("-wal", "-shm")] == ["lane-0000.db"]
        assert not list(spool.glob("*.new*"))
        small = set_aside(a_lane(tmp_path / "elsewhere", 10))
        fill(disk)
        with pytest.raises(SpoolError, match="is full"):
            recovered(small, spool)
        assert small.exists()
        (disk / "ballast").unlink()
        names = exhaust_names(disk)
        with pytest.raises(SpoolError, match="is full"):
            recovered(small, spool)
        for name in names:
            name.unlink()
        assert recovered(small, spool).is_whole
        assert read_ledger(spool).pending == 11


def test_a_disk_that_is_full_when_the_new_lane_is_closed_makes_no_lane(tmp_path: Path) -> None:
    """SQLite brings the log into the file at the end and says nothing if it cannot: the rows in the log would be lost."""
    with mounted(tmp_path / "disk") as disk:

        def write(db: Any) -> None:
            db.executemany("INSERT INTO fresh (hit) VALUES (?)", [(bytes(3000),)] * 400)
            fill(disk)

        with pytest.raises(apsw.FullError):
            file.create_file(disk / "lane-0000.db", write)
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_a_spool_at_its_limit_is_not_filled_beyond_it(tmp_path: Path) -> None:
    """Collectors would refuse what visitors send, for the sake of what is safe already."""
    spool = tmp_path / "spool"
    a_lane(spool, 1)
    aside = set_aside(a_lane(tmp_path / "elsewhere", 6_000, 900))
    with pytest.raises(SpoolError, match="max_bytes"):
        recover(aside, spool, Disk(spool, 4 * MIB), False, False, id, id)
    assert aside.exists()
    assert not list(spool.glob("*.new*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_spool_is_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    """A lane of root's would be one that the service cannot read."""
    aside = set_aside(a_lane(tmp_path / "spool", 1))
    os.chown(tmp_path / "spool", 65534, -1)
    done = lanes(tmp_path / "spool", "recover", aside)
    assert (done.returncode, "sudo -u nobody beacon-proxy" in done.stderr) == (2, True)
    assert aside.exists()


def test_the_list_says_of_each_lane_who_has_it_and_what_it_holds(serve: Serve, tmp_path: Path) -> None:
    """Which file is it, and what becomes of it: the question before any of the other commands."""
    spool = tmp_path / "spool"
    set_aside(a_lane(spool, 3))
    recovered(set_aside(a_lane(spool, 5)), spool)
    Path(spool, "lane-0000.db").rename(spool / "lane-0002.db")
    Path(spool, "lane-0000.db-wal").unlink(missing_ok=True)
    proxy = serve(upstream=NOWHERE)
    assert httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 200
    shutil.copy(spool / "lane-0002.db", spool / "lane-0003.db")
    newer = spool / "lane-0004.db"
    shutil.copy(spool / "lane-0002.db", newer)
    with contextlib.closing(apsw.Connection(str(newer))) as db:
        db.execute("PRAGMA user_version = 99").fetchall()
    (spool / "lane-0005.db").write_bytes(b"rotten" * 1000)
    done = lanes(proxy, "list", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    seen = {one["name"].partition(".db.")[0]: (one["state"], one.get("pending")) for one in found if "." in one["name"]}
    assert seen["lane-0000.db"] == ("collector", 1)
    assert seen["lane-0002.db"] == ("orphan", 5)
    assert seen["lane-0003.db"] == ("copy", 5)
    assert seen["lane-0004.db"] == ("newer", None)
    assert {one["state"] for one in found if ".corrupt-" in one["name"] or ".recovered-" in one["name"]} >= {
        "set aside",
        "recovered",
    }
    assert all(one["bytes"] > 0 for one in found)
    shown = lanes(proxy, "list").stdout
    assert "it bears the number of lane-0002.db" in shown
    assert "lane-0000.db.corrupt-" in shown
