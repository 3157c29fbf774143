"""What a forwarder holds of an upstream, over whole deliveries: how much is in flight, and whom it refuses."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import wait_for
from test_spool import hit

from proxy.delivery import Answer
from proxy.forward.config import ForwarderConfig, Site
from proxy.forward.forwarder import Attempted, Forwarder
from proxy.forward.route import REFUSES_AFTER, Route
from proxy.spool.memory import MemorySpool
from proxy.spool.port import SpoolConfig


class Vendor:
    """Answers 200, but 404 to the keys in `refused`."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = parse_qs(urlsplit(self.path).query)["_k"][0]
                self.send_response(404 if key in vendor.refused else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    started = Vendor()
    yield started
    started.stop()


async def deliver(
    vendor: Vendor, spool: MemorySpool, until: Callable[[Route], bool], observe: Callable[[Attempted], None] | None = None
) -> Route:
    """Run a forwarder for two sites on that upstream until something is so of its route."""
    sites = {"one": Site(vendor.url, "key-one"), "two": Site(vendor.url, "key-two")}
    forwarder = Forwarder(ForwarderConfig(SpoolConfig("memory:"), sites, engine="httpx"), spool, observe)
    [route] = forwarder._routes
    running = asyncio.create_task(forwarder.run())
    await asyncio.to_thread(wait_for, lambda: until(route), "what was waited for")
    forwarder.stop()
    await running
    return route


def test_what_goes_wrong_after_an_answer_takes_no_request_back_twice(vendor: Vendor) -> None:
    """Else more would be in flight than the ceiling allows, by one for each time."""
    spool = MemorySpool()
    spool.append_blocking(*(hit(str(n), site="one") for n in range(5)))

    def fail(_: Attempted) -> None:
        raise RuntimeError("an observer that fails")

    route = asyncio.run(deliver(vendor, spool, lambda _: not spool.ledger().pending, fail))
    assert route.pace.in_flight == 0


def test_a_site_whose_key_was_withdrawn_is_reported_though_another_is_delivered(vendor: Vendor) -> None:
    """Each site has a key of its own; that another's is good does not make this one's beacons arrive."""
    vendor.refused.add("key-two")
    spool = MemorySpool()
    for n in range(2 * REFUSES_AFTER):
        spool.append_blocking(hit(f"good {n}", site="one"), hit(f"bad {n}", site="two"))
    route = asyncio.run(deliver(vendor, spool, lambda route: not spool.ledger().pending and route.delivered > 0))
    assert route.refusal == "404 for two"
    route.attempted("one", delivered := Answer(200), 1.0)
    assert route.refusal == "404 for two"
    route.attempted("two", delivered, 1.0)
    assert route.refusal == ""
