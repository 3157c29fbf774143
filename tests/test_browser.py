"""A real browser on the demo's page: what it sends arrives with the key, and nothing it gets holds the key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import bare_chromium
from conftest import wait_for
from playwright.sync_api import Browser, BrowserContext, Error, Response
from test_demo import DemoProcess

from proxy.cli.demo import DEMO_KEY


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[DemoProcess]:
    demo = DemoProcess(tmp_path)
    yield demo
    demo.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with bare_chromium() as started:
        yield started


@pytest.fixture
def browser(chromium: Browser) -> Iterator[BrowserContext]:
    """With a profile of its own."""
    context = chromium.new_context()
    yield context
    context.close()


def named(shop: DemoProcess, n: int) -> list[tuple[str, str]]:
    """(kind, name) of the beacons at the vendor, once there are `n`."""
    beacons: list[dict[str, Any]] = wait_for(lambda: len(found := shop.received()) >= n and found, f"{n} beacons at the vendor")
    assert {beacon["params"].get("_k") for beacon in beacons} == {DEMO_KEY}
    return sorted((beacon["kind"], beacon["params"].get("_n", "")) for beacon in beacons)


def test_a_browsers_beacons_arrive_with_the_key_and_the_browser_never_gets_it(shop: DemoProcess, browser: BrowserContext) -> None:
    """<img>, new Image() and sendBeacon, as real pages use them; every body and header the browser got is looked at."""
    page = browser.new_page()
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{shop.url}/")
    loaded = [("e", "Viewed Product"), ("s", "")]
    assert named(shop, 2) == loaded

    for button in ("#cart", "#buy", "#login", "#leave"):
        page.click(button)
    clicked = [("e", "Added To Cart"), ("e", "Purchased"), ("a", "visitor@example.com"), ("e", "Left Page")]
    assert named(shop, 6) == sorted(loaded + clicked)
    page.wait_for_load_state("networkidle")

    seen, unread = [], []
    for answer in answers:
        told = str(answer.all_headers()) + answer.url + answer.status_text
        assert DEMO_KEY not in told
        try:
            body = answer.body()
        except Error:  # a browser keeps no body of a ping (sendBeacon); its length is known
            unread.append((answer.request.resource_type, answer.header_value("content-length")))
            continue
        assert DEMO_KEY.encode() not in body
        seen.append((answer.status, body[:6]))
    assert [body for status, body in seen if status == 200].count(b"GIF89a") >= 5
    assert {kind for kind, _ in unread} <= {"ping"}
    assert {length for _, length in unread} <= {"43"}
    assert DEMO_KEY not in page.content()
    assert browser.cookies() == []
    beacons = {beacon["params"].get("_n"): beacon for beacon in shop.received()}
    assert beacons["Purchased"]["params"]["Price"] == "24.50"
    assert beacons["Left Page"]["params"]["_p"] == "visitor@example.com"


def test_a_reloaded_page_sends_its_beacons_again(shop: DemoProcess, browser: BrowserContext) -> None:
    """No cache may keep the pixel, however the page is come back to."""
    page = browser.new_page()
    page.goto(f"{shop.url}/")
    named(shop, 2)
    page.reload()
    named(shop, 4)
    page.goto("about:blank")
    page.goto(f"{shop.url}/")
    assert named(shop, 6) == [("e", "Viewed Product")] * 3 + [("s", "")] * 3


def test_a_beacon_sent_while_the_page_goes_away_arrives(shop: DemoProcess, browser: BrowserContext) -> None:
    """sendBeacon exists for this moment."""
    page = browser.new_page()
    page.goto(f"{shop.url}/")
    named(shop, 2)
    page.evaluate("addEventListener('pagehide', () => navigator.sendBeacon('/e', '_n=Gone&_p=me'))")
    page.goto("about:blank")
    assert ("e", "Gone") in named(shop, 3)
