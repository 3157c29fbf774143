"""A limit of beacons per address and minute, in bounded memory however many addresses come.

An IPv6 customer has at least a /64 (RFC 6177), so that is what counts there as one address.
"""

from proxy.collector.address import customer

WINDOW_MS = 10_000
MAX_ADDRESSES = 50_000
"""Counted in one window. Later ones are let pass: a flood of addresses is nginx's to stop, and must not cost memory here."""


class AddressLimit:
    """Fixed windows of ten seconds; an address may use the minute's share of a window at once."""

    def __init__(self, per_minute: int) -> None:
        self._per_window = max(1, per_minute * WINDOW_MS // 60_000)
        self._window = 0
        self._counts: dict[str, int] = {}

    def exceeded(self, address: str, now_ms: int) -> bool:
        """Count one more; whether it is one too many."""
        window = now_ms // WINDOW_MS
        if window != self._window:
            self._window, self._counts = window, {}
        if ":" in address:
            address = customer(address)
        counts = self._counts
        n = counts.get(address, 0) + 1
        if n > 1 or len(counts) < MAX_ADDRESSES:
            counts[address] = n
        return n > self._per_window
