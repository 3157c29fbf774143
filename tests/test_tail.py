"""`tail`, as an operator sees it: what goes by, while it goes by."""

import json
import os
import pty
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import DEADLINE_S, ProxyProcess, clean_environment, wait_for
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.tail import Masks, Wanted, harmless
from proxy.spool.port import Tapped
from tests.chaos.laboratory import Upstream

Serve = Callable[..., ProxyProcess]


class Tail:
    """`beacon-proxy tail` in a process of its own; its lines as they come."""

    def __init__(self, proxy: ProxyProcess, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "tail", *arguments],
            env=proxy.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: queue.Queue[str] = queue.Queue()
        self.err: queue.Queue[str] = queue.Queue()
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=lambda stream=stream, lines=lines: [lines.put(line) for line in stream], daemon=True).start()
        assert "watching" in self.err.get(timeout=DEADLINE_S)

    def line(self) -> str:
        return self.out.get(timeout=DEADLINE_S)

    def ended(self) -> int:
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def tail() -> Iterator[Callable[..., Tail]]:
    started: list[Tail] = []

    def start(proxy: ProxyProcess, *arguments: str) -> Tail:
        """Ready: something that everybody is told has been seen."""
        started.append(Tail(proxy, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def sent_until(tail: Tail, send: Callable[[], Any], wanted: str = "") -> str:
    """The first line with `wanted`; who tells looks for watchers once a second, so beacons are sent until one is seen."""

    def seen() -> str:
        send()
        try:
            while wanted not in (line := tail.out.get(timeout=0.2)):
                pass
        except queue.Empty:
            return ""
        return line

    return str(wait_for(seen, "a line"))


def test_a_delivered_beacon_is_shown_masked_and_with_values_when_asked(running: Serve, tail: Callable[..., Tail]) -> None:
    """What is on a terminal ends up in tickets: persons and values are shown to whoever asks only."""
    proxy = running()
    masked, open_ = tail(proxy, "--json"), tail(proxy, "--json", "--values")
    url = f"{proxy.url}/e?_n=Viewed&_p=jane@shop.example&Plan=Pro"
    plain, hidden = (json.loads(sent_until(one, lambda: httpx.get(url))) for one in (open_, masked))
    assert (plain["person"], plain["properties"]["Plan"], plain["name"]) == ("jane@shop.example", "Pro", "Viewed")
    assert (hidden["outcome"], hidden["kind"], hidden["name"], hidden["answer"], hidden["attempt"], hidden["site"]) == (
        "delivered",
        "e",
        "Viewed",
        "200",
        1,
        "default",
    )
    assert hidden["properties"]["Plan"] == "…"
    assert hidden["person"].startswith("visitor-")
    assert json.loads(sent_until(masked, lambda: httpx.get(url)))["person"] == hidden["person"]


def test_failing_shows_what_was_not_delivered(serve: Serve, tail: Callable[..., Tail]) -> None:
    """Retries with the answer, dead letters, and what is dropped at the door."""
    upstream = Upstream()
    try:
        proxy = serve(upstream=upstream.url, honour_dnt="true")
        failing, dropped, retries = (
            tail(proxy, "--failing", "--json"),
            tail(proxy, "--outcome", "dnt"),
            tail(proxy, "--outcome", "retry"),
        )
        sent_until(dropped, lambda: httpx.get(f"{proxy.url}/e?_n=Fine&_p=me", headers={"dnt": "1"}), "dnt")
        upstream.ask("fault 404")
        rejected = json.loads(sent_until(failing, lambda: httpx.get(f"{proxy.url}/e?_n=Bad&_p=me"), "rejected"))
        assert (rejected["answer"], rejected["name"]) == ("404", "Bad")
        upstream.ask("fault 503")
        line = sent_until(retries, lambda: httpx.get(f"{proxy.url}/e?_n=Again&_p=me"), "/e Again")
        assert "503" in line
    finally:
        upstream.stop()


def test_it_ends_by_number_by_time_and_by_ctrl_c_with_status_0(running: Serve, tail: Callable[..., Tail]) -> None:
    """Scripts count on it."""
    proxy = running()
    counted, timed, followed = tail(proxy, "-n", "2"), tail(proxy, "--for", "1"), tail(proxy)
    sent_until(counted, lambda: httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me"))
    for _ in range(2):
        httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me")
    followed.process.send_signal(signal.SIGINT)
    assert [one.ended() for one in (counted, timed, followed)] == [0, 0, 0]
    assert counted.line().count("delivered") == 1


def test_a_reader_that_goes_away_is_a_good_end(running: Serve) -> None:
    """`beacon-proxy tail | head -1`."""
    proxy = running()
    process = subprocess.Popen(
        f"{sys.executable} -m proxy tail | head -1",
        shell=True,
        env=proxy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def ended() -> bool:
        httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me")
        return process.poll() is not None

    wait_for(ended, "its end")
    out, err = process.communicate()
    assert b"/e Viewed" in out
    assert b"Traceback" not in err
    assert b"Error" not in err


def test_when_nothing_comes_it_says_what_it_waits_for(
    serve: Serve, running: Serve, tail: Callable[..., Tail], tmp_path: Path
) -> None:
    """Silence has several reasons: nothing happens, nothing matches, or nobody delivers."""
    proxy, stopped = running(), serve(spool=tmp_path / "other")
    stopped.stop()
    waiting, alone = tail(proxy, "--name", "never*", "--kind", "e"), tail(stopped)
    wait_for(lambda: httpx.get(f"{proxy.url}/e?_n=Viewed&_p=me") and not waiting.err.empty(), "a word")
    said = waiting.err.get()
    assert "still waiting for beacons of /e, named never*" in said
    assert "others went by" in said
    assert "no forwarder is running" in alone.err.get(timeout=DEADLINE_S)


def test_a_mistake_is_told_in_plain_words(tmp_path: Path) -> None:
    """Status 2, no traceback."""
    environment = clean_environment(BEACON_PROXY_SPOOL=f"sqlite:{tmp_path / 'none'}")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proxy", "tail", *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    none = run()
    assert (none.returncode, "start `beacon-proxy serve` first" in none.stderr) == (2, True)
    assert not (tmp_path / "none").exists()
    wrong = run("--outcome", "lost")
    assert wrong.returncode == 2
    assert "no_person" in wrong.stderr
    assert run("--kind", "x").returncode == 2
    assert "Example: beacon-proxy tail" in run("--help").stdout


def test_hostile_text_reaches_no_terminal(running: Serve) -> None:
    """An event's name may clear a screen, set a title or write backwards; on a real terminal, with colours."""
    proxy = running()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "tail", "--values", "-n", "1"],
        env={**proxy.environment, "TERM": "xterm-256color"},
        stdout=slave,
        stderr=subprocess.DEVNULL,
    )
    os.close(slave)

    def ended() -> bool:
        httpx.get(f"{proxy.url}/e?_n=A%1b%5b2J%07%0d%0aB%e2%80%ae%9b1m&_p=me&%1b]0;x%07=%1b%5b31m[bold]")
        return process.poll() is not None

    wait_for(ended, "its end")
    shown = os.read(master, 65_536).decode()
    os.close(master)
    assert "\x1b[32m" in shown  # its own colour
    assert "[bold]" in shown
    for evil in ("\x1b[2J", "\x07", "\x1b]", "\x1b[31m", "‮", "\x9b", "\nB"):
        assert evil not in shown


@given(st.text())
def test_what_is_shown_is_printable_and_short(text: str) -> None:
    """Whatever it was."""
    assert harmless(text).isprintable()
    assert len(harmless(text)) <= 401


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(min_size=2)))
def test_a_masked_beacon_holds_no_person_and_no_value(person: str, name: str, properties: dict[str, str]) -> None:
    """An alias' name is a person as well."""
    masked = Masks().masked(Tapped(1, "default", "delivered", "a", name, person, properties))
    assert {masked.person, masked.name} & ({person, name} - {""}) == set()
    assert set(masked.properties.values()) <= {"…"}


def test_filters_are_and_between_and_or_within() -> None:
    """--site and --kind restrict both; two sites admit either. Names ignore case and are an event's only."""
    event = Tapped(1, "shop", "delivered", "e", "Viewed Product", "me")
    alias = Tapped(1, "shop", "retry", "a", "viewed@shop.example", "me")
    assert Wanted(sites=("shop", "blog"), kinds=("e",), name="viewed*").admits(event)
    assert not Wanted(sites=("blog",)).admits(event)
    assert not Wanted(name="viewed*").admits(alias)
    assert not Wanted(failing=True).admits(event)
    assert Wanted(failing=True, outcomes=("retry",)).admits(alias)
