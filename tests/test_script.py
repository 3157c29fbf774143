"""The browser script, in V8 with a stand-in for the browser (tests/script/browser.js): what pages push, and what arrives."""

import gzip
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from proxy.beacon import MAX_NAME, MAX_VALUE, Beacon, fold, parse, reserved_name
from proxy.collector.batch import collect_batch
from proxy.collector.collect import Collector
from proxy.collector.config import SCRIPT_EVENTS, CollectorConfig, ConsentRules
from proxy.collector.consent import objection
from proxy.enrich import load
from proxy.enrich.config import EnrichConfig
from proxy.enrich.search import ENGINES, SUBDOMAINS
from proxy.hit import Hit
from proxy.script import make
from proxy.script.build import BUILDS, built
from proxy.spool.port import SpoolConfig

STAND_IN = (Path(__file__).parent / "script" / "browser.js").read_text("utf-8")
EVERYTHING: dict[str, Any] = {
    **{"b": "a-name-of-some-length", "g": 1, "n": 1, "o": "no_tracking", "r": "consent=yes", "d": "shop.example", "i": 1},
    "u": list(SCRIPT_EVENTS.values()),
}
LIMIT = 3_072
"""Bytes of the script on the wire."""
START = 1_750_000_000
SHOP = "https://shop.example/p"


class Browser:
    """One visitor's browser; several pages, one after the other."""

    def __init__(self, beside: bool = False, **chosen: Any) -> None:
        self.js = MiniRacer()
        self.js.eval(STAND_IN)
        chosen["u"] = [SCRIPT_EVENTS.get(event, event) for event in chosen.get("u", ())]
        put_in = {name: value for name, value in {"b": "b", "i": 1, **chosen}.items() if value}
        self.code = make(put_in, beside).body.decode("utf-8")

    def open(self, *calls: Any, url: str = SHOP, seconds: float = 0.0, **page: Any) -> "Browser":
        """A page that pushed these calls before the script came."""
        before = (
            page.pop("before", "")
            + f";window._kmq = window._kmq || []; window._kmq.push(...JSON.parse({json.dumps(json.dumps(calls))}))"
        )
        self.js.eval(f"page = open({json.dumps(self.code)}, {json.dumps({'url': url, 'before': before, **page})}); 0")
        return self.wait(seconds)

    def push(self, *calls: Any, seconds: float = 0.0) -> "Browser":
        return self.run(f"window._kmq.push(...JSON.parse({json.dumps(json.dumps(calls))}))", seconds)

    def run(self, code: str, seconds: float = 0.0) -> "Browser":
        """As the page's own script."""
        self.js.eval(f"page.run({json.dumps(code)}); 0")
        return self.wait(seconds)

    def do(self, code: str, seconds: float | None = 0.0) -> Any:
        """To the browser itself."""
        found = json.loads(str(self.js.eval(f"JSON.stringify((() => {{ return {code} }})() ?? null)")))
        if seconds is not None:
            self.wait(seconds)
        return found

    def wait(self, seconds: float = 0.0) -> "Browser":
        until = f"browser.now + {seconds * 1000}"
        self.js.eval(f"until = {until}")
        while self.js.eval("advance(until)"):
            pass
        self.js.eval("browser.now = Math.max(browser.now, until); 0")
        return self

    def leave(self) -> "Browser":
        self.do("page.window.dispatch('pagehide')", None)
        return self

    @property
    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.do("browser.requests.splice(0)", None)
        return found

    @property
    def lines(self) -> list[str]:
        """Of all requests since last asked."""
        return [line for request in self.requests for line in request.get("body", "").split("\n") if line]

    @property
    def queue(self) -> list[str]:
        """What waits in localStorage."""
        return [line for line in (self.do("browser.stored._q1", None) or "").split("\n") if line]

    @property
    def cookies(self) -> dict[str, str]:
        return dict(self.do("browser.jar.map((c) => [c.name, decodeURIComponent(c.value)])", None))


def collected(lines: list[str], **config: Any) -> list[Any]:
    """What the collector makes of the lines: beacons, or outcomes."""
    rule = Collector(CollectorConfig(SpoolConfig("memory:"), **config))
    batch = collect_batch(rule, b"", "\n".join(lines).encode(), {b"host": b"shop.example"}, "127.0.0.1", START * 1000)
    return [parse(one.found) if isinstance(one.found, Hit) else one.found for one in batch.beacons]


def names(lines: list[str]) -> list[str]:
    return [beacon.name for beacon in collected(lines)]


def events(lines: list[str]) -> list[tuple[str, str, dict[str, str]]]:
    return [(beacon.person, beacon.name, beacon.properties) for beacon in collected(lines)]


# The file


@pytest.mark.parametrize("name", BUILDS)
def test_the_built_file_is_what_the_source_makes(name: str) -> None:
    """Sites get it; a change of the source that did not reach it would be no change."""
    assert (Path(__file__).parent.parent / "proxy/script" / name).read_text("utf-8") == built(BUILDS[name])


def test_the_script_is_small_with_all_settings_put_in() -> None:
    """It stands between the visitor and the page. (The one beside the vendor's is for some days of comparing.)"""
    script = make(EVERYTHING)
    assert len(script.gzipped) <= LIMIT
    assert len(make(EVERYTHING, beside=True).gzipped) <= LIMIT + 100
    assert gzip.decompress(script.gzipped) == script.body
    assert re.match(rb"/\*! \d+\.\d+", script.body)
    assert b"__SETTINGS__" not in script.body
    assert b"__VERSION__" not in script.body


# Calls and lines


def test_calls_from_before_the_load_go_in_one_request_in_their_order() -> None:
    """The queue exists so that nothing is lost before the script is there; a request each would be waste."""
    browser = Browser().open(["record", "One"], ["set", {"Plan": "Pro"}], ["record", "Two", {"Price": 9.5}])
    (request,) = browser.requests
    assert request["url"] == "https://shop.example/x/b"
    assert (request["method"], request["keepalive"]) == ("POST", True)
    one, plan, two = collected(request["body"].split("\n"))
    assert (one.kind, one.name, plan.kind, plan.properties) == ("e", "One", "s", {"Plan": "Pro"})
    assert (two.name, two.properties, two.time_s) == ("Two", {"Price": "9.5"}, START)


def test_a_line_is_made_of_the_calls_parameters_in_one_order_and_the_page() -> None:
    """A resend must be the same to the byte, from whatever page; the address is the server's Referer."""
    browser = Browser(d="shop.example").open(url="https://shop.example/a?b=%20c#part")
    browser.do("browser.jar.push({name: 'km_ni', value: 'ada%40x', domain: 'shop.example', until: 1e15})")
    browser.push(["record", "A b", {"Plan": None, "Tags": [1, "b"], "é": "&"}])
    assert browser.lines == [f"e?Plan=&Tags=1%2Cb&%C3%A9=%26&_n=A%20b&_p=ada%40x&_t={START}&_d=1 https://shop.example/a?b=%20c"]


def test_half_a_character_does_not_lose_the_rest() -> None:
    """Pages cut texts in the middle of an emoji; UTF-8 has no half of one."""
    browser = Browser().open(before=r"window._kmq = [['record', 'a\ud83d', {x: '\ude00b'}]]")
    assert events(browser.lines)[0][1:] == ("a\ufffd", {"x": "\ufffdb"})


def test_set_sends_only_what_has_a_value_and_nothing_if_nothing_has() -> None:
    """An empty property would wipe what the vendor knows."""
    browser = Browser().open(
        ["set", {"Plan": "Pro", "Coupon": "", "Size": None}], ["set", {"Plan": ""}], ["set"], ["record", {"A": 1}]
    )
    assert [(b.kind, b.properties) for b in collected(browser.lines)] == [("s", {"Plan": "Pro"}), ("s", {"A": "1"})]


def test_a_property_cannot_pass_for_a_parameter_but_an_event_can_be_of_the_past() -> None:
    """`_t` with `_d` is the vendor's documented way to say when; `_p` or `_k` as a property is nobody's."""
    browser = Browser().open(
        ["record", "Old", {"_d": 1, "_t": 1234567890, "_p": "eve", "_k": "key", "_n": "x"}], ["record", "New", {"_t": 1234567890}]
    )
    lines = browser.lines
    old, new = collected(lines)
    assert (old.time_s, new.time_s, old.name) == (1234567890, START, "Old")
    assert not re.search("eve|key|_n=x", "".join(lines))


def test_many_calls_are_split_into_requests_that_browsers_and_server_take() -> None:
    """The server takes 100 lines, browsers 64 KiB with keepalive."""
    browser = Browser().open(*(["record", f"Event {i}", {"text": "x" * 900}] for i in range(120)))
    bodies = [request["body"] for request in browser.requests]
    assert sum(body.count("\n") + 1 for body in bodies) == 120
    assert all(len(body) <= 30_000 and body.count("\n") < 50 for body in bodies)
    assert [request["body"].count("\n") for request in browser.push(*(["record", "x"] for _ in range(60))).requests] == [49, 9]


def test_the_second_load_does_nothing() -> None:
    """Pages replace both of the vendor's scripts, i.js and KEY.js, by this one."""
    browser = Browser(u=["page_view"]).open(["record", "One"])
    browser.do("page.load()")
    assert names(browser.push(["record", "Two"]).lines) == ["One", "Page View", "Two"]


def test_a_reference_to_the_old_queue_still_works() -> None:
    """Pages keep `_kmq` in variables of their own."""
    browser = Browser().open(before="window.old = window._kmq = []")
    assert names(browser.run("window.old.push(['record', 'Late'])").lines) == ["Late"]


def test_pushed_functions_are_called_in_turn_with_the_library_there() -> None:
    """`_kmq.push(function () { KM.i() })` is how pages ask who it is."""
    browser = Browser().open(before="window._kmq = [['identify', 'ada'], () => log(window.KM.i())]")
    browser.run("window._kmq.push(() => window.KM.record('By hand', {a: 1}))")
    assert "ada" in browser.do("browser.log")
    assert names(browser.lines) == ["ada", "By hand"]


# Identity


def test_identify_aliases_the_anonymous_identity_once_and_first() -> None:
    """What was done before signing in belongs to the person from then on."""
    browser = Browser().open(["record", "Looked"], ["identify", "ada@x"], ["record", "Bought"], ["identify", "ada@x"])
    looked, alias, bought = collected(browser.lines)
    assert (alias.kind, alias.person, alias.name) == ("a", looked.person, "ada@x")
    assert re.fullmatch(r"[\w-]{24}", looked.person)
    assert bought.person == browser.cookies["km_ni"] == "ada@x"
    browser.open(["identify", "bob@x"], ["record", "Sold"])
    assert [(b.kind, b.person) for b in collected(browser.lines)] == [("e", "bob@x")], "another known person is no alias"


@pytest.mark.parametrize("nobody", [None, "", "null", "nil", 0, False])
def test_to_identify_nobody_clears_the_identity(nobody: Any) -> None:
    """Pages print what their templates have."""
    browser = Browser().open(["identify", "ada"], ["identify", nobody], ["record", "After"])
    assert "km_ni" not in browser.cookies
    assert collected(browser.lines)[-1].person not in ("", "ada")


def test_an_anonymous_identity_is_aliased_to_one_person_only() -> None:
    """On a shared computer a second alias would merge two people for ever: it cannot be undone."""
    browser = Browser().open(["identify", "ada"], ["clearIdentity"], ["identify", "bob"], ["record", "x"])
    (ada, by_bob) = collected(browser.lines)
    assert (ada.kind, ada.name, by_bob.kind, by_bob.person) == ("a", "ada", "e", "bob")
    browser.push(["clearIdentity"]).open(["identify", "ada"], ["record", "y"])
    assert [(b.kind, b.person) for b in collected(browser.lines)] == [("e", "ada")], "that alias was made already"
    browser.do("browser.jar = browser.jar.filter((c) => c.name != 'km_ni'); 0")  # it lasts a week in Safari
    assert [(b.kind, b.person) for b in collected(browser.open(["identify", "eve"], ["record", "z"]).lines)] == [("e", "eve")]
    browser.do("browser.jar = []; 0")
    assert [b.kind for b in collected(browser.open(["identify", "eve"]).lines)] == ["a"], "a new one may be"


@pytest.mark.parametrize("ours", ["", "shop.example"])
def test_a_cookie_of_that_name_on_another_domain_does_not_win(ours: str) -> None:
    """The vendor's library sets its cookies on the whole domain; read first, the old person would stay for ever."""
    browser = Browser(d=ours)
    for domain in (".shop.example", "www.shop.example"):
        browser.do(f"browser.jar.push({{name: 'km_ni', value: 'ann', domain: '{domain}', until: 1e15}})")
    browser.open(["identify", "bob"], ["record", "x"], url="https://www.shop.example/")
    assert [(b.kind, b.person) for b in collected(browser.lines)] == [("e", "bob")]
    assert [b.person for b in collected(browser.open(["record", "y"], url="https://www.shop.example/").lines)] == ["bob"]


def test_the_identity_is_forgotten_on_every_domain_that_may_hold_it() -> None:
    """The vendor's library sets it on the parent domain, this one where it is told to."""
    browser = Browser().open(url="https://www.shop.example/")
    browser.do("browser.jar.push({name: 'km_ni', value: 'ada', domain: '.shop.example', until: 1e15})")
    browser.do("browser.jar.push({name: 'km_ni', value: 'ada', domain: 'www.shop.example', until: 1e15})")
    assert "km_ni" not in browser.push(["clearIdentity"]).cookies


def test_cookies_of_the_vendors_library_are_taken_as_they_are() -> None:
    """A known visitor stays known when the script's address changes."""
    browser = Browser()
    browser.do("browser.jar.push({name: 'km_ai', value: 'aGVs%2BbG8%3D', domain: 'shop.example', until: 1e15})")
    assert collected(browser.open(["record", "x"]).lines)[0].person == "aGVs+bG8="
    browser.do("browser.jar.push({name: 'km_ni', value: '100%', domain: 'shop.example', until: 1e15})")
    assert collected(browser.push(["record", "x"]).lines)[0].person == "100%"


def test_cookies_are_set_as_the_server_sets_them() -> None:
    """The server renews km_ai: two cookies of one name on different domains would be two people."""
    log = Browser(d="shop.example").open(["record", "x"], url="https://www.shop.example/").do("browser.log")
    (ai,) = [entry for entry in log if "km_ai" in entry]
    assert ai.endswith(";path=/;samesite=lax;max-age=34560000;domain=shop.example;secure")
    log = Browser().open(["record", "x"], url="http://shop.example/").do("browser.log")
    assert not [entry for entry in log if "secure" in entry or not entry.endswith("domain=")]


def test_without_cookies_the_identity_lasts_as_long_as_the_page() -> None:
    """Browsers deny cookies by throwing, or by forgetting them; a page's events still belong together."""
    browser = Browser()
    browser.do("browser.broken.push('cookies')")
    browser.open(["record", "a"], ["identify", "ada"], ["record", "b"])
    a, alias, b = collected(browser.lines)
    assert (alias.person, b.person) == (a.person, "ada")
    browser = Browser(d="other.example").open(["record", "a"], ["record", "b"])
    assert len({beacon.person for beacon in collected(browser.lines)}) == 1


def test_where_nobody_is_to_be_made_up_only_known_people_are_told_of() -> None:
    """The setting `identity = false`."""
    browser = Browser(i=0).open(["record", "a"])
    assert (browser.lines, browser.cookies) == ([], {})
    assert [(b.kind, b.person) for b in collected(browser.push(["identify", "ada"], ["record", "b"]).lines)] == [("e", "ada")]


def test_an_identity_that_is_too_long_or_no_text_is_not_used() -> None:
    """Shortened it could be somebody else's, and every "[object Object]" would be one person."""
    browser = Browser().open(["identify", "x" * 256], ["identify", {"id": 1}], ["identify", "x" * 255], ["alias", "a", "y" * 256])
    (alias,) = collected(browser.lines)
    assert alias.name == "x" * 255


def test_an_alias_of_two_that_are_equal_is_not_sent() -> None:
    """It says nothing."""
    browser = Browser().open(["alias", "a", "a"], ["alias", "a", "b"], ["alias", 7, "7"])
    assert [(b.person, b.name) for b in collected(browser.lines)] == [("a", "b")]


# Consent

RULES: list[tuple[dict[str, Any], ConsentRules]] = [
    ({"o": "off"}, ConsentRules(opt_out_cookie="off")),
    ({"o": "off=yes"}, ConsentRules(opt_out_cookie="off=yes")),
    ({"r": "ok"}, ConsentRules(consent_cookie="ok")),
    ({"r": "ok=1=2"}, ConsentRules(consent_cookie="ok=1=2")),
]


def test_consent_cookies_mean_what_they_mean_to_the_server() -> None:
    """A beacon that the server forgets must not have set a cookie in the browser."""
    jars = ["", "x=1", "off=", 'off=""', "off=0", "off=NO", "off=yes", 'off="yes"', "off=1; off=0", "coff=1"]
    jars += ["ok=", "ok=0", "ok=false", "ok=1", "ok=1=2", 'ok="1=2"', "a; ok=1"]
    for chosen, rules in RULES:
        browser = Browser(**chosen)
        for jar in jars:
            browser.do("(browser.jar = [], browser.requests = [], 0)")
            pairs = [pair.partition("=") for pair in jar.split("; ") if "=" in pair]
            for name, _, value in pairs:
                browser.do(
                    f"browser.jar.push({json.dumps({'name': name, 'value': value, 'domain': 'shop.example', 'until': 1e15})})"
                )
            browser.open(["record", "x"])
            assert (browser.lines == []) == (objection(rules, {b"cookie": jar.encode()}) is not None), (chosen, jar)


@pytest.mark.parametrize(("chosen", "signal"), [({"g": 1}, "globalPrivacyControl = true"), ({"n": 1}, "doNotTrack = '1'")])
def test_an_objection_leaves_no_trace_and_lets_the_page_go_on(chosen: dict[str, Any], signal: str) -> None:
    """Nothing is sent, no cookie set, nothing stored; a page that waits for its callback must not wait for ever."""
    browser = Browser(u=["visited_site", "page_view"], **chosen)
    browser.do("browser.navigator." + signal)
    browser.open(["identify", "ada"], before="window._kmq = [['record', 'x', {}, () => log('called')]]")
    browser.run("window._kmq.push(['record', 'x', {}, () => log('again')]); log('not at once')").wait(5).leave()
    assert browser.do("browser.log") == ["called", "not at once", "again"]
    assert (browser.requests, browser.cookies, browser.do("browser.stored")) == ([], {}, {})
    assert names(Browser(u=["page_view"]).open().lines) == ["Page View"], "where the signal is not honoured it changes nothing"


def test_consent_that_is_given_later_on_the_page_counts_from_then_on() -> None:
    """The banner is answered while the page is open."""
    browser = Browser(r="consent=yes").open(["identify", "ada"], ["record", "Before"])
    browser.do("browser.jar.push({name: 'consent', value: 'yes', domain: 'shop.example', until: 1e15})")
    (after,) = collected(browser.push(["record", "After"]).lines)
    assert (len(after.person), after.name) == (24, "After")
    alias, bought = collected(browser.push(["identify", "ada"], ["record", "Bought"]).lines)
    assert (alias.person, bought.person) == (after.person, "ada")


def test_what_waited_is_forgotten_when_the_visitor_objects() -> None:
    """An objection is for what was not yet told, too."""
    browser = Browser(o="off")
    browser.do("browser.answer = 503")
    assert browser.open(["record", "x"]).queue
    browser.do("(browser.answer = 200, browser.jar.push({name: 'off', value: '1', domain: 'shop.example', until: 1e15}))")
    browser.requests  # noqa: B018
    browser.open()
    assert (browser.requests, browser.queue) == ([], [])


@pytest.mark.parametrize("answer", ["503", "'refuse'"])
def test_who_objects_while_it_is_on_its_way_leaves_nothing_behind(answer: str) -> None:
    """Neither a line in the queue nor an image."""
    browser = Browser(o="off")
    browser.do("browser.answer = 'hang'")
    browser.open(before="window._kmq = [['record', 'x', {}, () => log('called')]]")
    browser.do("(browser.jar.push({name: 'off', value: '1', domain: 'shop.example', until: 1e15}), 0)")
    end = "one.reject(new TypeError('no'))" if answer == "'refuse'" else "one.resolve({status: 503})"
    browser.do(f"browser.hanging.forEach((one) => {end})")
    assert [request["via"] for request in browser.requests] == ["fetch"]
    assert browser.queue == []
    assert "called" in browser.do("browser.log")


# The network


def test_another_origin_is_asked_with_cookies_and_any_answer_counts() -> None:
    """A site may have the proxy on a sub-domain; its answers cannot be read from the page."""
    browser = Browser()
    browser.do("browser.answer = 0")
    (request,) = browser.open(["record", "x"], script="https://t.shop.example/x/k.js?v=1/2").requests
    assert (request["url"], request["mode"], request["credentials"]) == ("https://t.shop.example/x/b", "no-cors", "include")
    assert browser.queue == []


def test_what_the_server_refuses_waits_and_is_sent_again_the_same_to_the_byte() -> None:
    """503 is the proxy's word for "not stored"; the vendor counts what is the same once."""
    browser = Browser()
    browser.do("browser.answer = 503")
    first = browser.open(["record", "x", {"a": 1}]).lines
    assert browser.queue == [f"{START} {first[0]}"]
    browser.do("browser.answer = 200")
    assert browser.open(["record", "y"], url="https://shop.example/other").lines[1:] == first
    assert browser.queue == []


def test_it_is_tried_again_each_half_minute_while_the_page_is_open() -> None:
    """The page that saw the outage may be the visitor's last for today; a crowd of pages must not hammer."""
    browser = Browser()
    browser.do("browser.answer = 503")
    browser.open(["record", "x"])
    times = [browser.wait(1) and len(browser.requests) for _ in range(100)]
    assert [second for second, count in enumerate(times) if count] == [0, 29, 59, 89]
    browser.do("browser.answer = 200")
    assert len(browser.wait(30).lines) == 1
    assert (browser.wait(100).requests, browser.queue) == ([], [])


def test_a_policy_or_a_blocker_that_stops_fetch_leaves_images_with_nothing_to_read_in_them() -> None:
    """Addresses are what lists look at: no parameter's name may stand there, and the beacon must be the same to the byte."""
    browser = Browser()
    browser.do("browser.answer = 'refuse'")
    fetch, image = browser.open(["record", "x y", {"Plan": "Pro", "Größe": "ü&", "*": 1}]).requests
    assert fetch["via"] == "fetch"
    path, _, query = image["url"].partition("?")
    assert path == "https://shop.example/x/b"
    rule, asked = Collector(CollectorConfig(SpoolConfig("memory:"))), {b"host": b"shop.example"}
    by_image = collect_batch(rule, query.encode(), b"", asked, "127.0.0.1", START * 1000)
    assert by_image == collect_batch(rule, b"", fetch["body"].encode(), asked, "127.0.0.1", START * 1000)
    assert isinstance(by_image.beacons[0].found, Hit)
    assert browser.queue == []


def test_what_no_image_can_bring_waits() -> None:
    """Then the network or the server is gone."""
    browser = Browser()
    browser.do("(browser.answer = 'refuse', browser.image = 'error')")
    assert len(browser.open(["record", "x"], ["record", "y"]).queue) == 2
    assert [request["via"] for request in browser.requests] == ["fetch", "image", "image"], "each line once"


def test_without_a_network_nothing_is_tried_by_image_and_coming_back_is_noticed() -> None:
    """A train's tunnel."""
    browser = Browser()
    browser.do("(browser.answer = 'refuse', browser.navigator.onLine = false, 0)")
    browser.open(["record", "x"])
    assert [request["via"] for request in browser.requests] == ["fetch"]
    assert len(browser.queue) == 1
    browser.do("(browser.answer = 200, browser.navigator.onLine = true, page.window.dispatch('online'))")
    assert len(browser.lines) == 1
    assert browser.queue == []


def test_browsers_without_keepalive_send_images_and_a_beacon_when_the_page_goes() -> None:
    """Firefox before 133."""
    browser = Browser()
    browser.do("browser.broken.push('keepalive')")
    browser.open(["record", "x"])
    browser.js.eval("page.run(\"window._kmq.push(['record', 'y'])\")")
    browser.leave()
    assert [request["via"] for request in browser.requests] == ["image", "beacon"]


def test_another_scripts_broken_fetch_is_survived() -> None:
    """Pages wrap fetch, and not always well."""
    browser = Browser()
    browser.do("browser.broken.push('fetch')")
    assert [request["via"] for request in browser.open(["record", "x"]).requests] == ["fetch", "image"]


# Leaving


def test_what_is_not_yet_sent_goes_when_the_page_does() -> None:
    """`record` in a click handler, and the navigation right after."""
    for event in (
        "page.window.dispatch('pagehide')",
        "(page.document.hidden = true, page.document.dispatch('visibilitychange'))",
    ):
        browser = Browser().open()
        browser.js.eval("page.run(\"window._kmq.push(['record', 'y'])\")")
        browser.do(event, None)
        assert names(browser.lines) == ["y"]


def test_a_page_that_goes_offline_leaves_its_lines_on_the_disk() -> None:
    """Nothing that is sent then arrives."""
    browser = Browser().open()
    browser.do("browser.navigator.onLine = false")
    browser.js.eval("page.run(\"window._kmq.push(['record', 'y'])\")")
    browser.leave()
    assert (browser.requests, len(browser.queue)) == ([], 1)


def test_lines_long_on_their_way_are_kept_when_the_page_goes_and_young_ones_are_not() -> None:
    """Nobody sees how they end: old ones hang, young ones are keepalive's."""
    browser = Browser()
    browser.do("browser.answer = 'hang'")
    browser.open(["record", "old"]).wait(2)
    browser.push(["record", "young"]).leave()
    assert [unquote(line.split("_n=")[1].split("&")[0]) for line in browser.queue] == ["old"]


def test_in_an_outage_whatever_is_on_its_way_is_kept_when_the_page_goes() -> None:
    """Who clicks through a site in an outage is the one whom the queue is for: nothing that waited or is new may be lost."""
    browser = Browser()
    browser.do("browser.answer = 503")
    browser.open(*(["record", f"Event {i}"] for i in range(5)))
    for page in ("two", "three"):
        browser.do("browser.answer = 'hang'")
        browser.open(url=f"https://shop.example/{page}").leave()
        assert len(browser.queue) == 5, "they were taken, and are on their way again"
        browser.do("browser.answer = 503")
    browser.push(["record", "fails"])
    browser.do("browser.answer = 'hang'")
    browser.push(["record", "young"]).leave()
    assert [unquote(line.split("_n=")[1].split("&")[0]) for line in browser.queue[-2:]] == ["fails", "young"]


def test_a_page_that_comes_back_does_not_send_what_was_answered_meanwhile() -> None:
    """Browsers freeze pages and thaw them (bfcache)."""
    browser = Browser()
    browser.do("browser.answer = 'hang'")
    browser.open(["record", "x"]).wait(2)
    browser.leave()
    browser.do("page.window.dispatch('pageshow', {persisted: true})", None)
    assert len(browser.queue) == 1
    browser.do("(browser.answer = 200, browser.hanging.forEach((one) => one.resolve({status: 200})))")
    browser.requests  # noqa: B018
    browser.wait(600)
    assert (browser.requests, browser.queue) == ([], [])
    assert names(browser.push(["record", "y"]).lines) == ["y"]


def test_what_is_still_under_way_is_not_sent_beside_itself() -> None:
    """A copy of it lies in the queue; the request itself will tell how it ends."""
    browser = Browser()
    browser.do("browser.answer = 'hang'")
    browser.open(["record", "x"]).wait(2).leave()
    assert len(browser.requests) == 1
    browser.do("(page.window.dispatch('pageshow'), page.window.dispatch('online'))")
    assert browser.requests == []
    browser.do("(browser.image = 'error', browser.hanging.forEach((one) => one.reject()))")
    assert len(browser.queue) == 1


def test_a_request_that_is_cut_off_by_leaving_is_trusted_to_keepalive() -> None:
    """Browsers reject it just before they tell that the page goes, and send it all the same: an image and the queue would make
    three of one. That fetch passes at all, an answer has told before."""
    browser = Browser()
    browser.open(["record", "first"]).requests  # noqa: B018
    browser.do("browser.answer = 'hang'")
    browser.push(["record", "x"]).wait(0.02)
    browser.do("browser.hanging.forEach((one) => one.reject(new TypeError('Failed to fetch')))", None)
    browser.leave().wait()
    assert [request["via"] for request in browser.requests] == ["fetch"]
    assert browser.queue == []
    browser.do("(browser.answer = 'refuse', page.window.dispatch('pageshow'))")
    assert [request["via"] for request in browser.push(["record", "y"]).requests] == ["fetch", "image"], (
        "back again, a blocker is one"
    )


def test_what_is_cut_off_before_anything_was_answered_is_kept() -> None:
    """It may have been a policy that cut it off: then nothing was sent. What was sent after all is the same to the byte."""
    browser = Browser()
    browser.do("browser.answer = 'hang'")
    [line] = browser.open(["record", "x"]).wait(0.02).lines
    browser.do("browser.hanging.forEach((one) => one.reject(new TypeError('Failed to fetch')))", None)
    browser.leave().wait()
    assert browser.requests == []
    browser.do("browser.answer = 200")
    assert browser.open().lines == [line]


def test_what_a_policy_refuses_is_asked_for_as_an_image_in_the_same_task() -> None:
    """A page that goes need not see another one: no timer comes between."""
    browser = Browser()
    browser.do("browser.answer = 'refuse'")
    browser.open(["trackClick", "go", "Clicked"]).do(PARTS)
    browser.do("page.document.dispatch('click', {target: button})", None)
    assert [request["via"] for request in browser.requests] == ["fetch", "image"]


def test_where_only_images_pass_what_is_said_last_waits_for_the_next_page() -> None:
    """An image does not outlive the page, and a fetch that is blocked must not be trusted to."""
    browser = Browser()
    browser.do("browser.answer = 'refuse'")
    browser.open(["record", "x"]).push(["record", "y"])
    assert [request["via"] for request in browser.requests] == ["fetch", "image", "image"]
    browser.js.eval("page.run(\"window._kmq.push(['record', 'z'])\")")
    assert len(browser.leave().queue) == 1
    browser.requests  # noqa: B018
    browser.open()
    assert [request["via"] for request in browser.requests] == ["fetch", "image"]


def test_an_image_on_its_way_is_kept_when_the_page_goes() -> None:
    """Browsers drop it with the page."""
    browser = Browser()
    browser.do("(browser.answer = 'refuse', browser.image = 'hang')")
    assert len(browser.open(["record", "x"]).leave().queue) == 1


# The queue


def test_the_queue_has_a_limit_and_the_oldest_go_first() -> None:
    """The site's own localStorage must not fill up."""
    browser = Browser()
    browser.do("browser.answer = 503")
    browser.open(*(["record", f"Event {i}"] for i in range(130)))
    assert len(browser.queue) == 100
    assert "Event%20129&" in browser.queue[-1]
    browser.push(*(["record", f"big {i}", {"x": "y" * 1000}] for i in range(90)))
    assert 50_000 < sum(len(line) + 1 for line in browser.queue) <= 60_001


def test_an_absurd_line_does_not_cost_the_others_their_place() -> None:
    """The server would drop it all the same."""
    browser = Browser()
    browser.do("browser.answer = 503")
    browser.open(*(["record", f"Event {i}"] for i in range(5)))
    browser.push(["record", "Giant", {f"p{i}": "x" * 1000 for i in range(70)}])
    assert len(browser.queue) == 5


def test_no_more_is_under_way_than_browsers_allow() -> None:
    """64 KiB with keepalive: beyond that fetch fails, and that must not pass for a blocker."""
    browser = Browser()
    browser.do("browser.answer = 'hang'")
    browser.open(*(["record", f"Event {i}", {"x": "y" * 1000}] for i in range(80)))
    first = browser.requests
    assert {request["via"] for request in first} == {"fetch"}
    assert sum(len(request["body"]) for request in first) < 60_000
    browser.do("(browser.answer = 200, browser.hanging.forEach((one) => one.resolve({status: 200})))")
    assert sum(request["body"].count("\n") + 1 for request in [*first, *browser.requests]) == 80


def test_tabs_take_the_queue_in_turn() -> None:
    """What one tab has taken another may still see for a moment, and both would send it."""
    browser = Browser()
    browser.do("browser.answer = 503")
    first = browser.open(["record", "x"]).lines
    browser.do(
        "(browser.answer = 200, browser.navigator.locks = {request: (_, f) => (browser.granted = f, new Promise(() => 0))}, 0)"
    )
    assert browser.open().lines == []
    browser.do("(browser.granted(), 0)")
    assert browser.lines == first
    browser.do(f"(browser.stored._q1 = '{START} {first[0]}', delete browser.navigator.locks)")
    assert browser.open().lines == first, "old browsers have no locks"


def test_lines_older_than_three_days_are_not_sent() -> None:
    """Nobody expects them any more."""
    browser = Browser()
    browser.do("browser.answer = 503")
    browser.open(["record", "x"])
    browser.do("(browser.answer = 200, browser.timers = [], browser.now += 3 * 86400e3 + 1, browser.requests = [], 0)")
    assert (browser.open().requests, browser.queue) == ([], [])


def test_rubbish_in_the_queue_harms_nobody() -> None:
    """Any script of the site can write there."""
    line = f"{START} e?_n=x&_p=ada&_t={START}&_d=1 {SHOP}"
    for rubbish in ("null", "[object Object]", "{}\n\n\x00", f"{START} k?_k=1 x", f"{START} e?_n=é x"):
        browser = Browser()
        browser.do(f"browser.stored._q1 = {json.dumps(rubbish + chr(10) + line)}")
        assert names(browser.open().lines) == ["x"]
        assert browser.queue == []


@pytest.mark.parametrize("trouble", ["storage", "full"])
def test_where_nothing_can_be_stored_the_page_keeps_it_and_tries_again(trouble: str) -> None:
    """Private windows, full disks, strict settings."""
    browser = Browser()
    browser.do(f"(browser.broken.push('{trouble}'), browser.answer = 503)")
    first = browser.open(["record", "x"]).lines
    browser.do("browser.answer = 200")
    assert browser.wait(31).lines == first


# Callbacks


def test_a_callback_runs_once_when_it_is_answered_stored_or_two_seconds_have_passed() -> None:
    """Pages wait for it before they navigate."""
    for answer, waits in (("200", 0), ("503", 0), ("'hang'", 2)):
        browser = Browser()
        browser.do(f"browser.answer = {answer}")
        browser.open().run("window._kmq.push(['record', 'x', {}, () => log('called')])")
        if waits:
            assert "called" not in browser.wait(1.9).do("browser.log")
        calls = browser.wait(waits).do("browser.log").count("called")
        assert calls == browser.wait(100).do("browser.log").count("called") == 1, answer


def test_no_exception_of_the_page_or_the_browser_comes_through() -> None:
    """A tracker must never break a shop."""
    browser = Browser().open(before="window._kmq = [() => { throw 1 }, null, 7, [], ['nothing'], ['__proto__'], [[]]]")
    browser.run(
        "window._kmq.push(['record', 'x', {}, () => { throw 2 }], ['record', 'y', {get bad() { throw 3 }, good: 1}])"
    ).wait(3)
    browser.run("window.KM.record(Symbol('s'), {toString: null, big: 10n, s: Symbol('t'), f() {}, o: {}})")
    browser.run("window._kmq.push(['trackClick', {}, 'x'], ['trackClick', '..', 'x'])")
    browser.do("page.document.dispatch('click', {target: page.document})")
    assert events(browser.lines)[1][1:] == ("y", {"good": "1"})


# Clicks and forms

PARTS = "(form = new Element('form', 'signup', 'forms'), button = new Element('button', 'go', 'buy', form), 0)"


def test_a_click_counts_once_however_it_was_tracked() -> None:
    """By id, by selector, on what is inside, on what came later; pages that push it again at each view mean the same."""
    browser = Browser().open(
        ["trackClick", "go", "A"], ["trackClick", ".buy", "B", {"n": 1}], ["trackClickOnOutboundLink", "#signup", "C"]
    )
    browser.push(["trackClick", "go", "A"], ["trackClick", ".buy", "B", {"n": 2}])
    browser.do(PARTS)
    browser.do("page.document.dispatch('click', {target: button})", None)
    browser.do("page.document.dispatch('click', {target: form})", None)  # as a label's click is followed by its field's
    assert sorted((name, props) for _, name, props in events(browser.lines)) == [("A", {}), ("B", {"n": "2"}), ("C", {})]
    browser.wait().do("page.document.dispatch('click', {target: form})")
    assert names(browser.lines) == ["C"], "the next one counts again"


def test_a_forms_submission_counts_once() -> None:
    """A click on its button is another thing."""
    browser = Browser().open(["trackSubmit", "signup", "Signed up", {"Plan": "Pro"}])
    browser.do(PARTS)
    browser.do("(page.document.dispatch('click', {target: button}), page.document.dispatch('submit', {target: form}))")
    assert [(name, props) for _, name, props in events(browser.lines)] == [("Signed up", {"Plan": "Pro"})]


# Unasked


def test_a_visit_is_told_once_in_a_session_that_activity_prolongs() -> None:
    """Half an hour of nothing ends it; every page and every call goes on with it."""
    browser = Browser(u=["visited_site"]).open(referrer="https://blog.example/")
    assert events(browser.lines)[0][1:] == ("Visited Site", {"URL": SHOP, "Referrer": "https://blog.example/"})
    for _ in range(3):
        assert browser.wait(20 * 60).open().lines == []
        assert browser.wait(20 * 60).open().lines == []
        assert names(browser.wait(20 * 60).push(["record", "x"]).lines) == ["x"]
    assert events(browser.wait(31 * 60).open().lines)[0][2]["Referrer"] == "Direct"


def test_page_views_are_told_with_address_and_referrer() -> None:
    """For pages that change without loading: `_kmq.push(['pageView'])`."""
    browser = Browser().open(["pageView"], referrer="https://a.example/")
    assert events(browser.lines)[0][1:] == ("Page View", {"Viewed URL": SHOP, "Referrer": "https://a.example/"})
    assert names(Browser(u=["page_view"]).open().lines) == ["Page View"]


def enriched(line: str) -> tuple[str, dict[str, str]]:
    """An event's name, and its properties as the vendor gets them."""
    rule = Collector(CollectorConfig(SpoolConfig("memory:")))
    hit = collect_batch(rule, b"", line.encode(), {b"host": b"shop.example"}, "127.0.0.1", START * 1000).beacons[0].found
    assert isinstance(hit, Hit)
    beacon = parse(hit)
    assert isinstance(beacon, Beacon)
    return beacon.name, load(EnrichConfig(("page", "search", "campaign"))).fill(beacon, hit)


def test_a_campaign_is_seen_here_and_told_by_the_server() -> None:
    """One list of the parameters is enough: the enricher's."""
    url = SHOP + "?utm_source=news+letter&utm_medium=mail&UTM_campaign=may&utm_term=a&utm_content=b"
    browser = Browser(u=["ad_campaign"])
    (line,) = browser.open(url=url).lines
    name, properties = enriched(line)
    wanted = {"Source": "news letter", "Medium": "mail", "Name": "may", "Terms": "a", "Content": "b"}
    assert (name, properties["URL"]) == ("Ad Campaign Hit", url)
    assert {f"Campaign {what}": value for what, value in wanted.items()}.items() <= properties.items()
    assert browser.open(url=SHOP + "?utm=7&utm_source=").lines == []


def test_what_is_taken_for_a_search_engine_here_is_one_for_the_server() -> None:
    """Which one it is, and what was searched for, the enricher tells; it knows some more, of which hardly anybody comes."""
    browser = Browser(u=["search_engine"])
    hosts = [host for label in ENGINES for host in SUBDOMAINS.get(label, (f"www.{label}.com", f"{label}.co.uk"))]
    missed = set()
    for host in hosts:
        lines = browser.open(referrer=f"https://{host}/search?q=1&p=2&query=3&wd=4&text=5").lines
        for line in lines:
            name, properties = enriched(line)
            assert (name, bool(properties["Search Engine"]), bool(properties["Search Terms"])) == (
                "Search Engine Hit",
                True,
                True,
            )
        if not lines:
            missed.add(host)
    assert {host.removeprefix("www.").split(".")[0] for host in missed} == {*("mojeek", "swisscows", "petalsearch", "so")}
    assert browser.open(url="https://ask.shop.example/", referrer="https://ask.shop.example/?q=a").lines == [], "the site itself"
    for host in ("example.com", "about.google", "notgoogle.com", "brave.com", "so.example.com", "yahoo.com", "ya.example"):
        assert browser.open(referrer=f"https://{host}/?q=a").lines == [], host
    assert browser.open().lines == []


def test_the_address_can_identify_record_and_set() -> None:
    """Links in the site's own mails."""
    browser = Browser().open(url=SHOP + "?kme=Clicked&km_Plan=Pro+Max&kmi=ada")
    assert [(b.kind, b.person, b.name, b.properties) for b in collected(browser.lines)[1:]] == [
        ("e", "ada", "Clicked", {"Plan": "Pro Max"})
    ]
    assert [b.kind for b in collected(browser.open(url=SHOP + "?km_Plan=Basic").lines)] == ["s"]


def test_a_page_that_is_only_rendered_ahead_is_not_told_of() -> None:
    """Browsers render pages that nobody comes to see."""
    browser = Browser(u=["page_view"]).open(["record", "x"], prerendering=True)
    assert browser.requests == []
    browser.do("page.document.dispatch('prerenderingchange')")
    assert names(browser.lines) == ["x", "Page View"]


# Beside the vendor's script

VENDOR = """
window.KM = {vendor: 1};
window.got = [];
const Queue = function (calls) { for (const call of calls) this.push(call) };
Queue.prototype.push = function (call) {
  if (typeof call == "function") return call();
  window.got.push([call.splice(0, 1)[0], ...call]);
};
window._kmq = new Queue(window._kmq);
"""


def test_beside_the_vendors_script_each_call_is_seen_by_both_once() -> None:
    """For comparing counts: whoever comes first must leave the calls for the other."""
    browser = Browser(beside=True).open(["record", "One", {"a": 1}])
    browser.push(["record", "Two"])
    browser.run(VENDOR)
    browser.push(["record", "Three"])
    assert names(browser.lines) == ["One", "Two", "Three"]
    assert [call[1] for call in browser.do("page.window.got")] == ["One", "Two", "Three"]
    assert browser.do("page.window.KM.vendor") == 1


def test_beside_the_vendors_script_whatever_replaces_the_queue_or_its_push_is_noticed() -> None:
    """Some libraries wrap the function, some take the calls and call no function: all within a moment."""
    browser = Browser(beside=True).open(["record", "Zero"])
    browser.run(
        "const queue = window._kmq, old = queue.push; queue.push = function (call) { log('seen'); return old.call(queue, call) }"
    )
    browser.push(["record", "One"])
    browser.wait(1).push(["record", "Two"])
    assert (names(browser.lines), browser.do("browser.log").count("seen")) == (["Zero", "One", "Two"], 2)
    browser.run("window._kmq = { push(call) { log('theirs') } }").wait(1)
    assert names(browser.push(["record", "Three"]).lines) == ["Three"]
    assert "theirs" in browser.do("browser.log")


def test_beside_the_vendors_script_its_session_functions_and_callbacks_are_left_to_it() -> None:
    """Called twice, a callback submits a form twice; a session that we began would end the vendor's counting of visits."""
    browser = (
        Browser(beside=True, u=["visited_site"])
        .open(before="window._kmq = [() => log('f'), ['record', 'x', {}, () => log('c')]]")
        .wait(5)
    )
    assert not {"f", "c"} & set(browser.do("browser.log"))
    assert not [name for name in browser.cookies if name.startswith("km_")]
    browser.run(VENDOR)
    assert browser.do("browser.log").count("f") == 1


# Anything

rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20) | st.text("_kntpd&=+%?# \n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    rubbish | st.tuples(st.sampled_from(["record", "set", "identify", "alias", "trackClick", "pageView"]), rubbish, rubbish),
    max_size=5,
)
properties = st.dictionaries(
    st.text(max_size=12) | st.sampled_from(["_k", "_p", "_K", "a,b", "A:B"]) | st.text(min_size=250, max_size=260),
    st.none() | st.integers(-(2**53), 2**53) | st.text(max_size=30) | st.text("é€😀", min_size=500, max_size=520),
    max_size=6,
)


@pytest.fixture(scope="module")
def shared() -> Browser:
    return Browser().open(["identify", "ada"])


@settings(max_examples=60)
@given(calls)
def test_whatever_is_pushed_throws_nothing_and_every_line_is_a_beacon(shared: Browser, calls: list[Any]) -> None:
    """Pages push what their templates print."""
    shared.requests  # noqa: B018
    shared.push(["clearIdentity"], *calls)
    for line, found in zip(lines := shared.lines, collected(lines), strict=True):
        assert isinstance(found, Beacon) or not unquote(line.split("_n=")[-1].split("&")[0]).strip(), line


@settings(max_examples=60)
@given(st.text(max_size=20).filter(str.strip), properties)
def test_names_and_values_arrive_as_they_were_pushed(shared: Browser, name: str, props: dict[str, Any]) -> None:
    """Whatever script a site's language is written in."""
    shared.requests  # noqa: B018
    (found,) = collected(shared.push(["identify", "ada"], ["record", name, props]).lines[-1:])
    assert (found.person, found.name) == ("ada", name)
    wanted = {key[:MAX_NAME]: value for key, value in props.items() if key and reserved_name(key) is None}
    if len({fold(key) for key in wanted}) == len(wanted):  # else the vendor, too, sees one
        assert found.properties == {key: "" if value is None else str(value)[:MAX_VALUE] for key, value in wanted.items()}
