"""A lane's file and its log as bytes: which page is where, and what a page holds. No SQLite, and nothing is trusted.

The rules are those of https://sqlite.org/fileformat2.html; its sections are named where they apply. Whatever reads a damaged page
raises one of DAMAGE. What the pages say together is for salvage.py.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096
"""Bytes of a page, in each lane."""
INNER_INDEX, INNER_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13
MOST_LOCAL = {LEAF_TABLE: PAGE - 35, LEAF_INDEX: (PAGE - 12) * 64 // 255 - 23, INNER_INDEX: (PAGE - 12) * 64 // 255 - 23}
LEAST_LOCAL = (PAGE - 12) * 32 // 255 - 23
"""How much of a row stays on its page ("Cell Payload Overflow Pages")."""
SIZES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
"""Bytes of NULL and of integers by serial type ("Record Format"). A lane has no floats."""
MOST_COLUMNS = 8
DAMAGE = (ValueError, IndexError, KeyError, OverflowError, struct.error, OSError)
"""OSError: where the disk itself cannot be read."""


class PageFile:
    """A database file and the log beside it (`…-wal`); either may be missing. Raises OSError if one cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._file, self._log = _File(path), _File(path.with_name(path.name + "-wal"))
        self._newest: dict[int, int] = {}
        """Of each page in the log, where its newest content begins."""
        self.late: dict[int, int] = {}
        """The same behind the first damage, which SQLite does not read; 0 for a page whose newest frame is damaged."""
        self.log_cut = False
        """Whether the log is damaged."""
        self._in_file = last = self._file.size // PAGE
        if self._log.size:
            last = self._read_log() or last
        self._in_file = min(self._in_file, last)
        self._beyond = sorted(number for number in self._newest if self._in_file < number <= last)
        self.count = self._in_file + len(self._beyond)

    def close(self) -> None:
        self._file.close()
        self._log.close()

    def numbers(self) -> Iterator[int]:
        """Of all `count` pages."""
        yield from range(1, self._in_file + 1)
        yield from self._beyond

    def read(self, number: int, late: bool = False) -> bytes:
        """A page as SQLite reads it, or, `late`, with what is behind the damage in the log."""
        offset = self.late.get(number) if late else None
        if offset is None:
            offset = self._newest.get(number)
        if offset is None:
            return self._file.read((number - 1) * PAGE, PAGE)
        if not offset:
            raise ValueError("the newest frame of this page is damaged")
        return self._log.read(offset, PAGE)

    def _read_log(self) -> int:
        """Note which page is where in the log ("WAL File Format"); how many pages count, 0 if it does not say.

        A frame's checksum starts from that of the frame before.
        """
        salts, last = b"", 0
        try:
            head = self._log.read(0, 32)
            magic, _, size = struct.unpack_from(">3I", head)
            order, seed = ">" if magic == 0x377F0683 else "<", head[24:32]
            cut = magic | 1 != 0x377F0683 or size != PAGE or _checksum(order, head[:24], bytes(8)) != seed
            salts = self._log.read(40, 8) if cut else head[16:24]
        except DAMAGE:
            order, seed, cut = "<", bytes(8), True
        self.log_cut = cut
        changed: dict[int, int] = {}
        for at in range(32, self._log.size - PAGE - 23, PAGE + 24):
            try:
                frame = self._log.read(at, PAGE + 24)
            except DAMAGE:
                frame = bytes(PAGE + 24)
            sound = frame[8:16] == salts and _checksum(order, frame[:8] + frame[24:], seed) == frame[16:24]
            seed, cut = frame[16:24], cut or not sound
            if frame[8:16] != salts:
                continue  # of the log's last use, or damaged
            number, pages = struct.unpack_from(">2I", frame)  # how many there are from now on, where a transaction ends
            changed[number] = at + 24 if sound else changed.get(number, 0)
            if pages and sound:
                if cut:
                    self.log_cut = True
                    self.late.update(changed)
                else:
                    last = pages
                    self._newest.update(changed)
                changed.clear()
        return last


class _File:
    """Bytes of a file that may be missing."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path if path.exists() else os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Raises OSError, and ValueError if there is less."""
        content = os.pread(self._fd, size, offset)
        if len(content) < size:
            raise ValueError("the file ends here")
        return content

    def close(self) -> None:
        os.close(self._fd)


def pointers(page: bytes, start: int = 0) -> tuple[int, ...]:
    """Where the cells of a tree's page begin ("B-tree Pages"). Raises if it is no such page."""
    kind = page[start]
    if kind not in (INNER_INDEX, INNER_TABLE, LEAF_INDEX, LEAF_TABLE):
        raise ValueError("not a page of a tree")
    (count,) = struct.unpack_from(">H", page, start + 3)
    return struct.unpack_from(f">{count}H", page, start + (12 if kind in (INNER_INDEX, INNER_TABLE) else 8))


def children(page: bytes, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """The pages below this one, each with its range of ids. Those of an index have no ids and keep the whole range."""
    if page[0] not in (INNER_INDEX, INNER_TABLE):
        return
    for at in pointers(page):
        key = low
        if page[0] == INNER_TABLE:
            key = signed(varint(page, at + 4)[0])
            if not low < key < high:
                raise ValueError("ids in disorder")
        yield uint32(page, at), low, key if page[0] == INNER_TABLE else high
        low = key
    yield uint32(page, 8), low, high


def record(payload: bytes) -> list[Any]:
    """A row's columns ("Record Format"): None, int, str or bytes."""
    header, at = varint(payload, 0)
    start, values = header, list[Any]()
    while at < header and len(values) < MOST_COLUMNS:
        kind, at = varint(payload, at)
        size = SIZES[kind] if kind < 12 else (kind - 12) // 2
        content = payload[start : start + size]
        start += size
        if kind >= 12:
            values.append(content.decode() if kind & 1 else content)
        else:
            values.append(None if kind == 0 else kind - 8 if kind > 7 else int.from_bytes(content, signed=True))
    if at != header or start != len(payload):
        raise ValueError("a header that is not this row's")
    return values


def local_size(kind: int, size: int) -> int:
    """How many of a row's bytes are on its page."""
    most, local = MOST_LOCAL[kind], LEAST_LOCAL + (size - LEAST_LOCAL) % (PAGE - 4)
    return size if size <= most else local if local <= most else LEAST_LOCAL


def varint(content: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of 1 to 9 bytes, and where it ends."""
    value = 0
    for end in range(at, at + 8):
        value = value << 7 | content[end] & 0x7F
        if content[end] < 0x80:
            return value, end + 1
    return value << 8 | content[at + 8], at + 9


def signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value


def uint32(content: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", content, at)[0])


def _checksum(order: str, content: bytes, seed: bytes) -> bytes:
    """ "Checksum Algorithm": over pairs of words, which are of the writer's byte order."""
    first, second = struct.unpack(">2I", seed)
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return struct.pack(">2I", first, second)
