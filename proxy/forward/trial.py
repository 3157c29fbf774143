"""A trial: can a forwarder be had as configured? Asked before anything is started or replaced."""

from proxy.enrich import load
from proxy.forward.config import ForwarderConfig
from proxy.forward.traces import Traces


def try_out(config: ForwarderConfig) -> None:
    """Load what a forwarder would load. Raises EnricherError or CannotTrace if it cannot be had."""
    load(config.enrich)
    if config.trace_ratio:
        Traces(config.trace_ratio).close()
