"""The script in two real browsers, on a real site: what a visitor does arrives at the vendor, once, and as that visitor's.

After each test the pages go away, which sends what was still held back; then the vendor must have counted what the test waited
for and no more, nothing twice, and no page may have seen an error.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import Browser, Page, chromium, firefox, until
from conftest import wait_for
from tracked_site import ADDRESS, PREFIX, SNIPPET, TrackedSite

from proxy.admin.summary import read

ME = "ann@example.com"
NOTHING: list[str] = []
PARAMETERS = [pytest.param(each, id=each.__name__) for each in (chromium, firefox)]
QUICKER = "<script>{ const slow = setInterval; setInterval = (f, ms, ...more) => slow(f, ms / 100, ...more) }</script>"
"""A page on which half a minute is 0.3 s."""
PATIENT = "<script>{ const any = setTimeout; setTimeout = (f, ms, ...more) => ms > 2000 ? 0 : any(f, ms, ...more) }</script>"
"""A page that does nothing only because time has passed."""

Said = list[tuple[str, str, str]]


@pytest.fixture(scope="module", params=PARAMETERS)
def running(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with request.param() as browser:
        yield browser


@pytest.fixture
def rules() -> dict[str, Any]:
    """The script's; a test that needs others says so by a parameter."""
    return {}


@pytest.fixture
def site(tmp_path: Path, rules: dict[str, Any]) -> Iterator[TrackedSite]:
    site = TrackedSite(tmp_path, **rules)
    site.page("/next", "Thank you.", head="")
    yield site
    site.stop()


@pytest.fixture
def browser(running: Browser, site: TrackedSite) -> Iterator[Browser]:
    yield running
    try:
        site.mend_line()
        running.offline(False)
        errors = running.errors()
        for page in running.pages():
            page.open(f"{site.url}/next")
    finally:
        running.fresh()
    assert errors == NOTHING
    assert site.settled()[site.expected :] == []
    assert site.vendor.counts["without_key"] == 0
    if not site.resends:
        assert site.vendor.counts["duplicates"] == 0


def with_rules(**rules: Any) -> Callable[..., Any]:
    return pytest.mark.parametrize("rules", [pytest.param(rules, id="")])


def said(beacons: list[dict[str, str]]) -> Said:
    """(kind, name, person) of each."""
    return sorted((one["kind"], one.get("_n", ""), one["_p"]) for one in beacons)


def push(page: Page, *calls: str) -> None:
    page.run("".join(f"_kmq.push({call});" for call in calls))


def anonymous(browser: Browser) -> str:
    return browser.cookies()["km_ai"]


def test_calls_queued_before_the_script_arrive_in_one_request(site: TrackedSite, browser: Browser) -> None:
    """The four calls as pages have them in their head; a request for each would be what ours is meant to spare."""
    page = browser.page()
    page.open(
        site.page(
            "/",
            calls="_kmq.push(['record', 'Viewed Teapot', {Price: 24.5, Colour: 'grün'}]); _kmq.push(['set', {Plan: 'Guest'}]);"
            f"_kmq.push(['identify', '{ME}']); _kmq.push(['alias', '{ME}', 'customer-7']);",
        )
    )
    beacons = site.wait(4)
    visitor = anonymous(browser)
    assert said(beacons) == sorted(
        [("e", "Viewed Teapot", visitor), ("s", "", visitor), ("a", ME, visitor), ("a", "customer-7", ME)]
    )
    viewed = next(one for one in beacons if one["kind"] == "e")
    assert (viewed["Price"], viewed["Colour"], viewed["URL"]) == ("24.5", "grün", f"{site.url}/")
    assert [(asked.method, asked.path) for asked in site.sent()] == [("POST", f"{PREFIX}/b")]
    assert browser.cookies()["km_ni"] == "ann%40example.com"


def test_the_next_page_knows_the_visitor_of_the_one_before(site: TrackedSite, browser: Browser) -> None:
    """One person, not one for each page; and who is identified again is not aliased again."""
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'First']);"))
    site.wait(1)
    visitor = anonymous(browser)
    page.open(site.page("/2", calls=f"_kmq.push(['identify', '{ME}']); _kmq.push(['record', 'Second']);"))
    site.wait(3)
    page.open(site.page("/3", calls=f"_kmq.push(['identify', '{ME}']); _kmq.push(['record', 'Third']);"))
    assert said(site.wait(4)) == [("a", ME, visitor), ("e", "First", visitor), ("e", "Second", ME), ("e", "Third", ME)]
    assert anonymous(browser) == visitor


def test_callbacks_run_once(site: TrackedSite, browser: Browser) -> None:
    """Pages navigate in them. A function that is pushed is called as well."""
    page = browser.page()
    page.open(
        site.page(
            "/",
            calls="var ran = []; _kmq.push(['record', 'A', {}, () => ran.push('A')]);"
            "_kmq.push(['set', {B: 1}, () => ran.push('B')]); _kmq.push(() => ran.push(KM.i()))",
        )
    )
    site.wait(2)
    until(page, "ran.length == 3")
    push(page, "['record', 'C', {}, () => ran.push('C')]")
    site.wait(3)
    until(page, "ran.length == 4")
    assert sorted(page.run("return ran")) == sorted(["A", "B", "C", anonymous(browser)])


def test_a_click_that_leads_away_is_counted(site: TrackedSite, browser: Browser) -> None:
    """The page is gone before an answer can come; nothing is delayed for it."""
    page = browser.page()
    page.open(
        site.page(
            "/", "<a id=go href=/next><b>Buy</b></a>", calls="_kmq.push(['trackClick', '#go', 'Clicked Buy', {Place: 'top'}]);"
        )
    )
    until(page, "window.KM")
    page.click("#go b")
    until(page, "location.pathname == '/next'")
    (clicked,) = site.wait(1)
    assert said([clicked]) == [("e", "Clicked Buy", anonymous(browser))]
    assert (clicked["Place"], clicked["URL"]) == ("top", f"{site.url}/")


def test_a_form_that_is_sent_is_counted(site: TrackedSite, browser: Browser) -> None:
    """trackSubmit by id without "#", as old pages have it; the form has a field whose name is that of a method."""
    page = browser.page()
    page.open(
        site.page(
            "/",
            "<form id=order action=/next method=get><input name=closest value=1><button id=send>Send</button></form>",
            calls="_kmq.push(['trackSubmit', 'order', 'Ordered']);",
        )
    )
    until(page, "window.KM")
    page.click("#send")
    until(page, "location.pathname == '/next'")
    assert said(site.wait(1)) == [("e", "Ordered", anonymous(browser))]


def test_a_click_to_another_site_is_counted(site: TrackedSite, browser: Browser) -> None:
    """The other page is there before our server has heard of the click: a request that ended with its page would be lost."""
    page = browser.page()
    page.open(
        site.page(
            "/",
            f"<a id=out href={site.other_url}/next>Elsewhere</a>",
            calls="_kmq.push(['trackClickOnOutboundLink', '#out', 'Left']);",
        )
    )
    until(page, "window.KM")
    site.hold_back()
    page.click("#out")
    until(page, "location.hostname == 'localhost'")
    site.mend_line()
    assert said(site.wait(1)) == [("e", "Left", anonymous(browser))]


def test_a_record_just_before_the_tab_is_closed_is_counted(site: TrackedSite, browser: Browser) -> None:
    """Nothing follows that could send it later."""
    other = browser.page()  # so that the window stays
    page = browser.page()
    page.open(site.page("/"))
    until(page, "window.KM")
    push(page, "['record', 'Last']")
    page.close()
    assert said(site.wait(1)) == [("e", "Last", anonymous(browser))]
    other.close()


def test_what_was_recorded_offline_arrives_when_the_browser_is_online_again(site: TrackedSite, browser: Browser) -> None:
    """The page stays open: a phone in a tunnel. The time is that of the call."""
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'Before']);", head=PATIENT + SNIPPET))
    site.wait(1)
    asked = len(site.sent())
    browser.offline(True)
    site.break_line()
    until(page, "navigator.onLine === false")
    push(page, "['record', 'In The Tunnel']")
    kept = until(page, "localStorage.getItem('_q1')")
    site.mend_line()
    browser.offline(False)
    beacons = site.wait(2)
    assert said(beacons) == [("e", "Before", anonymous(browser)), ("e", "In The Tunnel", anonymous(browser))]
    assert f"_t={beacons[1]['_t']}&" in kept
    assert [sent.body in kept for sent in site.sent()[asked:]] == [True]
    until(page, "localStorage.getItem('_q1') === null")


def test_what_was_recorded_offline_arrives_from_the_next_page(site: TrackedSite, browser: Browser) -> None:
    """The visitor closed the tab in the tunnel and comes back the next day, to another page: the same to the byte."""
    page = browser.page()
    page.open(site.page("/teapots", calls="_kmq.push(['record', 'Before']);"))
    site.wait(1)
    asked = len(site.sent())
    browser.offline(True)
    site.break_line()
    until(page, "navigator.onLine === false")
    push(page, "['record', 'In The Tunnel', {Price: '5 €'}]")
    kept = until(page, "localStorage.getItem('_q1')")
    page.close()
    site.mend_line()
    browser.offline(False)
    page = browser.page()
    page.open(site.page("/cups"))
    tunnel = site.wait(2)[1]
    assert (tunnel["_n"], tunnel["Price"], tunnel["_p"]) == ("In The Tunnel", "5 €", anonymous(browser))
    assert tunnel["URL"] == f"{site.url}/teapots"
    assert [sent.body in kept for sent in site.sent()[asked:]] == [True]


def test_a_server_that_is_away_loses_nothing(site: TrackedSite, browser: Browser) -> None:
    """The browser believes itself online, so nobody tells the page when to try again; it stays open and does."""
    page = browser.page()
    page.open(site.page("/", head=QUICKER + SNIPPET))
    until(page, "window.KM")
    site.break_line()
    push(page, "['record', 'One']", "['set', {Two: 2}]")
    until(page, "localStorage.getItem('_q1')")
    site.mend_line()
    assert said(site.wait(2)) == [("e", "One", anonymous(browser)), ("s", "", anonymous(browser))]


def test_a_beacon_whose_answer_was_lost_is_sent_again_the_same(site: TrackedSite, browser: Browser) -> None:
    """Nobody can know that it arrived; the vendor counts it once because no byte of it differs."""
    site.resends = True
    page = browser.page()
    page.open(site.page("/teapots"))
    until(page, "window.KM")
    site.lose_answers()
    push(page, "['record', 'Once', {Price: 24.5}]")
    until(page, "localStorage.getItem('_q1')")
    site.mend_line()
    page.open(site.page("/cups"))
    until(page, "window.KM && localStorage.getItem('_q1') === null")
    wait_for(lambda: site.vendor.counts["duplicates"], "the resend")
    assert said(site.wait(1)) == [("e", "Once", anonymous(browser))]
    assert len({tuple(one["pairs"]) for one in site.vendor.received}) == 1


@with_rules(events=("visited_site",))
def test_two_tabs_are_one_visitor_and_one_visit(site: TrackedSite, browser: Browser) -> None:
    """People open several products at once."""
    first, second = browser.page(), browser.page()
    first.open(site.page("/", calls="_kmq.push(['record', 'Viewed ' + location.search]);"))
    until(first, "window.KM")
    second.open(f"{site.url}/?2")
    visitor = site.wait(3)[0]["_p"]
    assert said(site.counted()) == [("e", "Viewed ", visitor), ("e", "Viewed ?2", visitor), ("e", "Visited Site", visitor)]
    assert {one["Referrer"] for one in site.counted() if one["_n"] == "Visited Site"} == {"Direct"}


def test_two_tabs_send_what_was_recorded_offline_once(site: TrackedSite, browser: Browser) -> None:
    """Both hear that the browser is online again, and both have the same queue."""
    first, second = browser.page(), browser.page()
    first.open(site.page("/", head=PATIENT + SNIPPET))
    second.open(f"{site.url}/")
    for page in (first, second):
        until(page, "window.KM")
    browser.offline(True)
    site.break_line()
    for name, page in (("One", first), ("Two", second), ("Three", first)):
        until(page, "navigator.onLine === false")
        push(page, f"['record', '{name}']")
        until(page, f"(localStorage.getItem('_q1') || '').includes('{name}')")
    site.mend_line()
    browser.offline(False)
    visitor = anonymous(browser)
    assert said(site.wait(3)) == [("e", "One", visitor), ("e", "Three", visitor), ("e", "Two", visitor)]
    for page in (first, second):
        until(page, "localStorage.getItem('_q1') === null")


@with_rules(gpc=False)
def test_a_private_window_is_a_visitor_of_its_own_and_leaves_nothing_behind(site: TrackedSite, browser: Browser) -> None:
    """Whoever opens one means not to be known, before or after."""
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'Viewed']);"))
    site.wait(1)
    visitor = anonymous(browser)
    for n in (2, 3):
        private = browser.private()
        private.open(f"{site.url}/")
        site.wait(n)
        private.close()
    people = [one["_p"] for one in site.counted()]
    assert people[0] == visitor
    assert len(set(people)) == 3
    assert anonymous(browser) == visitor
    assert page.run("return localStorage.length") == 0


@pytest.mark.parametrize("running", PARAMETERS[1:], indirect=True)
def test_a_private_window_of_firefox_objects(site: TrackedSite, browser: Browser) -> None:
    """Firefox turns global privacy control on in private windows by itself: whoever honours it does not count them."""
    page = browser.page()
    page.open(site.page("/", f"<img src='{PREFIX}/e?_n=Plain'>", calls="_kmq.push(['record', 'Viewed']);"))
    site.wait(2)
    private = browser.private()
    private.open(f"{site.url}/")
    until(private, "window.KM")
    assert private.run("return [navigator.globalPrivacyControl, document.cookie, localStorage.length]") == [True, "", 0]
    assert wait_for(lambda: read(site.spool)["dropped"], "the ledger") == {"gpc": 1}


def test_with_cookies_off_a_page_is_one_visitor(site: TrackedSite, browser: Browser) -> None:
    """Cookies and storage throw or forget; the page's beacons are still sent, and belong together."""
    browser.refuse_cookies()
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'One']); _kmq.push(['record', 'Two']);"))
    site.wait(2)
    push(page, "['record', 'Three']")
    beacons = site.wait(3)
    assert [one["_n"] for one in beacons] == ["One", "Two", "Three"]
    assert len({one["_p"] for one in beacons}) == 1
    assert browser.cookies() == {}


def test_with_cookies_off_an_outage_loses_nothing_while_the_page_is_open(site: TrackedSite, browser: Browser) -> None:
    """There is no storage to wait in."""
    browser.refuse_cookies()
    page = browser.page()
    page.open(site.page("/", head=QUICKER + SNIPPET))
    until(page, "window.KM")
    site.break_line()
    page.run("window.ran = 0")
    push(page, "['record', 'One', {}, () => { window.ran = 1 }]")
    until(page, "window.ran")
    site.mend_line()
    assert [one["_n"] for one in site.wait(1)] == ["One"]


def test_a_strict_content_security_policy_is_enough(site: TrackedSite, browser: Browser) -> None:
    """Everything is the site's own: no host need be allowed, and nothing inline."""
    site.file("/calls.js", "var _kmq = _kmq || []; _kmq.push(['record', 'Viewed']); _kmq.push(['set', {Plan: 'Guest'}]);")
    page = browser.page()
    page.open(
        site.page(
            "/",
            head=f"<script src=/calls.js></script><script async src={ADDRESS}></script>",
            csp="default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'",
        )
    )
    assert said(site.wait(2)) == [("e", "Viewed", anonymous(browser)), ("s", "", anonymous(browser))]
    assert [asked.method for asked in site.sent()] == ["POST"]


def test_a_policy_for_the_vendors_images_is_enough(site: TrackedSite, browser: Browser) -> None:
    """The vendor's script only ever needed images, so a site's policy may allow no more."""
    site.file("/calls.js", "var _kmq = _kmq || []; _kmq.push(['record', 'Viewed']); _kmq.push(['set', {Plan: 'Guest'}]);")
    page = browser.page()
    page.open(
        site.page(
            "/",
            head=f"<script src=/calls.js></script><script async src={ADDRESS}></script>",
            csp="default-src 'none'; script-src 'self'; img-src 'self'",
        )
    )
    assert said(site.wait(2)) == [("e", "Viewed", anonymous(browser)), ("s", "", anonymous(browser))]
    assert {asked.method for asked in site.sent()} == {"GET"}
    assert page.run("return localStorage.length") == 0


def test_by_images_too_a_click_that_leads_away_is_counted(site: TrackedSite, browser: Browser) -> None:
    """No image outlives its page: what did not get away in time waits, and the next page sends it."""
    site.resends = True
    policy = "default-src 'none'; script-src 'self' 'unsafe-inline'; img-src 'self'"
    page = browser.page()
    site.page("/bought", csp=policy)
    page.open(
        site.page("/", "<a id=go href=/bought>Buy</a>", calls="_kmq.push(['trackClick', 'go', 'Clicked Buy']);", csp=policy)
    )
    until(page, "window.KM")
    page.click("#go")
    until(page, "location.pathname == '/bought'")
    assert said(site.wait(1)) == [("e", "Clicked Buy", anonymous(browser))]


def test_by_images_too_a_resend_from_another_page_is_the_same(site: TrackedSite, browser: Browser) -> None:
    """An image says by its Referer which page it is of; one that is sent again must not become another page's beacon."""
    site.resends = True
    policy = "default-src 'none'; script-src 'self' 'unsafe-inline'; img-src 'self'"
    page = browser.page()
    page.open(site.page("/teapots", csp=policy))
    until(page, "window.KM")
    site.lose_answers()
    push(page, "['record', 'Once']")
    until(page, "localStorage.getItem('_q1')")
    site.mend_line()
    page.open(site.page("/cups", csp=policy))
    wait_for(lambda: [asked for asked in site.sent() if asked.headers["referer"].endswith("/cups")], "the resend")
    beacons = site.wait(len(site.settled()))
    assert [(one["_n"], one["URL"]) for one in beacons] == [("Once", f"{site.url}/teapots")]


def test_of_visitors_who_object_nothing_is_kept_anywhere(site: TrackedSite, browser: Browser) -> None:
    """Global privacy control: no cookie, nothing in storage, no request of the script; a plain image is forgotten."""
    browser.object()
    page = browser.page()
    page.open(
        site.page(
            "/", f"<img src={PREFIX}/e?_n=Plain>", calls=f"_kmq.push(['record', 'Viewed']); _kmq.push(['identify', '{ME}']);"
        )
    )
    until(page, "window.KM")
    push(page, "['record', 'Again']", "['set', {Plan: 'Guest'}]")
    page.open(f"{site.url}/next")
    assert [asked.path for asked in site.sent()] == [f"{PREFIX}/e"]
    assert wait_for(lambda: read(site.spool)["dropped"], "the ledger") == {"gpc": 1}
    assert read(site.spool)["received"] == 1
    assert page.run("return [document.cookie, localStorage.length]") == ["", 0]
    assert browser.cookies() == {}


def test_whom_the_vendors_cookies_know_stays_known(site: TrackedSite, browser: Browser) -> None:
    """The day of the move must not turn every visitor into a new one."""
    browser.set_cookie(site.url, "km_ai", "uK4%2Bx9Qb%3D")
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'Viewed']);"))
    assert said(site.wait(1)) == [("e", "Viewed", "uK4+x9Qb=")]
    browser.set_cookie(site.url, "km_ni", "ann%40example.com")
    page.open(site.page("/2", calls=f"_kmq.push(['identify', '{ME}']); _kmq.push(['record', 'Again']);"))
    assert said(site.wait(2)) == [("e", "Again", ME), ("e", "Viewed", "uK4+x9Qb=")]
    assert {name: browser.cookies()[name] for name in ("km_ai", "km_ni")} == {
        "km_ai": "uK4%2Bx9Qb%3D",
        "km_ni": "ann%40example.com",
    }


def test_a_page_without_the_script_still_counts_by_its_image(site: TrackedSite, browser: Browser) -> None:
    """A blocker may take the script: the page must not notice, and a plain image needs none."""
    missing = SNIPPET.replace(ADDRESS, "/blocked.js")
    page = browser.page()
    page.open(site.page("/", f"<img src='{PREFIX}/e?_n=Plain'>", calls="_kmq.push(['record', 'Nobody Hears']);", head=missing))
    push(page, "['record', 'Nor This']", f"['identify', '{ME}']")
    assert said(site.wait(1)) == [("e", "Plain", anonymous(browser))]


VENDOR = """(function () { window.theirs = [];
 function take(call) { if (typeof call == 'function') call(); else theirs.push(call[1]); }
 var before = window._kmq; window._kmq = { push: function () { for (var i = 0; i < arguments.length; i++) take(arguments[i]); } };
 while (before.length) take(before.shift()); })();"""
"""What the vendor's script does to the queue."""


@pytest.mark.parametrize("ours", ["before", "after"])
@with_rules(beside_vendor=True)
def test_beside_the_vendors_script_both_hear_each_call_once(site: TrackedSite, browser: Browser, ours: str) -> None:
    """For comparing counts before the move; whichever of the two is there first."""
    site.file("/vendor.js", VENDOR)
    both = [f"<script defer src={ADDRESS}></script>", "<script defer src=/vendor.js></script>"]
    head = "".join(both if ours == "before" else both[::-1])
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'One']); _kmq.push(['record', 'Two']);", head=head))
    heard = ["One", "Two"] if ours == "before" else []  # what the vendor's took away before ours was there
    site.wait(len(heard)) if heard else until(page, "window._kmb")
    push(page, "['record', 'Three']")
    page.run("setTimeout(() => _kmq.push(['record', 'Four'], ['record', 'Five']))")
    beacons = site.wait(len(heard) + 3)
    assert [one["_n"] for one in beacons] == [*heard, "Three", "Four", "Five"]
    assert page.run("return theirs") == ["One", "Two", "Three", "Four", "Five"]


@with_rules(events=("visited_site", "page_view"))
def test_coming_back_to_a_page_sends_nothing_again(site: TrackedSite, browser: Browser) -> None:
    """The browser kept the page as it was, script and all; and the script goes on working there."""
    shown = "<script>addEventListener('pageshow', event => { window.restored = event.persisted })</script>"
    page = browser.page()
    calls = "_kmq.push(['record', 'Viewed', {}, () => window.answered = 1]);"
    page.open(site.page("/", calls=calls, head=shown + SNIPPET))
    site.wait(3)
    until(page, "window.answered")  # a page that waits for something is not kept
    page.open(f"{site.url}/next")
    page.back()
    until(page, "location.pathname == '/' && window.restored")
    push(page, "['record', 'Back']")
    assert [one["_n"] for one in site.wait(4)][-1] == "Back"
    page.forward()
    until(page, "location.pathname == '/next'")


def test_the_right_integrity_loads_and_a_wrong_one_does_not(site: TrackedSite, browser: Browser) -> None:
    """A site may pin the script to what it has read."""
    tag = "<script src={} integrity={} crossorigin=anonymous onerror='window.refused = 1'></script>"
    page = browser.page()
    page.open(site.page("/", calls="_kmq.push(['record', 'Right']);", head=tag.format(ADDRESS, site.integrity)))
    site.wait(1)
    wrong = "sha384-" + "A" * 64
    page.open(site.page("/2", calls="_kmq.push(['record', 'Wrong']);", head=tag.format(ADDRESS, wrong)))
    assert page.run("return [window.refused, typeof KM, _kmq.length]") == [1, "undefined", 1]
    assert said(site.wait(1)) == [("e", "Right", anonymous(browser))]
