"""A whole cluster on this machine, in processes of its own: brokers, collectors, forwarders, nginx. For `demo --cluster`, and
for the laboratory in tests/cluster, which breaks it on purpose.
"""


class Missing(Exception):
    """A program is not on this machine. The message says what to install."""
