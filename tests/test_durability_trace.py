"""Power loss cannot be had in a test; the order of system calls can: fsync of the commit first, the GIF after it."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import children, clean_environment, free_port, kill_tree, listening, need, wait_for

CALLS = "fsync,fdatasync,rename,renameat,renameat2,write,writev,sendto,sendmsg"
GIF_SENT = re.compile(r"\b(write|writev|sendto|sendmsg)\(.*HTTP/1\.1 200")
SYNCED = re.compile(r"\b(fsync|fdatasync)(\(| resumed>).* = 0$")


@pytest.fixture
def traced(tmp_path: Path) -> Callable[[int], list[str]]:
    """Serves that many beacons one after the other under strace; the trace's lines."""

    def trace(n: int) -> list[str]:
        port, out = free_port(), tmp_path / "trace"
        environment = clean_environment(
            BEACON_PROXY_API_KEY="k",
            BEACON_PROXY_UPSTREAM="http://127.0.0.1:9",
            BEACON_PROXY_SPOOL=f"sqlite:{tmp_path / 'spool'}",
            BEACON_PROXY_PORT=str(port),
            BEACON_PROXY_ADMIN_PORT="0",
        )
        strace = [need("strace", "strace"), "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", "-o", str(out)]
        process = subprocess.Popen(
            [*strace, sys.executable, "-m", "proxy", "serve"], env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            wait_for(lambda: process.poll() is not None or listening(port), "the traced proxy")
            if process.poll() is not None:
                pytest.skip(f"strace may not trace here: {process.stderr.read().decode()[-200:]}")  # type: ignore[union-attr]
            with httpx.Client(timeout=30) as client:
                for i in range(n):
                    assert client.get(f"http://127.0.0.1:{port}/e?_n={i}&_p=me").status_code == 200
            for pid in children(process.pid):
                subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
            process.wait(30)
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()
        return out.read_text("utf-8", "replace").splitlines()

    return trace


def test_each_gif_is_written_after_the_fsync_of_its_commit_and_a_new_lanes_name_is_synced(
    traced: Callable[[int], list[str]],
) -> None:
    """With durability = disk: a power cut after the GIF takes neither the beacon nor the file's name."""
    lines = traced(12)
    answers = [i for i, line in enumerate(lines) if GIF_SENT.search(line)]
    assert len(answers) >= 12
    collector = lines[answers[0]].split()[0]
    named = next(i for i, line in enumerate(lines) if "rename" in line and "lane-0000.db" in line)
    directory_synced = next(i for i, line in enumerate(lines) if i > named and "fsync(" in line and re.search(r"/spool>", line))
    assert named < directory_synced < answers[0]
    before = 0
    for answer in answers:
        between = lines[before:answer]
        synced = [line for line in between if SYNCED.search(line) and ("lane-0000.db-wal" in line or "resumed" in line)]
        assert synced, f"no sync before the answer of {collector}: {between}"
        before = answer
