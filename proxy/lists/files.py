"""Filter lists from files and directories. Any bytes are a list, perhaps one that blocks nothing; size and kind are bounded."""

import re
from collections.abc import Iterable
from pathlib import Path

from proxy.lists.engine import CannotRead

MAX_BYTES = 32 * 1024**2
"""The largest lists have 3 MB."""
MOST_FILES = 200


def read(places: Iterable[Path]) -> list[tuple[str, str]]:
    """(name, text) of each file, and of each *.txt of a directory. Raises CannotRead."""
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.glob("*.txt") if path.is_file())
            if not inside:
                raise CannotRead(f"{place}: found no *.txt in it; expected filter lists")
            files += inside
        else:
            files.append(place)
    if len(files) > MOST_FILES:
        raise CannotRead(f"found {len(files):,} files; expected {MOST_FILES} at most")
    return [(path.name, _text(path)) for path in files]


def has_rules(text: str) -> bool:
    """Whether there is anything but comments."""
    return any(line.strip() and line.lstrip()[0] not in "![#\ufeff" for line in text.splitlines())


def _text(path: Path) -> str:
    if re.match(r"[a-z]+:/", str(path)):
        raise CannotRead(
            f"{path}: found an address, and addresses are not taken; expected a file: fetch it first, or name none for the "
            "official lists"
        )
    try:
        if path.exists() and not path.is_file():
            raise CannotRead(f"{path}: is no regular file; expected a filter list")
        with path.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise CannotRead(f"{path}: cannot be read: {error.strerror}; expected a filter list") from None
    except ValueError:  # a zero byte in the name
        raise CannotRead(f"{str(path)!r}: is no file's name; expected a filter list") from None
    if len(raw) > MAX_BYTES:
        raise CannotRead(f"{path}: has more than {MAX_BYTES:,} bytes; expected a filter list")
    return raw.decode("utf-8", "replace")
