"""`dead list|replay|discard`, as an operator uses them while everything runs."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import ProxyProcess, clean_environment, wait_for
from test_spool_faults import dead_spool

from proxy.admin.summary import render
from tests.chaos.laboratory import Upstream

Serve = Callable[..., ProxyProcess]


def dead(proxy: ProxyProcess, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "dead", *arguments],
        env=proxy.environment,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def faulty() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture
def proxy(serve: Serve, faulty: Upstream) -> ProxyProcess:
    """Running, with five dead letters."""
    faulty.ask("fault 404")
    running = serve(upstream=faulty.url)
    for n in range(5):
        assert httpx.get(f"{running.url}/e?_n=lost{n}&_p=me").status_code == 200
    wait_for(lambda: running.status()["dead"] == 5, "the dead letters")
    return running


def test_list_shows_reason_answer_and_what_it_was(proxy: ProxyProcess) -> None:
    """For eyes a table, for scripts an object a line."""
    table = dead(proxy, "list")
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.count("rejected") == 5
    assert "/e lost3" in table.stdout
    limited = dead(proxy, "list", "--limit", "2")
    assert "2 of 5" in limited.stdout
    letters = [json.loads(line) for line in dead(proxy, "list", "--json").stdout.splitlines()]
    assert {(letter["reason"], letter["answer"], letter["attempts"], letter["site"]) for letter in letters} == {
        ("rejected", "404", 1, "default")
    }
    assert dead(proxy, "list", "--older", "1h").stdout == "No dead letters match.\n"
    assert dead(proxy, "list", "--newer", "1h", "--site", "default", "--reason", "rejected").stdout.count("lost") == 5


def test_replay_while_serving_delivers_each_once_however_often_it_is_said(proxy: ProxyProcess, faulty: Upstream) -> None:
    """The mistake is mended, the letters go out; the vendor gets each once."""
    faulty.ask("fault ok")
    first = dead(proxy, "replay", "--json")
    assert (first.returncode, json.loads(first.stdout)) == (0, {"replayed": 5})
    assert dead(proxy, "replay").stdout == "0 dead letters are pending again.\n"
    status = wait_for(lambda: (found := proxy.status())["delivered"] == 5 and found, "the letters' delivery")
    assert (status["received"], status["dead"], status["pending"]) == (5, 0, 0)
    report = faulty.ask("report")
    assert (report["acknowledged"], report["copies"], report["differing"]) == (5, 0, 0)


def test_discard_asks_first_and_the_ledger_says_where_they_went(proxy: ProxyProcess) -> None:
    """What is thrown away is gone: the question comes before, and "no" is the default."""
    refused = dead(proxy, "discard", said="\n")
    assert refused.returncode == 1
    assert "5" in refused.stderr
    assert proxy.status()["dead"] == 5
    done = dead(proxy, "discard", "--yes")
    assert (done.returncode, done.stdout) == (0, "5 dead letters were thrown away.\n")
    status = proxy.status()
    assert (status["received"], status["dead"], status["pending"], status["dropped"]) == (5, 0, 0, {"discarded": 5})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list", "--reason", "tired"], "rejected"),
        (["replay", "--older", "yesterday"], "7d"),
        (["replay", "17"], "lane-0000:17"),
        (["discard", "--newer", "-5m"], "7d"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(running: Serve, arguments: list[str], expected: str) -> None:
    """Exit status 2, no traceback, and nothing happens."""
    done = dead(running(), *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_dead_is_said_in_words(running: Serve) -> None:
    """Also with no spool at all."""
    assert dead(running(), "list").stdout == "No dead letters.\n"


def test_a_look_at_a_spool_that_is_not_there_says_so(tmp_path: Path) -> None:
    """Else whoever stands in the wrong directory believes that nothing is dead."""
    environment = {**os.environ, "BEACON_PROXY_SPOOL": f"sqlite:{tmp_path}/elsewhere"}
    for command in (["dead", "list", "--json"], ["status", "--json"]):
        seen = subprocess.run(
            [sys.executable, "-m", "proxy", *command], env=environment, capture_output=True, text=True, timeout=60
        )
        assert (seen.returncode, "there is no spool yet" in seen.stderr, f"{tmp_path}/elsewhere" in seen.stderr) == (
            0,
            True,
            True,
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else: run as root")
@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["dead", "list"], ["dead", "replay"]])
def test_a_spool_that_is_not_theirs_does_not_look_empty_to_a_user(command: list[str]) -> None:
    """Zeros and status 0 would say that all is well. Everything in it is its owner's alone."""
    with tempfile.TemporaryDirectory() as place:  # of mode 0700, where anybody may come as far as its door
        lane, outlet = dead_spool(Path(place))
        outlet.close()
        lane.close()
        assert all(path.stat().st_mode & 0o077 == 0 for path in Path(place).glob("lane-*"))
        # The libraries may lie where a stranger may not look either: so it becomes one after it has loaded them.
        code = "import os, sys, rich.table; from proxy.cli import main; from proxy.admin import summary; "
        code += "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main.main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            env=clean_environment(BEACON_PROXY_SPOOL=f"sqlite:{place}"),
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "run it as the user that runs beacon-proxy (root)" in done.stderr


def test_an_upstream_that_refuses_every_beacon_is_told_as_such(serve: Callable[..., ProxyProcess]) -> None:
    """A withdrawn key: the upstream works, and nothing is delivered. Who looks must see it, and the log has one line."""
    upstream = Upstream()
    try:
        upstream.ask("fault 404")
        proxy = serve(upstream=upstream.url, log_format="json")
        for n in range(20):
            assert httpx.get(f"{proxy.url}/e?_n=n{n}&_p=p").status_code == 200
        told = wait_for(lambda: next((of for of in proxy.status()["upstreams"].values() if of["refusal"]), None), "the report")
        assert (told["state"], told["refusal"]) == ("closed", "404")
        assert "refuses every beacon (404)" in render(proxy.status())
        upstream.ask("fault ok")
        assert httpx.get(f"{proxy.url}/e?_n=good&_p=p").status_code == 200
        wait_for(lambda: not any(of["refusal"] for of in proxy.status()["upstreams"].values()), "the next report")
        assert proxy.log.read_text().count("upstream refuses every beacon") == 1
        assert proxy.log.read_text().count("upstream refuses no more") == 1
    finally:
        upstream.stop()
