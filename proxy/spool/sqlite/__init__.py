"""The embedded spool: a directory of SQLite files, one "lane" per collector process, read by one forwarder.

A lane is held by a lock on a file beside it, so writers never wait for each other; the lock goes with the process, and the next
collector adopts the lane. The forwarder reads every lane, whoever holds it. Rows live in three tables: `fresh` (append-only, so
ids are the order of receipt), `waiting` (to be tried again) and `dead`. Counts change in the transaction of their rows.

    a beacon      lane.py: look at the room (disk.py) → INSERT and counts in one commit → 200
    its delivery  outlet.py → reader.py: claim → … → settle: one statement deletes the rows and counts them
    the log       SQLite's write-ahead log takes every commit; a checkpoint brings it into the file, by the forwarder at half the
                  size at which a collector would have to. A reader that stays (holders.py) keeps it from being written anew
    a full disk   collectors refuse before it is; settlements use room that is kept for them (disk.py): the log's own blocks, room
                  in the file, the reserve
    who is who    a lane is the open file, not its name; its number admits one that empties it on a machine (file.guard)

Only database.py knows the library. Errors of it stay in this room: who is outside sees SpoolError and SpoolRefused.
"""
