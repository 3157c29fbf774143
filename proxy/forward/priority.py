"""Who gets the processor first: the visitor. A forwarder that drains a backlog runs when nobody else wants to.

The thread that writes to the spool keeps its priority, since a collector may be waiting for the lock it holds; whoever starts
it does so before the other threads step back. See docs/decisions/0009-who-waits-for-whom.md.
"""

import os


def step_back() -> None:
    """Run this thread, and those it starts from now on, only on processor time that nobody else wants (SCHED_IDLE).

    Linux alone has it; elsewhere, or where a sandbox forbids it, all stays as it is.
    """
    if hasattr(os, "SCHED_IDLE"):
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError:
            pass
