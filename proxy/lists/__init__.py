"""Filter lists, and names that pass them: which of a configuration's addresses a list blocks, by which rule, and what to call
the guilty part instead.

`words.py`, `naming.py`  names drawn by lot; need nothing installed
`addresses.py`           the addresses that browsers will ask for under a configuration
`seen.py`                the parameters that pages really send, from the spool
`sources.py`, `fetch.py` the official lists, and the copies of them in the user's cache
`files.py`               lists from files
`engine.py`              one list in the engine (extra `lists`)
`trial.py`               every address against every list; replacements for what is blocked
"""
