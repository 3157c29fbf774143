"""Every client in the field is understood: its request lines, as recorded, through real sockets to the vendor.

`fixtures/client_requests.jsonl` has a request a line: who sends it, what is special about it, its bytes (as latin-1), and the
request that the vendor must get. A `_t` of "receipt" stands for the time of receipt.
"""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import API_KEY, SandboxProcess, wait_for
from tests.in_thread import InThread

LINES = [json.loads(line) for line in (Path(__file__).parent / "fixtures/client_requests.jsonl").read_text("utf-8").splitlines()]
CLOSES_WITHOUT_READING = "closes without reading the reply"


def send(port: int, line: dict[str, Any]) -> bytes:
    """What came back; nothing from a client that does not wait for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(line["raw"].encode("latin-1"))
        if line["quirk"] == CLOSES_WITHOUT_READING:
            return b""
        answer = b""
        while not answer.endswith(b"\x3b"):  # the GIF's last byte
            got = connection.recv(4096)
            if not got:
                break
            answer += got
        return answer


def test_each_recorded_request_reaches_the_vendor_as_expected(inside: Callable[..., InThread], sandbox: SandboxProcess) -> None:
    proxy = inside()
    before = int(time.time())
    for line in LINES:
        answer = send(proxy.port, line)
        if line["quirk"] != CLOSES_WITHOUT_READING:
            assert answer.startswith(b"HTTP/1.1 200"), (line["client"], line["quirk"], answer)
            assert b"GIF89a" in answer
    sandbox.wait(len(LINES))
    after = int(time.time())
    got = {beacon["params"]["_p"]: beacon for beacon in sandbox.beacons()}
    assert len(got) == len(LINES)
    for line in LINES:
        expected = line["upstream"]
        beacon = got[expected["params"]["_p"]]
        params = dict(beacon["params"])
        assert params.pop("_k") == API_KEY
        if expected["params"].get("_t") == "receipt":
            assert before <= int(params["_t"]) <= after
            params["_t"] = "receipt"
        who = (line["client"], line["quirk"])
        assert (params, beacon["method"], "/" + beacon["kind"]) == (expected["params"], expected["method"], expected["path"]), who
        assert len(beacon["pairs"]) == len(beacon["params"]), f"{who}: a name twice"
    wait_for(lambda: proxy.status()["delivered"] == len(LINES), "the ledger")


@pytest.mark.parametrize("client", ["browser library", "py-KISSmetrics", "pyKISSmetrics", "npm kissmetrics", "Ruby km", "PHP"])
def test_the_table_of_clients_is_covered(client: str) -> None:
    assert any(line["client"] == client for line in LINES)
