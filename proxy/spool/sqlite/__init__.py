"""The embedded spool: a directory of SQLite files, one "lane" per collector process, read by one forwarder.

A lane is held by a lock on a file beside it, so writers never wait for each other; the lock goes with the process, and the next
collector adopts the lane. The forwarder reads every lane, whoever holds it. Rows live in three tables: `fresh` (append-only, so
ids are the order of receipt), `waiting` (to be tried again) and `dead`. Counts change in the transaction of their rows.
"""
