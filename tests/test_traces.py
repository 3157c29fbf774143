"""Traces: told to a real OTLP receiver over HTTP, and read from the bytes that arrive there."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, free_port, wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proxy.cli.main import app
from proxy.collector.collect import Collector
from proxy.collector.config import CollectorConfig
from proxy.hit import Hit
from proxy.spool.port import SpoolConfig

Serve = Callable[..., ProxyProcess]
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


class Receiver:
    """Keeps every span, and every byte."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.bytes = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.bytes += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Where the standard variables point."""
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_a_beacon_is_one_tree_from_its_request_to_its_delivery(serve: Serve, receiver: Receiver) -> None:
    """Through an outage and a restart: the ids are the beacon's own."""
    port = free_port()
    away = serve(trace_ratio="1", upstream=f"http://127.0.0.1:{port}")
    secrets = {"_p": "visitor-17", "Plan": "Gold-Plated", "_n": "Bought"}
    assert httpx.get(f"{away.url}/e", params=secrets, headers={"traceparent": PARENT}).status_code == 200
    wait_for(lambda: receiver.named("attempt"), "an attempt that fails")
    assert away.stop() == 0
    vendor = SandboxProcess(port)
    try:
        back = serve(trace_ratio="1", upstream=vendor.url)
        vendor.wait(1)
        [root] = wait_for(lambda: receiver.named("beacon"), "the whole beacon")
        assert back.stop() == 0
    finally:
        vendor.stop()
    attempts, [spooled] = receiver.named("attempt"), receiver.named("spooled")
    assert root.trace_id.hex() == spooled.trace_id.hex() == PARENT.split("-")[1]
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    assert {span.parent_span_id for span in [spooled, *attempts]} == {root.span_id}
    assert len(attempts) >= 2
    told = [{one.key: one.value for one in span.attributes} for span in attempts]
    assert told[0]["error.type"].string_value == "ConnectError"
    assert told[-1]["http.response.status_code"].int_value == 200
    assert root.start_time_unix_nano <= spooled.end_time_unix_nano <= root.end_time_unix_nano
    for secret in (*secrets.values(), API_KEY, "127.0.0.1\n"):
        assert secret.encode() not in receiver.bytes


def test_only_a_share_is_told_whatever_requests_ask_for(serve: Serve, sandbox: SandboxProcess, receiver: Receiver) -> None:
    """The sampled flag of a stranger does not count; the trace's id decides, so that all parts of a tree agree."""
    proxy = serve(trace_ratio="0.5")
    for n in range(40):
        trace = f"00-{'1' * 16}{'0' if n % 2 else 'f'}{'2' * 15}-{n + 1:016x}-01"
        assert httpx.get(f"{proxy.url}/e?_n={n}&_p=me", headers={"traceparent": trace}).status_code == 200
    sandbox.wait(40)
    wait_for(lambda: len(receiver.named("beacon")) == 20, "half of them")
    assert proxy.stop() == 0
    assert {span.parent_span_id[-1] % 2 for span in receiver.named("beacon")} == {0}


def test_without_the_setting_nothing_is_kept_or_told(serve: Serve, sandbox: SandboxProcess, receiver: Receiver) -> None:
    """Off is off: no field in the spool, no library in the process."""
    collector = Collector(CollectorConfig(SpoolConfig("memory:")))
    found = collector.collect("e", b"_n=a&_p=b", b"", {b"traceparent": PARENT.encode()}, "192.0.2.1", 1_700_000_000_000).found
    assert isinstance(found, Hit)
    assert found.trace == ""
    proxy = serve()
    httpx.get(f"{proxy.url}/e?_n=a&_p=b", headers={"traceparent": PARENT})
    sandbox.wait(1)
    assert proxy.stop() == 0
    assert receiver.bytes == b""


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-xyz",
        PARENT + "0",
        PARENT.upper(),
        "01" + PARENT[2:],
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent_is_not_kept(header: str) -> None:
    """W3C Trace Context, section 3.2; ids of zeros are invalid."""
    collector = Collector(CollectorConfig(SpoolConfig("memory:"), traces=True))
    headers = {b"traceparent": header.encode()}
    found = collector.collect("e", b"_n=a&_p=b", b"", headers, "192.0.2.1", 1_700_000_000_000).found
    assert isinstance(found, Hit)
    assert found.trace == ""


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    import sys

    from typer.testing import CliRunner

    from proxy.forward.config import CannotTrace

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    environment = {"BEACON_PROXY_API_KEY": "k", "BEACON_PROXY_TRACE_RATIO": "0.1"}
    failed = CliRunner().invoke(app, ["check"], env=environment).exception
    assert isinstance(failed, CannotTrace)
    assert "beacon-proxy[traces]" in str(failed)
    assert "trace_ratio: found 0.1" in str(failed)
