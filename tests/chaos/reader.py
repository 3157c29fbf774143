"""A program that reads a lane and does not come to an end: `python -m tests.chaos.reader SPOOL SHARE SECONDS`.

It opens one of the spool's lanes read-only (SHARE from 0 to 1 says which), prints a line and holds a read transaction for
SECONDS: meanwhile SQLite cannot use the lane's log again from its start, so the log grows. Status 0: it was held; 1: it could
not begin, as may happen on a full disk.
"""

import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote

import apsw

BUSY_MS = 1000


def main(spool: str, share: float, seconds: float) -> int:
    """The exit status."""
    lanes = sorted(Path(spool).glob("lane-????.db"))
    if not lanes:
        return 1
    lane = lanes[min(int(share * len(lanes)), len(lanes) - 1)]
    try:
        db = apsw.Connection(f"file:{quote(str(lane))}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        db.set_busy_timeout(BUSY_MS)
        db.execute("BEGIN")
        db.execute("SELECT max(id) FROM fresh").fetchall()
    except apsw.Error:
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("holding", flush=True)
    time.sleep(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
