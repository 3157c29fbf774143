"""What is filled in, and that only blanks are: requests' facts in, properties out."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import ProxyProcess, SandboxProcess
from hypothesis import given
from hypothesis import strategies as st
from in_thread import InThread

from proxy.beacon import Beacon, parse
from proxy.enrich import ENRICHERS, EnricherError, Enrichment, load
from proxy.enrich.bot import is_bot
from proxy.enrich.config import DEFAULT, EnrichConfig
from proxy.enrich.geo import Geo
from proxy.enrich.language import language
from proxy.hit import Hit

Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]

CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)
IPAD = IPHONE.replace("iPhone; CPU iPhone OS 17_5", "iPad; CPU OS 16_6").replace("17.5", "16.6")
BEFORE = "https://www.google.de/search?q=teapot"


def filled(query: str = "", config: EnrichConfig | None = None, kind: str = "e", **facts: str) -> dict[str, str]:
    """What enrichment adds to an event with that query."""
    facts = {"host": "shop.example", "address": "", "user_agent": "", "referer": "", "language": "", "hints": "", **facts}
    hit = Hit(kind, f"_n=a&_p=b&{query}".encode(), b"", "default", received_ms=5, identity="", **facts)  # type: ignore[arg-type]
    beacon = parse(hit)
    assert isinstance(beacon, Beacon)
    return load(config or EnrichConfig()).fill(beacon, hit)


def test_the_page_and_where_the_visitor_came_from() -> None:
    """The Referer header of the image names the page; the page itself may name its own referrer."""
    assert filled(referer="https://shop.example/tea") == {"URL": "https://shop.example/tea"}
    foreign = filled(referer="https://news.example.org/a?b=c")
    assert foreign == {
        "URL": "https://news.example.org/a?b=c",
        "Referrer": "https://news.example.org/a?b=c",
        "Referring Domain": "news.example.org",
    }
    assert filled("Referrer=https://www.google.de/search?q%3Dteapot")["Search Engine"] == "Google"


@pytest.mark.parametrize(
    ("referrer", "engine", "terms"),
    [
        ("https://www.google.co.uk/", "Google", None),
        ("https://www.bing.com/search?q=blue+teapot", "Bing", "blue teapot"),
        ("https://duckduckgo.com/?q=tea", "DuckDuckGo", "tea"),
        ("https://search.yahoo.com/search?p=tea", "Yahoo", "tea"),
        ("https://mail.yahoo.com/", None, None),
        ("https://yandex.ru/search/?text=%D1%87%D0%B0%D0%B9", "Yandex", "чай"),
        ("https://ya.ru/search/?text=tea", "Yandex", "tea"),
        ("https://so.example/", None, None),
        ("https://google.evil", "Google", None),
        ("javascript:alert(1)", None, None),
        ("https://[::1", None, None),
    ],
)
def test_search_engines_by_their_domain(referrer: str, engine: str | None, terms: str | None) -> None:
    """Most no longer tell the terms."""
    hit = Hit("e", b"", b"", "default", "shop.example", "", "", "", "", 5)
    found = load(EnrichConfig(("search",))).fill(Beacon("e", "b", "a", 1, {"Referrer": referrer}, False), hit)
    assert (found.get("Search Engine"), found.get("Search Terms")) == (engine, terms)


def test_campaigns_and_only_when_asked_click_ids() -> None:
    """A click id names one click of one person."""
    page = "https://shop.example/?utm_source=mail&utm_medium=m&utm_campaign=May&utm_term=t&utm_content=c&gclid=G1&fbclid=F1"
    found = filled(referer=page)
    assert {name: found[name] for name in found if name.startswith("Campaign")} == {
        "Campaign Source": "mail",
        "Campaign Medium": "m",
        "Campaign Name": "May",
        "Campaign Terms": "t",
        "Campaign Content": "c",
    }
    assert "gclid" not in found
    asked = filled(referer=page, config=EnrichConfig((*DEFAULT, "clicks")))
    assert (asked["gclid"], asked["fbclid"]) == ("G1", "F1")


@pytest.mark.parametrize(
    ("user_agent", "browser", "version", "system", "device"),
    [
        (CHROME, "Chrome", "126", "Windows", "Desktop"),
        (IPHONE, "Mobile Safari", "17", "iOS", "Mobile"),
        (IPAD, "Mobile Safari", "16", "iOS", "Tablet"),
        ("Mozilla/5.0 (Android 14; Mobile; rv:127.0) Gecko/127.0 Firefox/127.0", "Firefox Mobile", "127", "Android", "Mobile"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0", "Firefox", "127", "Linux", "Desktop"),
    ],
)
def test_browser_system_and_device(user_agent: str, browser: str, version: str, system: str, device: str) -> None:
    """By the ua-parser project's data."""
    found = filled(user_agent=user_agent)
    assert (found["Browser"], found["Browser Version"]) == (browser, version)
    assert (found["Operating System"], found["Device Type"]) == (system, device)


def test_client_hints_are_preferred_to_the_user_agent() -> None:
    """The user agent is frozen; the hints are what the browser says now."""
    hints = '"Not/A)Brand";v="8", "Chromium";v="131", "Microsoft Edge";v="131"\n?1\n"Android"'
    found = filled(user_agent=CHROME, hints=hints)
    assert (found["Browser"], found["Browser Version"]) == ("Edge", "131")
    assert (found["Operating System"], found["Device Type"]) == ("Android", "Mobile")
    assert filled(user_agent=CHROME, hints="garbage")["Browser"] == "Chrome"


@pytest.mark.parametrize(
    ("header", "tag"),
    [("de-CH,de;q=0.9,en;q=0.8", "de-CH"), ("en;q=0.5, fr", "fr"), ("*", None), ("", None), ("x" * 500, None), ("de;q=0", None)],
)
def test_the_preferred_language(header: str, tag: str | None) -> None:
    """The highest weight, the first of equals."""
    assert filled(language=header).get("Language") == tag


def test_robots_are_flagged_and_people_are_not() -> None:
    """By the crawler-user-agents project's list."""
    assert filled(user_agent="Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)")["Bot"] == "true"
    assert not any(is_bot(user_agent) for user_agent in (CHROME, IPHONE, IPAD, ""))


def test_what_the_page_sent_wins_in_any_spelling() -> None:
    """Only blanks are filled."""
    found = filled("url=/mine&browser=Mine&CAMPAIGN+SOURCE=mine", user_agent=CHROME, referer="https://shop.example/?utm_source=x")
    assert (found["url"], found["browser"], found["CAMPAIGN SOURCE"]) == ("/mine", "Mine", "mine")
    assert {"URL", "Browser", "Campaign Source"}.isdisjoint(found)


@pytest.mark.parametrize("kind", ["s", "a"])
def test_sets_and_aliases_go_as_they_came(kind: str) -> None:
    """A property of a person is not one of a request."""
    assert filled(kind=kind, user_agent=CHROME, referer=BEFORE) == {}


def test_enrichers_are_switched_and_renamed_by_settings() -> None:
    """Each by its name; an empty new name leaves the property out."""
    assert filled(config=EnrichConfig(()), user_agent=CHROME) == {}
    renamed = EnrichConfig(("client",), {"Browser": "UA", "Device Type": "", "Operating System": "_k"})
    found = filled(config=renamed, user_agent=CHROME)
    assert found == {"UA": "Chrome", "Browser Version": "126"}, "a reserved name is nobody's"
    upper = EnrichConfig(("client",), {"BROWSER": "UA", "BROWSER VERSION": "", "DEVICE TYPE": "", "OPERATING SYSTEM": ""})
    assert filled(config=upper, user_agent=CHROME) == {"UA": "Chrome"}, "names in the environment are upper case"
    with pytest.raises(EnricherError, match=r"'magic'.*page, search"):
        load(EnrichConfig(("magic",)))


facts = st.text(st.characters(max_codepoint=255), max_size=300)


@given(facts, facts, facts, facts, st.sampled_from(["", "192.0.2.1"]))
def test_no_header_can_break_enrichment_and_twice_is_the_same(
    agent: str, referer: str, languages: str, hints: str, address: str
) -> None:
    """Total and pure: a resend is byte-identical."""
    config = EnrichConfig(tuple(name for name in ENRICHERS if name != "geo"))
    once = filled(config=config, user_agent=agent, referer=referer, language=languages, hints=hints, address=address)
    assert once == filled(config=config, user_agent=agent, referer=referer, language=languages, hints=hints, address=address)
    assert all(len(value) <= 512 for value in once.values())
    assert language is not None


def database(path: Path, city: str) -> None:
    from mmdb_writer import MMDBWriter
    from netaddr import IPSet

    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test-City")
    place = {
        "country": {"iso_code": "DE"},
        "subdivisions": [{"names": {"en": "Bavaria"}}],
        "city": {"names": {"en": city, "de": "x"}},
    }
    writer.insert_network(IPSet(["198.51.100.0/24"]), place)
    writer.to_db_file(str(path.with_suffix(".new")))
    path.with_suffix(".new").rename(path)


def test_places_by_the_operators_database_which_may_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monthly update needs no restart; a broken file changes nothing."""
    monkeypatch.setattr("proxy.enrich.geo.LOOK_S", 0.0)
    file = tmp_path / "city.mmdb"
    database(file, "Munich")
    config = EnrichConfig((), geo_database=str(file))
    assert filled(config=config, address="198.51.100.7") == {"Country": "DE", "Region": "Bavaria", "City": "Munich"}
    for address in ("203.0.113.1", "", "no address"):
        assert filled(config=config, address=address) == {}
    geo = Geo(str(file))
    hit = Hit("e", b"", b"", "default", "", "198.51.100.7", "", "", "", 5)
    beacon = Beacon("e", "b", "a", 1, {}, False)
    assert geo(beacon, hit)["City"] == "Munich"
    time.sleep(0.01)
    database(file, "Augsburg")
    assert geo(beacon, hit)["City"] == "Augsburg"
    file.write_bytes(b"no database")
    assert geo(beacon, hit)["City"] == "Augsburg"
    with pytest.raises(EnricherError, match="no MaxMind database"):
        load(config)


def documented_example() -> str:
    """The ten lines of docs/enrichment.md."""
    text = (Path(__file__).parent.parent / "docs/enrichment.md").read_text("utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


def test_an_enricher_of_the_operators_own_package_works_as_documented(
    tmp_path: Path, serve: Serve, sandbox: SandboxProcess
) -> None:
    """An installed package with an entry point; the example is the one in the docs."""
    package = tmp_path / "site"
    info = package / "shop_enrichers-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "shop_enrichers.py").write_text(documented_example())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-enrichers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beacon_proxy.enrichers]\ndepartment = shop_enrichers:department\n")
    os.environ["PYTHONPATH"] = str(package)
    try:
        refused = subprocess.run(
            [sys.executable, "-m", "proxy", "check"],
            env={**os.environ, "BEACON_PROXY_API_KEY": "k", "BEACON_PROXY_ENRICHERS": "page,departement"},
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 2
        assert "departement" in refused.stderr
        proxy = serve(enrichers="page,department")
        httpx.get(f"{proxy.url}/e?_n=a&_p=b", headers={"referer": "https://shop.example/teapots/blue"})
        assert sandbox.wait(1)[0]["params"]["Department"] == "teapots"
    finally:
        del os.environ["PYTHONPATH"]


def test_enrichment_is_on_by_default_and_sends_no_address(inside: Inside, sandbox: SandboxProcess) -> None:
    """Useful at once; nothing the vendor would not have seen itself."""
    proxy = inside(enrichers=None)
    httpx.get(
        f"{proxy.url}/e?_n=a&_p=b", headers={"user-agent": CHROME, "accept-language": "de", "x-forwarded-for": "198.51.100.7"}
    )
    params = sandbox.wait(1)[0]["params"]
    assert (params["Browser"], params["Language"]) == ("Chrome", "de")
    assert "198.51.100.7" not in str(params)


def test_enrichment_class_is_a_plain_function_of_its_enrichers() -> None:
    """For whoever embeds it."""
    hit = Hit("e", b"", b"", "default", "", "", "", "", "", 5)
    beacon = Beacon("e", "b", "a", 1, {"x": "y"}, False)
    assert Enrichment((lambda beacon, hit: {"x": "no", "z": "yes", "empty": ""},)).fill(beacon, hit) == {"x": "y", "z": "yes"}
