#!/usr/bin/env bash
# After a checkpoint in WAL mode, the next commit starts the log from its beginning and cuts it to journal_size_limit. Whoever wants the
# room of a log back that a reader had let grow would guess that any small write does: say, an upsert that adds 0 to a counter.
# What happens: a row that is overwritten with the same bytes makes no page dirty, so the commit writes no frame, and the log stays as
# large as it was, for good if that is the only thing written. One that changes a byte cuts it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check apsw==3.54.1.0
timeout 60 "$place/venv/bin/python" - "$place" <<'PY'
import os
import sys

import apsw

LIMIT = 64 * 1024
ADD = "INSERT INTO counts VALUES ('n', ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"

path = os.path.join(sys.argv[1], "log.db")
db = apsw.Connection(path)
db.pragma("journal_mode", "wal")
db.pragma("journal_size_limit", LIMIT)
db.execute("CREATE TABLE counts (name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID; CREATE TABLE t (x)")
db.execute(ADD, (1,))
db.execute("INSERT INTO t VALUES (randomblob(1000000))")
db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
sizes = [os.path.getsize(path + "-wal")]
for more in (0, 1):
    db.execute(ADD, (more,))
    sizes.append(os.path.getsize(path + "-wal"))
print("apsw", apsw.apsw_version(), "with SQLite", apsw.sqlite_lib_version())
print("log after the checkpoint", sizes[0], "after adding 0", sizes[1], "after adding 1", sizes[2])
as_seen = sizes[1] == sizes[0] > 900_000 and sizes[2] == LIMIT
print("as seen: adding 0 leaves the log as it is, adding 1 cuts it" if as_seen else "CHANGED")
sys.exit(0 if as_seen else 1)
PY
