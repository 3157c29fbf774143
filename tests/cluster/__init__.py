"""The laboratory of the cluster: `make chaos-cluster`, or one experiment of it: `python -m tests.cluster --help`.

Three real nats-servers, collectors and forwarders as processes of their own, the counting upstream and the driver of tests/chaos.
"""
