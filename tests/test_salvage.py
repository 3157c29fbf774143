"""What is saved of a damaged lane: each row on sound pages, none that was never stored, and no traceback, whatever the damage."""

import contextlib
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import hit as hits
from proxy.hit import Hit
from proxy.spool.sqlite import file
from proxy.spool.sqlite import lane as spool_lane
from proxy.spool.sqlite.salvage import PAGE, Row, Salvage

COLUMNS = {"fresh": "id, hit", "waiting": "id, site, due_ms, attempts, hit", "ledger": "site, name, n"}
COLUMNS["dead"] = "id, site, outcome, answer, attempts, died_ms, hit"
SIZES = (0, 40, 300, 900, 2_000, 4_000, 4_100, 9_000, 60_000)
"""Bytes of a body: many to a page, one to a page, and on up to 15 pages more."""

Plain = tuple[str, tuple[Any, ...]]
"""A table and a row of it."""


class Lane:
    """A lane under work, by its own SQL, and each row that was ever in it."""

    def __init__(self, path: Path, earlier: str = "") -> None:
        self.path = path
        self.random = random.Random(1)
        self.db = apsw.Connection(str(path))
        self.db.execute("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0")
        self.db.execute(f"BEGIN; {earlier} {file.SCHEMA} PRAGMA user_version = 1; COMMIT")
        self.ever: set[Plain] = set()

    def store(self, number: int, size: int | None = None) -> None:
        for _ in range(number):
            self.insert(hit(self.random.randbytes(self.random.choice(SIZES) if size is None else size)))

    def insert(self, blob: bytes) -> None:
        self.db.execute("INSERT INTO fresh (hit) VALUES (?)", (blob,))

    def move(self, where: str) -> None:
        """Fresh rows become waiting ones and dead ones, by turns."""
        self.db.execute(f"INSERT INTO waiting SELECT id, 'shop', id * 1000, 2, hit FROM fresh WHERE id % 2 AND {where}")
        self.db.execute(
            f"INSERT INTO dead SELECT id, 'shop', 'rejected', '400 no', 9, -id, hit FROM fresh WHERE NOT id % 2 AND {where}"
        )
        self.db.execute(f"DELETE FROM fresh WHERE {where}")

    def count(self, sites: int) -> None:
        rows = [(f"site-{site}-{'x' * site * 40}", name, site * 7) for site in range(sites) for name in ("received", "delivered")]
        self.db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)

    def note(self) -> set[Plain]:
        """What SQL says is in it now."""
        now = {(table, row) for table, columns in COLUMNS.items() for row in self.db.execute(f"SELECT {columns} FROM {table}")}
        self.ever |= now
        return now

    def checkpoint(self, mode: str = "TRUNCATE") -> None:
        self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def copy(self, name: str = "copy.db") -> Path:
        """File and log as they are on the disk now."""
        copy = self.path.with_name(name)
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy}{suffix}")
        return copy


class Found(NamedTuple):
    rows: list[Row]
    salvage: Salvage

    @property
    def plain(self) -> set[Plain]:
        return set(map(plain, self.rows))

    @property
    def certain(self) -> set[Plain]:
        return {plain(row) for row in self.rows if not row.doubtful}


def plain(row: Row) -> Plain:
    return row.table, row.values


def hit(body: bytes, **over: Any) -> bytes:
    fields = {
        "site": "shop",
        "host": "shop.example",
        "address": "192.0.2.1",
        "user_agent": "Browser/1",
        "referer": "",
        "language": "",
    }
    return hits.encode(Hit("e", b"n=1", body, received_ms=1_700_000_000_000, **{**fields, **over}))


def salvage(path: Path) -> Found:
    with Salvage(path) as opened:
        rows = list(opened.rows())
    keys = [(row.table, row.values[:2] if row.table == "ledger" else row.id) for row in rows]
    assert len(keys) == len(set(keys)), "no row comes twice"
    return Found(rows, opened)


def busy(path: Path) -> Lane:
    """A lane after some work: rows in each table, free pages, trees with inner pages, and a log that is not in the file yet."""
    lane = Lane(path)
    lane.count(40)  # sites so long that their rows go on elsewhere
    lane.store(40)
    lane.store(130, 700)
    lane.note()
    lane.move("id BETWEEN 20 AND 110")
    lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id < 12; DELETE FROM dead WHERE id BETWEEN 60 AND 104")
    lane.checkpoint()
    lane.store(25)
    lane.note()
    lane.db.execute("DELETE FROM waiting WHERE id < 31; UPDATE waiting SET attempts = 3, due_ms = 0 WHERE id < 51")
    lane.store(25)
    lane.note()
    return lane


@pytest.fixture(params=["log", "checkpointed"])
def lane(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lane]:
    lane = busy(tmp_path / "lane-0000.db")
    if request.param == "checkpointed":
        lane.checkpoint()
    yield lane
    lane.db.close()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Lane]:
    """The same with nothing in the log, for damage to the file."""
    lane = busy(tmp_path / "lane-0000.db")
    lane.checkpoint()
    yield lane
    lane.db.close()


def pages_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[at : at + PAGE] for at in range(0, len(content), PAGE)]


def write(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(content)


def write_page(path: Path, number: int, content: bytes) -> None:
    write(path, (number - 1) * PAGE, content)


def tree_pages(path: Path) -> list[int]:
    """Those that hold rows or lead to them, page 1 among them."""
    db = apsw.Connection(str(path))
    try:
        return [number for (number,) in db.execute("SELECT pageno FROM dbstat WHERE pagetype <> 'overflow' ORDER BY pageno")]
    finally:
        db.close()


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def sql(path: Path) -> set[Plain]:
    """What SQLite itself finds."""
    db = apsw.Connection(str(path))
    try:
        return {(table, row) for table, columns in COLUMNS.items() for row in db.execute(f"SELECT {columns} FROM {table}")}
    finally:
        db.close()


def test_all_rows_of_a_sound_lane_come_back_and_equal_what_sql_says(lane: Lane) -> None:
    """The rules are SQLite's, so on a sound file the two must agree on each byte, with the log in the file or beside it."""
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note()
    assert {len(row.pages) for row in found.rows} >= {1, 2, 3, 15}, "hits of all sizes were among them"
    assert (found.salvage.damaged, found.salvage.unreadable, found.salvage.skipped) == (0, 0, 0)
    assert not found.salvage.log_cut


def test_rows_of_each_length_around_the_edges_of_a_page_come_back(tmp_path: Path) -> None:
    """How much of a row stays on its page has a rule for tables and one for the ledger, with a step each."""
    lane = Lane(tmp_path / "lane-0000.db")
    for size in (*range(3_940, 4_010), *range(4_520, 4_560), *range(8_000, 8_110)):
        lane.insert(hit(bytes(size)))
    for size in (*range(960, 1_010), *range(4_500, 4_560), *range(5_030, 5_100)):
        lane.db.execute("INSERT INTO ledger VALUES (?, 'received', -1)", ("x" * size,))
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note()


def test_integers_of_each_length_come_back(tmp_path: Path) -> None:
    """SQLite keeps them in 0 to 8 bytes."""
    lane = Lane(tmp_path / "lane-0000.db")
    numbers = [sign * 2**bits + step for bits in range(0, 63) for sign in (1, -1) for step in (-1, 0, 1)]
    lane.db.executemany("INSERT OR IGNORE INTO waiting VALUES (?, '', ?, ?, ?)", [(n, n, -n, hit(b"")) for n in numbers])
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note()


def test_rows_are_found_where_page_1_says_and_as_many_pages_as_the_log_says(tmp_path: Path) -> None:
    """A lane of another version may have its roots elsewhere, and VACUUM leaves pages behind that no longer count."""
    lane = Lane(tmp_path / "lane-0000.db", earlier="CREATE TABLE earlier (n);")
    lane.store(300, 700)
    lane.db.execute("DELETE FROM fresh WHERE id < 200")
    lane.checkpoint()
    lane.store(100, 700)
    lane.db.execute("DELETE FROM fresh WHERE id < 350; VACUUM")
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note()
    assert found.salvage.damaged == 0
    assert found.salvage.pages == lane.db.execute("PRAGMA page_count").fetchone()[0]


def test_what_was_not_committed_is_not_read(tmp_path: Path) -> None:
    """The log also has what a transaction under way wrote, or one that was rolled back: no beacon in it was answered with 200."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(20, 500)
    lane.db.execute("PRAGMA cache_size = 2; BEGIN")
    lane.store(200, 500)
    under_way = salvage(lane.copy())
    lane.db.execute("ROLLBACK")
    now = lane.note()
    assert log_of(lane.copy()).stat().st_size > 40 * PAGE, "it was in the log"
    assert under_way.certain == under_way.plain == now
    lane.store(3, 500)
    found = salvage(lane.copy())
    assert found.certain == found.plain == lane.note(), "the rest of the transaction lies behind the log's end"
    assert not found.salvage.log_cut


@pytest.mark.parametrize(
    "content",
    [bytes(PAGE), random.Random(2).randbytes(PAGE), b"\x0d" + bytes(PAGE - 1), b"\x0d" * PAGE],
    ids=["zero", "random", "empty leaf", "leaf of nonsense"],
)
def test_a_damaged_page_costs_the_rows_on_it_and_no_other(quiet: Lane, content: bytes) -> None:
    """Page 1, roots, inner pages, leaves, free pages, and pages on which a long hit goes on: each is lost once."""
    path, now = quiet.copy(), quiet.note()
    before, whole = pages_of(path), salvage(path).rows
    tree = tree_pages(path)
    for number in [*tree, *quiet.random.sample(sorted(set(range(1, len(before) + 1)) - set(tree)), 15)]:
        write_page(path, number, content)
        found = salvage(path)
        kept = {plain(row) for row in whole if number not in row.pages}
        assert {plain(row) for row in found.rows if number not in row.pages} == kept, f"page {number}"
        unnoticed = not found.salvage.damaged and not found.salvage.unreadable
        assert not unnoticed or found.plain == now or any(row.table == "ledger" and number in row.pages for row in found.rows)
        write_page(path, number, before[number - 1])


def test_pages_that_changed_places_lose_no_row(quiet: Lane) -> None:
    """A disk that writes to the wrong place: no page is where its tree looks for it, and all are sound."""
    path, now = quiet.copy(), quiet.note()
    before, tree = pages_of(path), tree_pages(path)
    for _ in range(60):
        one, other = quiet.random.sample(tree, 2)
        write_page(path, one, before[other - 1])
        write_page(path, other, before[one - 1])
        found = salvage(path)
        assert now <= found.plain <= quiet.ever, f"pages {one} and {other}"
        assert found.certain <= now, f"pages {one} and {other}"
        write_page(path, one, before[one - 1])
        write_page(path, other, before[other - 1])


def test_deleted_rows_are_doubtful_when_their_page_lies_in_the_place_of_another(tmp_path: Path) -> None:
    """A leaf is believed for the ids between its neighbours' alone."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(100, 900)
    lane.checkpoint()
    old = next(page for page in pages_of(lane.path)[1:] if page[0] == 13 and b"shop" in page)
    lane.db.execute("DELETE FROM fresh WHERE id < 50")
    lane.checkpoint()
    path, now = lane.copy(), lane.note()
    place = salvage(path).rows[-1].pages[0]
    write_page(path, place, old)
    found = salvage(path)
    assert found.certain < now
    assert {row.id for row in found.rows if row.doubtful} == {1, 2, 3, 4}


def test_deleted_rows_stay_deleted_when_page_1_is_lost(tmp_path: Path) -> None:
    """A drained lane is full of delivered hits on free pages, and the list of these begins on page 1."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(600, 900)
    lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id < 590")
    lane.checkpoint()
    path = lane.copy()
    write_page(path, 1, bytes(PAGE))
    found = salvage(path)
    assert found.certain == found.plain == lane.note()
    assert found.salvage.skipped > 400


@pytest.mark.parametrize(("lost", "certain"), [((2,), True), ((1, 2), False)])
def test_rows_below_a_lost_root_are_certain_only_while_free_pages_are_known(
    tmp_path: Path, lost: tuple[int, ...], certain: bool
) -> None:
    """Without root and list, a page of delivered hits looks like any other: the operator must hear of the difference."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(600, 900)
    before = lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id < 300")
    lane.checkpoint()
    path, now = lane.copy(), lane.note()
    for number in lost:
        write_page(path, number, bytes(PAGE))
    found = salvage(path)
    if certain:
        assert found.certain == found.plain == now
    else:
        assert now <= found.plain <= before
        assert not found.certain


def test_a_file_that_was_cut_keeps_the_rows_before_the_cut(quiet: Lane) -> None:
    """A copy that ended early, or a file system that lost the end: also in the midst of a page, and down to nothing."""
    whole, now = salvage(quiet.copy()).rows, quiet.note()
    for size in [0, 1, 100, PAGE - 1, PAGE, 8 * PAGE + 7, 50 * PAGE, 200 * PAGE + 4000, len(pages_of(quiet.path)) * PAGE - 1]:
        path = quiet.copy()
        os.truncate(path, size)
        found = salvage(path)
        assert {plain(row) for row in whole if max(row.pages) * PAGE <= size} <= found.plain <= quiet.ever
        assert found.certain <= now


def test_a_lane_comes_back_from_its_log_alone(tmp_path: Path) -> None:
    """A file that is gone is no reason to give up its log, which may hold all that was stored since the last checkpoint."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.count(5)
    lane.store(60)
    path = lane.copy()
    path.unlink()
    found = salvage(path)
    assert found.certain == found.plain == lane.note()


def test_a_file_without_its_log_gives_what_it_has(quiet: Lane) -> None:
    """And so does one whose log is empty, or was closed properly."""
    now = quiet.note()
    path = quiet.copy()
    assert salvage(path).certain == now
    log_of(path).unlink()
    assert salvage(path).certain == now
    assert salvage(path.with_name("neither.db")).rows == []


FIELDS = {"page number": 0, "commit": 4, "salt": 8, "checksum": 16, "content": 1000}


def frames(log: Path) -> list[int]:
    """The page number in each frame."""
    content = log.read_bytes()
    return [struct.unpack_from(">I", content, at)[0] for at in range(32, len(content), PAGE + 24)]


@pytest.mark.parametrize("field", FIELDS)
def test_hits_behind_a_damaged_frame_of_the_log_come_back(tmp_path: Path, field: str) -> None:
    """SQLite drops the whole rest of the log for one damaged sector: the newest beacons, of which each was answered with 200."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.checkpoint()
    lane.store(25, 400)
    now, numbers = lane.note(), frames(log_of(lane.copy()))
    for at, number in enumerate(numbers):
        path = lane.copy()
        write(log_of(path), 32 + at * (PAGE + 24) + FIELDS[field], b"\xa5\x5a\xa5")
        found = salvage(path)
        unsound = at + 1 if field == "checksum" else at  # the next one's checksum starts from it
        assert found.plain <= now
        if set(numbers[at : unsound + 1]) <= set(numbers[unsound + 1 :]):
            assert found.plain == now, f"frame {at}: the page was written again later"
            assert found.salvage.log_cut
        assert len(now - found.plain) <= 1, f"frame {at}: no other frame has the last row of page {number}"
        assert found.certain <= sql(path) <= found.plain


@pytest.mark.parametrize(("at", "size"), [(0, 32), (0, 4), (8, 4), (16, 8), (24, 8)])
def test_a_log_whose_header_is_lost_is_read_all_the_same(tmp_path: Path, at: int, size: int) -> None:
    """The frames say themselves which belong together. SQLite reads none of them."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.checkpoint()
    lane.store(50, 400)
    path, now = lane.copy(), lane.note()
    write(log_of(path), at, b"\xa5" * size)
    found = salvage(path)
    assert found.plain == now
    assert found.salvage.log_cut
    assert not found.certain


def test_a_damaged_log_makes_no_hit_out_of_two_and_no_deleted_one_certain(tmp_path: Path) -> None:
    """Once the file has the log too, a long hit may begin in what is left of the log and go on where the file has a later one."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(3, 5_000)
    lane.checkpoint()
    lane.store(1, 40)
    lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id = 2")
    lane.store(1, 5_000)
    lane.checkpoint("PASSIVE")
    now, mixed = lane.note(), 0
    for at in range(len(frames(log_of(lane.path)))):
        path = lane.copy()
        write(log_of(path), 32 + at * (PAGE + 24) + 20, b"\xa5\x5a\xa5")
        found = salvage(path)
        assert found.plain <= lane.ever, f"frame {at}"
        assert found.certain <= now, f"frame {at}"
        with contextlib.suppress(apsw.CorruptError):
            mixed += not sql(path) <= lane.ever
    assert mixed, "SQLite itself makes one"


@pytest.mark.parametrize(
    "blob",
    [b"", b"no hit", hit(b"")[:-3], hit(b"") + b"\0", b"\x9f" + hit(b"")[1:] + b"\x91" * 100_000 + b"\xc0"],
    ids=["empty", "text", "short", "long", "deep"],
)
def test_what_cannot_be_decoded_is_no_hit(tmp_path: Path, blob: bytes) -> None:
    """It is counted, and the row beside it comes."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.insert(hit(b"one"))
    lane.insert(blob)
    lane.insert(hit(b"two"))
    found = salvage(lane.copy())
    assert [row.id for row in found.rows] == [1, 3]
    assert found.salvage.unreadable == 1


def test_what_leads_back_to_itself_is_left(quiet: Lane) -> None:
    """Loops of a tree, of the free pages and of a long hit's pages, which also must end where its length ends."""
    path, now = quiet.copy(), quiet.note()
    before, whole = pages_of(path), salvage(path).rows
    trunk = struct.unpack_from(">I", before[0], 32)[0]
    long = next(row for row in whole if len(row.pages) > 10).pages
    for number, at, to in [
        (2, 8, 2),
        (7, 8, 7),
        (trunk, 0, trunk),
        (long[5], 0, long[2]),
        (long[5], 0, long[0]),
        (long[-1], 0, 2),
    ]:
        write(path, (number - 1) * PAGE + at, struct.pack(">I", to))
        found = salvage(path)
        assert {plain(row) for row in whole if number not in row.pages} <= found.plain <= now
        assert not any(number in row.pages[1:] for row in found.rows)
        write_page(path, number, before[number - 1])


def test_a_hit_is_not_lost_because_another_claims_its_pages(tmp_path: Path) -> None:
    """One damaged number must cost one hit, not two."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(2, 30_000)
    lane.checkpoint()
    path = lane.copy()
    one, other = salvage(path).rows
    write(path, (one.pages[2] - 1) * PAGE, struct.pack(">I", other.pages[3]))
    assert plain(other) in salvage(path).plain


def test_an_old_page_makes_no_hit_out_of_two(tmp_path: Path) -> None:
    """With root and list of free pages lost, a deleted hit may begin on an old page and end where another now has its own."""
    lane = Lane(tmp_path / "lane-0000.db")
    lane.store(60, 5_000)
    lane.note()
    lane.move("id <= 40")
    lane.checkpoint()
    path, now = lane.copy(), lane.note()
    write(path, 0, bytes(2 * PAGE))
    found = salvage(path)
    assert now <= found.plain <= lane.ever


def test_a_file_made_to_take_for_ever_does_not(tmp_path: Path) -> None:
    """Thousands of rows that all go on over the same 255 pages, and turn out to be none at the last."""
    inner = [struct.pack(">I", number + 1) + bytes(PAGE - 4) for number in range(1, 256)]
    cell = b"\xbf\xff\x40" + b"\1" + bytes(500) + struct.pack(">I", 1)  # 1,048,512 bytes, id 1
    local = (1_048_512 - 489) % (PAGE - 4) + 489
    cell = b"\xbf\xff\x40" + b"\1" + bytes(local) + struct.pack(">I", 1)
    at = PAGE - len(cell)
    leaf = struct.pack(">BHHHB", 13, 0, 200, at, 0) + struct.pack(">200H", *[at] * 200)
    leaf += bytes(at - len(leaf)) + cell
    path = tmp_path / "lane-0000.db"
    path.write_bytes(b"".join(inner) + leaf * 500)
    found = salvage(path)
    assert not found.rows
    assert found.salvage.unreadable


def test_progress_adds_up_to_the_pages_of_the_file(lane: Lane) -> None:
    """A bar that ends before its end, or runs past it, makes the operator doubt the rest."""
    steps: list[int] = []
    with Salvage(lane.copy()) as opened:
        for _ in opened.rows(steps.append):
            pass
        assert sum(steps) == opened.pages
    assert len(steps) > 1
    assert min(steps) >= 0


class Damage(NamedTuple):
    """To the file ("") or its log ("-wal"): a range is overwritten, two pages or frames change places, or the end is cut off."""

    suffix: str
    action: str
    one: int
    other: int
    within: int
    length: int
    content: bytes | int
    """A byte to repeat, or a seed."""

    def do(self, path: Path) -> None:
        target, size, head = (log_of(path), PAGE + 24, 32) if self.suffix else (path, PAGE, 0)
        found = target.read_bytes()
        at, to = head + self.one * size, head + self.other * size
        if self.action == "cut":
            os.truncate(target, min(len(found), at + self.within))
        elif self.action == "swap":
            write(target, at, found[to : to + size])
            write(target, to, found[at : at + size])
        else:
            at += self.within if self.action == "range" else self.within % 16
            seed = self.content
            content = random.Random(seed).randbytes(self.length) if isinstance(seed, int) else seed * self.length
            write(target, at, content[: max(0, len(found) - at)])


DAMAGE = st.builds(
    Damage,
    suffix=st.sampled_from(["", "-wal"]),
    action=st.sampled_from(["range", "header", "swap", "cut"]),
    one=st.integers(0, 150),
    other=st.integers(0, 150),
    within=st.integers(0, PAGE - 1),
    length=st.sampled_from([1, 2, 4, 30, 512, PAGE, 5 * PAGE]),
    content=st.sampled_from([b"\0", b"\xff", b"\x0d"]) | st.integers(0, 2**32),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    lane = Lane(tmp_path_factory.mktemp("small") / "lane-0000.db")
    lane.count(4)
    for size in (300, 4_500, 300, 13_000):
        lane.store(16, size)
    lane.note()
    lane.move("id BETWEEN 12 AND 55")
    lane.note()
    lane.db.execute("DELETE FROM fresh WHERE id < 8; DELETE FROM dead WHERE id < 35")
    lane.checkpoint()
    for size in (300, 9_000, 300, 4_500, 300):
        lane.store(2, size)
        lane.note()
    yield lane
    lane.db.close()


@settings(max_examples=100)
@given(done=st.lists(DAMAGE, min_size=1, max_size=5))
def test_no_damage_raises_or_makes_a_hit_that_was_never_stored(small: Lane, done: list[Damage]) -> None:
    """Whatever the disk did. A row may be wrong only where a page of its own was changed in the file: pages have no checksum."""
    path = small.copy()
    before = pages_of(path)
    for damage in done:
        damage.do(path)
    after = pages_of(path)
    changed = {number for number, (old, new) in enumerate(zip(before, after, strict=False), 1) if old != new}
    changed.update(range(len(before) + 1, len(after) + 1))
    for row in salvage(path).rows:
        assert plain(row) in small.ever or changed & set(row.pages)


def test_room_that_a_lane_made_in_advance_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tight disk a lane's file grows by a mebibyte of zeros at a time: a sound lane lost no pages by it."""
    monkeypatch.setattr("proxy.spool.sqlite.lane.TIGHT_BYTES", 2**60)
    lane = spool_lane.Lane(tmp_path)
    lane.append_blocking(*[hits.decode(hit(b"x" * 300))] * 500)
    lane.close()
    found = salvage(lane.path)
    assert lane.path.stat().st_size // PAGE > salvage(lane.path).rows[-1].pages[0] + 100, "there is such room"
    assert (len([row for row in found.rows if row.table == "fresh"]), found.salvage.damaged) == (500, 0)
