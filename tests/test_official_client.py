"""The vendor's own Python client, from PyPI, in an environment of its own (it pins an old urllib3), speaks through the proxy."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import API_KEY, ProxyProcess, SandboxProcess

CLIENT = "py-KISSmetrics==1.1.0"
PLACE = (
    Path(tempfile.gettempdir()) / f"beacon-proxy-official-client-{os.getuid()}-py{sys.version_info.major}{sys.version_info.minor}"
)

SCRIPT = """
import sys
from KISSmetrics import Client
client = Client(key="CLIENT-KEY", trk_host=sys.argv[1], trk_scheme="http")
client.record("ada@shop.example", "Signed Up", {"Plan": "Gold & more", "Seats": 3})
client.record("ada@shop.example", "Imported", timestamp=1381849312)
client.set("ada@shop.example", {"Colour": "dark blue"})
client.alias("ada@shop.example", "anonymous+1=")
"""


@pytest.fixture(scope="session")
def client_python() -> str:
    """The interpreter of an environment with the client; made once, whatever the number of test processes."""
    PLACE.mkdir(exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = PLACE / "ready"
        if not ready.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(PLACE / "venv")], check=True)
            install = [str(PLACE / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", CLIENT]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode:
                message = f"{CLIENT} could not be installed (a package index must be reachable): {done.stderr.strip()[-300:]}"
                if os.environ.get("CI") == "true":
                    pytest.fail(message)
                pytest.skip(message)
            ready.touch()
    return str(PLACE / "venv/bin/python")


def test_the_official_python_client_records_sets_and_aliases(
    client_python: str, serve: Callable[..., ProxyProcess], sandbox: SandboxProcess
) -> None:
    proxy = serve()
    done = subprocess.run([client_python, "-c", SCRIPT, f"127.0.0.1:{proxy.port}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    beacons = sandbox.wait(4)
    assert len(beacons) == 4
    assert "CLIENT-KEY" not in str(beacons)
    assert {beacon["params"]["_k"] for beacon in beacons} == {API_KEY}
    by_name = {(beacon["kind"], beacon["params"].get("_n")): beacon["params"] for beacon in beacons}
    signed_up = by_name["e", "Signed Up"]
    assert (signed_up["_p"], signed_up["Plan"], signed_up["Seats"]) == ("ada@shop.example", "Gold & more", "3")
    assert (by_name["e", "Imported"]["_t"], by_name["e", "Imported"]["_d"]) == ("1381849312", "1")
    assert by_name["s", None]["Colour"] == "dark blue"
    assert by_name["a", "anonymous+1="] == {"_p": "ada@shop.example", "_n": "anonymous+1=", "_k": API_KEY}
