"""What can be saved of a damaged lane: its rows, read page by page without SQLite, which gives up a file that is damaged.

1. Walk: each table's tree from its root. A page must fit its place: the right kind, and ids between those of its neighbours. This
   finds just the rows that SQL would find. Where a page does not fit there is a hole: a range of ids of which nothing is known.
2. Scan: leaf pages that no tree and no list of free pages leads to. A row there is certain if its id is in a hole and the list of
   free pages is sound, doubtful if only one of the two is true, and skipped if neither is: it was deleted.
3. Log: SQLite ignores all that follows a damaged frame. Rows of sound transactions behind it are read too, and are doubtful.

Twice: a row comes once per table and id. A hit may come from two tables under one id if half of its move between them is lost.
Doubtful rows may have been deleted before, that is, delivered. So may any row if a log with content is missing altogether.
Not at all: a row on a damaged page, or one that continues there. Page 1, and pages with no rows of their own, lose none.
Wrong: pages have no checksum outside the log. A hit whose own text was changed on the disk, and that can still be decoded, cannot
be told from a true one; `Row.pages` says where it was read. Nor can a doubtful hit longer than a page whose end was overwritten.
Memory: some bytes for each page and row, never their content.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack_from
from typing import Any, NamedTuple, Self

import msgspec

from proxy import hit as hits
from proxy.spool.sqlite import pages
from proxy.spool.sqlite.pages import INNER_INDEX, LEAF_INDEX, LEAF_TABLE, PAGE, PageFile

MAX_PAYLOAD = 1024**2
"""Bytes of a row. The largest hit has less than a tenth of it."""
MAX_DEPTH = 20
"""Of a tree; SQLite's own limit."""
LOCK_PAGE = 2**30 // PAGE + 1
"""Never used: SQLite locks bytes of it."""
SHAPES = {
    (type(None), bytes): "fresh",
    (type(None), str, int, int, bytes): "waiting",
    (type(None), str, str, str, int, int, bytes): "dead",
    (str, str, int): "ledger",
    (str, str, str, int, str): "schema",
}
ROOTS = {"dead": 6, "waiting": 4, "fresh": 2, "ledger": 7}
"""Where the trees of a lane begin if page 1 does not say: all lanes are made by the same statements."""
MAGIC = b"SQLite format 3\0"
LOWEST, HIGHEST = -(2**63) - 1, 2**63 - 1
DAMAGE = (*pages.DAMAGE, msgspec.DecodeError, RecursionError)


class Row(NamedTuple):
    """A row. `values`: all columns in the table's order. `pages`: where it was read, its leaf first."""

    table: str
    id: int
    """In the ledger, which has none, a number that tells its rows apart."""
    values: tuple[Any, ...]
    pages: tuple[int, ...]
    doubtful: bool = False


class Salvage:
    """Reads a database file and the log beside it (`…-wal`); either may be missing. Raises OSError if one cannot be opened.

    Nothing is written and nothing locked: the file must not be in use. The counts are complete when `rows` is exhausted.
    """

    def __init__(self, path: Path) -> None:
        self._file = PageFile(path)
        self.pages = self._file.count
        """How many there are."""
        self.number, self.version, self._end = self._read_head()
        """The lane's number, the version of its schema, and the last page in use; 0 where page 1 is damaged."""
        self.damaged = 0
        """Pages that are missing, or hold nothing that can be read although they should."""
        self.unreadable = 0
        """Rows that are damaged or continue on a damaged page, and hits that cannot be decoded."""
        self.skipped = 0
        """Rows that were deleted before, on pages that no list of free pages names any more."""
        self.log_cut = self._file.log_cut
        """Whether the log is damaged."""
        self._done = 0
        self._overflow_reads_left = 4 * self.pages + 1000
        """A file in which many rows claim to continue on the same pages must not take for ever."""
        self._used, self._free, self._bad = _Numbers(), _Numbers(), _Numbers()
        self._seen = {table: _Numbers() for table in ROOTS}
        self._holes: dict[str, tuple[list[int], list[int]]] = {table: ([], []) for table in ROOTS}
        """Lower ends (exclusive) and upper ends (inclusive), ascending."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, progress: Callable[[int], object] = lambda pages: None) -> Iterator[Row]:
        """All that can be saved; once. `progress` is called with how many more pages are done, which adds up to `pages`."""
        reported = 0
        for row in self._passes():
            if self._done - reported >= 256:
                progress(self._done - reported)
                reported = self._done
            if row is not None:
                yield row
        progress(self.pages - reported)

    def _read_head(self) -> tuple[int, int, int]:
        """What page 1 says, as "The Database Header" has it."""
        try:
            page = self._file.read(1)
        except DAMAGE:
            return 0, 0, 0
        return (pages.uint32(page, 68), pages.uint32(page, 60), pages.uint32(page, 28)) if page.startswith(MAGIC) else (0, 0, 0)

    def _passes(self) -> Iterator[Row | None]:
        """None: some pages without rows are done."""
        for table, root in self._roots().items():
            yield from self._walk(table, root)
        sound, walked = self._read_free(), self._done
        for position, number in enumerate(self._file.numbers(), 1):
            if number not in self._used and number not in self._free and number != LOCK_PAGE:
                yield from self._scan(number, sound)
            self._done = walked + (self.pages - walked) * position // self.pages
            yield None
        for number, offset in self._file.late.items():
            if offset:
                yield from self._scan(number, False, late=True)

    def _roots(self) -> dict[str, int]:
        roots = dict(ROOTS)
        try:
            page = self._file.read(1)
            if not page.startswith(b"SQLite format 3\0"):
                raise ValueError("another page")
            self._done += self._used.add(1)
            for row in self._read(1, page, start=100):
                if row.values and row.values[0] == "table" and row.values[1] in roots:
                    roots[row.values[1]] = row.values[3]
        except DAMAGE:
            self.damaged += self._bad.add(1)
        return roots

    def _walk(self, table: str, root: int) -> Iterator[Row | None]:
        """The rows of a tree in the order of their ids. A page that does not fit is left to the scan."""
        todo = [(root, LOWEST, HIGHEST, 0)]
        while todo:
            number, low, high, depth = todo.pop()
            children, rows, fits, lost = list[tuple[int, int, int]](), iter(list[Row]()), False, 0
            try:
                page = self._file.read(number)
                is_index = page[0] in (LEAF_INDEX, INNER_INDEX)
                if number not in self._used and depth <= MAX_DEPTH and is_index == (table == "ledger"):
                    empty = not pages.pointers(page)
                    children = list(pages.children(page, low, high))
                    fits = bool(children) or (empty and number == root)
                    rows = self._read(number, page)
            except DAMAGE:
                pass
            for row in rows:
                if row.table == table and low < row.id <= high:
                    fits = True
                    yield from self._accept(row, False)
                else:
                    lost += 1
            if fits:
                self.unreadable += lost
                self._done += self._used.add(number)
                todo += [(*child, depth + 1) for child in reversed(children)]
                yield None
            else:
                self.damaged += self._bad.add(number)
                for ends, end in zip(self._holes[table], (low, high), strict=True):
                    ends.append(end)

    def _scan(self, number: int, sound: bool, late: bool = False) -> Iterator[Row]:
        """The rows of a page that no tree leads to. `sound`: all free pages are known."""
        try:
            page = self._file.read(number, late)
            if number > self._end > 0 and not any(page):
                return  # room that was made in advance
            pages.pointers(page)
        except DAMAGE:
            self.damaged += sound and self._bad.add(number)
            return
        for row in self._read(number, page, late, orphan=not late):
            in_hole = any(self._in_hole(table, row.id) for table in ROOTS if row.table in (table, ""))
            if not (in_hole or sound or late):
                self.skipped += 1
            elif row.table:
                yield from self._accept(row, not (in_hole and sound))
            else:
                self.unreadable += 1

    def _accept(self, row: Row, doubtful: bool) -> Iterator[Row]:
        if self._seen[row.table].add(row.id):
            self._done += sum(self._used.add(number) for number in row.pages[1:])
            yield row._replace(doubtful=doubtful or row.pages[0] in self._file.late)

    def _in_hole(self, table: str, id: int) -> bool:
        lows, highs = self._holes[table]
        before = bisect_left(lows, id) - 1
        return before >= 0 and id <= highs[before]

    def _read(self, number: int, page: bytes, late: bool = False, orphan: bool = False, start: int = 0) -> Iterator[Row]:
        """The rows on a page, whatever their table; without a table, those that cannot be read."""
        kind = page[start]
        for at in pages.pointers(page, start) if kind in pages.MOST_LOCAL else ():
            id = 0
            try:
                size, at = pages.varint(page, at + 4 if kind == INNER_INDEX else at)
                if kind == LEAF_TABLE:
                    id, at = pages.varint(page, at)
                    id = pages.signed(id)
                payload, overflow = self._payload(page, at, size, pages.local_size(kind, size), late, orphan)
                values = pages.record(payload)
                table = SHAPES.get(tuple(map(type, values)))
                if table is None or (table == "schema") != (start > 0) or (table == "ledger") != (kind != LEAF_TABLE):
                    continue  # SQLite's own, or of the index
                if table == "ledger":
                    id = hash((values[0], values[1]))
                elif table != "schema":
                    hits.decode(values[-1])
                    values[0] = id
                row = Row(table, id, tuple(values), (number, *overflow))
            except DAMAGE:
                row = Row("", id, (), (number,))
            yield row

    def _payload(self, page: bytes, at: int, size: int, local: int, late: bool, orphan: bool) -> tuple[bytes, list[int]]:
        """A row's bytes, and the pages on which it continues."""
        if size > MAX_PAYLOAD:
            raise ValueError("too large")
        parts, overflow, rest = [page[at : at + local]], list[int](), size - local
        following = pages.uint32(page, at + local) if rest else 0
        while rest > 0:
            self._overflow_reads_left -= 1
            if self._overflow_reads_left < 0:
                raise ValueError("a file made to take for ever")
            if not late and (following in self._file.late or (orphan and following in self._used)):
                raise ValueError("another row's page by now, so this one was deleted")
            content = self._file.read(following, late)
            overflow.append(following)
            parts.append(content[4 : 4 + rest])
            following, rest = pages.uint32(content, 0), rest - (PAGE - 4)
        payload = b"".join(parts)
        if following or len(payload) != size:
            raise ValueError("longer or shorter than it says, or a loop")
        return payload, overflow

    def _read_free(self) -> bool:
        """Note the free pages ("The Freelist"). Whether all are known: a list that names a page in use is damaged there."""
        try:
            trunk, left = unpack_from(">2I", self._file.read(1), 32)
            while trunk and 1 in self._used:
                page = self._file.read(trunk)
                numbers = {trunk, *unpack_from(f">{pages.uint32(page, 4)}I", page, 8)}
                if any(number in self._used or number in self._free for number in numbers):
                    return False
                for number in numbers:
                    self._free.add(number)
                trunk, left = pages.uint32(page, 0), left - len(numbers)
        except DAMAGE:
            return False
        return left == 0 and 1 in self._used


class _Numbers:
    """A set of numbers that takes a bit for each where they lie close together."""

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}

    def add(self, number: int) -> bool:
        """Whether it is new."""
        chunk, bit = self._chunks.get(number >> 10, 0), 1 << (number & 1023)
        self._chunks[number >> 10] = chunk | bit
        return not chunk & bit

    def __contains__(self, number: int) -> bool:
        return bool(self._chunks.get(number >> 10, 0) >> (number & 1023) & 1)
