"""The fault laboratory: `make chaos`, or one experiment of it: `python -m tests.chaos --help`.

Real processes and real sockets: an upstream with switchable faults, a driver that records every answered 200, and a killer.
"""
