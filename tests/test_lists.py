"""Names that pass filter lists: drawn, checked, proposed; against a small list of the tests' own, and real ones where they are.

Real lists are looked for beside the checkout (../shared/lists) and where BEACON_LISTS says. They are data under licences of their
own, so they are no part of the project: where there are none, those tests are skipped, in CI too.
"""

import base64
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import clean_environment, free_port, kill_tree, listening, need, wait_for
from hypothesis import example, given
from hypothesis import strategies as st
from test_nginx import DEPLOY, MAIN
from test_paths import FINE
from typer.testing import CliRunner

import proxy
from proxy.admin.summary import read as read_spool
from proxy.cli import main
from proxy.collector.base64url import decoded
from proxy.collector.config import CollectorConfig, ScriptRules
from proxy.hit import BATCH, Hit
from proxy.lists import files, seen
from proxy.lists.addresses import LINES, Address, Part, addresses
from proxy.lists.engine import TYPES, CannotRead, FilterList
from proxy.lists.fetch import MOST_INCLUDES, Cache, cache_directory
from proxy.lists.naming import Names, Naming
from proxy.lists.sources import OFFICIAL, Source
from proxy.lists.trial import Trial, hosts_of
from proxy.lists.words import WORDS
from proxy.paste import configuration, nginx
from proxy.settings import Settings, listed, load
from proxy.spool import open_intake
from proxy.spool.port import SpoolConfig

SMALL = Path(__file__).parent / "fixtures" / "lists"
REAL = Path(os.environ.get("BEACON_LISTS") or Path(__file__).parents[2] / "shared" / "lists")
VENDOR = "https://trk.kissmetrics.io"
WHO = "Qm9yZWFzLU5vdHVzLVplcGh5cnVz"
"""A person of LINES."""
HOSTS = ["www.example.com", "www.example.org"]


@cache
def small() -> Trial:
    return Trial([FilterList(*found) for found in files.read([SMALL])], HOSTS)


@cache
def real() -> Trial:
    if not REAL.is_dir():
        pytest.skip(f"no filter lists at {REAL}; BEACON_LISTS may name a directory of them")
    lists = [FilterList(*found) for found in files.read([REAL])]
    assert len(lists) >= 1
    return Trial(lists, HOSTS)


@cache
def unforgiving() -> Trial:
    """All that any real list blocks, in one, without exceptions and what takes rules away: what passes it passes each."""
    rules = [
        rule
        for _, text, *_ in files.read([REAL])
        for rule in text.splitlines()
        if not rule.startswith("@@") and "badfilter" not in rule
    ]
    return Trial([FilterList("all", "\n".join(rules))], HOSTS)


def config(**over: Any) -> CollectorConfig:
    return CollectorConfig(SpoolConfig("memory:"), **over)


def by_b(collector: CollectorConfig) -> Part:
    """Where the script sends."""
    return Part("endpoints.b", collector.endpoints[BATCH][0])


def drawn(draw: random.Random, all_names: bool) -> Settings:
    """A configuration as `init` writes it."""
    return Settings.model_validate(
        tomllib.loads(configuration.text(Names(Naming(choose=draw.choice)), all_names, Path("/spool")))
    )


# Names


def test_the_words_are_many_short_and_each_there_once() -> None:
    """Names of two words and two digits: nearly five million."""
    assert len(set(WORDS)) == len(WORDS) >= 200
    assert all(word.isascii() and word.isalpha() and word.islower() and 2 < len(word) < 10 for word in WORDS)


def test_no_name_is_drawn_twice_for_one_configuration() -> None:
    """Each name stands for one thing."""
    names = Names(Naming())
    all_of_them = [*names.prefix.strip("/").split("-")[:2], names.script, *names.endpoints.values()]
    all_of_them += [name.rstrip("0123456789") for name in names.parameters.values()]
    assert len(set(all_of_them)) == len(all_of_them) == 11


def test_every_installation_has_names_of_its_own() -> None:
    """What two have in common could be put on a list."""
    assert len({Names(Naming()).prefix for _ in range(50)}) == 50


def test_of_a_thousand_drawn_configurations_no_list_blocks_any_address() -> None:
    """The promise. In the same run the vendor's own addresses are blocked, so these are lists that would block."""
    draw, lists = random.Random(7), real()
    checked = 0

    def passes(target: str) -> bool:
        return unforgiving().passes(target) or lists.passes(target)

    assert not passes("/e.gif?_n=x")
    for n in range(1000):
        collector = drawn(draw, all_names=n % 2 == 0).collector()
        by_name: dict[Part, list[Address]] = {}
        for address in addresses(collector):
            by_name.setdefault(address.name, []).append(address)
        for some in by_name.values():
            for address in draw.sample(some, min(2, len(some))):
                assert passes(address.target()), address
                checked += 1
        who = base64.urlsafe_b64encode(draw.randbytes(18)).decode("ascii")
        image = Address(Part("prefix", collector.prefixes[0]), by_b(collector), line=draw.choice(LINES).replace(WHO, who))
        assert who not in LINES[0]
        assert passes(image.target()), image
    assert checked > 14_000
    report = lists.run(collector, [VENDOR])
    assert not report.blocked
    assert report.control.blocked.keys() == set(report.control.asked)
    for script in ("/kissmetrics.js", "/beacon.js", "/e.gif?_n=x"):
        assert {kind for _, kind in lists.blocking(script)} == set(TYPES)


@pytest.mark.parametrize("where", ["small", "real"])
def test_every_word_passes_wherever_it_may_stand(where: str) -> None:
    """Else a configuration would now and then be a bad one."""
    lists = {"small": small, "real": real}[where]()
    for word in WORDS:
        for target in (f"/{word}/e?_n=x", f"/{word}?_n=x", f"/x7/{word}?_p=x", f"/{word}.js", f"/x7/e?{word}3=x&_p=y"):
            assert lists.passes(target), target


# What settings refuse


ENDPOINT, SCRIPT = {"image", "ping", "xhr"}, {"script"}
"""How browsers ask for which."""


def blocked_as(target: str) -> set[str]:
    """The types as which real lists block it, with a query that clients send, or without."""
    queries = ("", "?_n=Viewed&_p=x&Product=Tea", "?_p=x&_n=Viewed")
    return {kind for query in queries for _, kind in real().blocking(target + query)}


def test_what_settings_refuse_is_really_blocked() -> None:
    """As a prefix, an endpoint or a script, exactly as it would be served and asked for."""
    for path in (*listed._SEGMENTS, "468x60", "728x90", "480x60", "x-728x90", "468x60-y", "ad", "ads", "adv", "hitch"):
        assert listed.why_prefix(path), path
        assert blocked_as(f"/{path}/e") & ENDPOINT, path
    for path in listed._SEGMENTS:
        assert blocked_as(f"/shop/{path}/x/e") & ENDPOINT, path
    for path in listed._SCRIPT_SEGMENTS:
        assert (listed.why_prefix(path), listed.why_prefix(path, script=True) != "") == ("", True), path
        assert blocked_as(f"/{path}/willow.js") & SCRIPT, path
        assert not blocked_as(f"/{path}/e") & ENDPOINT, path
    for name in (*listed._ENDPOINTS, "my_beacon", "log_beacon", "e.gif", "pixel.gif"):
        assert listed.why_endpoint(name), name
        assert blocked_as(f"/x7/{name}") & ENDPOINT, name
    for name in ("count", "counter", "clk", "hit", "hits", "hitlist"):
        assert (listed.why_endpoint(name), listed.why_endpoint(name, root=True) != "") == ("", True), name
        assert blocked_as(f"/{name}") & ENDPOINT, name
        assert not blocked_as(f"/x7/{name}") & ENDPOINT, name
    for name in listed._SCRIPTS:
        assert blocked_as(f"/x7/{name}.js") & SCRIPT, name
    assert (listed.why_script("b"), blocked_as("/x7/b.js")) == ("", set())
    assert blocked_as("/b.js") & SCRIPT


def test_what_settings_let_pass_though_it_looks_bad_passes_the_lists(tmp_path: Path) -> None:
    """Nobody is refused a name for how it sounds."""
    for toml in FINE:
        (tmp_path / "c.toml").write_text(toml)
        for blocked in real().run(load(tmp_path / "c.toml", {}).collector(), [VENDOR]).blocked:
            assert not set(blocked.types) & (SCRIPT if blocked.setting == "script" else ENDPOINT), (toml, blocked)


# The trial


def test_the_guilty_part_is_named_with_its_rule_and_a_name_that_passes() -> None:
    """Each kind of part in turn; what is innocent is not named."""
    found = small().run(
        config(
            prefixes=("/okapi", "/tapir", "/x7"),
            endpoints={"e": ("narwhal", "lark"), "s": ("tapir",)},
            parameters={"_n": ("wombat",), "_p": ("moss4",)},
            script=ScriptRules(("quokka", "willow")),
        ),
        [VENDOR],
    )
    told = {(blocked.setting, blocked.found): blocked for blocked in found.blocked}
    assert told.keys() == {
        ("prefix", "/okapi"),
        ("endpoints.e", "narwhal"),
        ("script", "quokka"),
        ("parameters._n", "wombat"),
    }
    assert told["prefix", "/okapi"].rule == "/okapi/*$~xmlhttprequest"
    assert told["prefix", "/okapi"].types == ["image", "ping", "script"]
    assert told["endpoints.e", "narwhal"].list == "small.txt"
    instead = {name: blocked.instead for name, blocked in told.items()}
    assert all(instead.values())
    mended = config(
        prefixes=(instead["prefix", "/okapi"], "/tapir", "/x7"),
        endpoints={"e": (instead["endpoints.e", "narwhal"], "lark"), "s": ("tapir",)},
        parameters={"_n": (instead["parameters._n", "wombat"],), "_p": ("moss4",)},
        script=ScriptRules((instead["script", "quokka"], "willow")),
    )
    assert not small().run(mended, [VENDOR]).blocked


def test_where_path_and_parameter_are_guilty_together_one_of_them_is_replaced() -> None:
    """`/tapir?*&capybara=`: another name of the endpoint does."""
    query = (("_n", "x"), ("capybara", "1"))
    [blocked] = small().run(config(prefixes=("/x7",), endpoints={"e": ("tapir",)}), [VENDOR], {"e": (query,)}).blocked
    assert (blocked.setting, blocked.example) == ("endpoints.e", "/x7/tapir?_n=…&capybara=…")


def test_what_no_single_name_mends_is_told_all_the_same() -> None:
    """A list may block everything on a host."""
    everything = Trial([FilterList("all", "||example.com^")], ["www.example.com"])
    report = everything.run(config(prefixes=("/x7",)), [VENDOR])
    assert [(blocked.setting, blocked.found, blocked.instead) for blocked in report.blocked] == [("host", "www.example.com", "")]
    assert report.blocked[0].addresses == report.addresses


def test_some_rules_are_for_hosts_of_com_alone_so_one_of_them_is_asked_for() -> None:
    """`.com/axolotl/$ping`."""
    assert hosts_of(config(hosts={"shop.example": "shop", "*.b.example": "b"})) == ["shop.example", "www.b.example", HOSTS[0]]
    assert hosts_of(config(), ["a.com"]) == ["a.com"]
    assert hosts_of(config(hosts={"www.a.com": "a", "*.a.com": "a"})) == ["www.a.com"]
    [blocked] = small().run(config(prefixes=("/axolotl",)), [VENDOR]).blocked
    assert blocked.types == ["ping"]


def test_the_one_rule_is_named_though_the_engine_joins_many() -> None:
    """Real lists have thousands that look alike."""
    rules = "\n".join(f"/animal{n}.js" for n in range(300)) + "\n@@/animal7.js\n"
    many = FilterList("many", rules)
    page = "https://www.example.com/"
    assert many.blocks(f"{page}x/animal123.js", page, "script") == ("many", "/animal123.js")
    assert many.blocks(f"{page}x/animal7.js", page, "script") is None


def test_aliases_are_checked_as_pages_write_them() -> None:
    """Plain, by alias, and by mark and base64url."""
    targets = [
        address.target()
        for address in addresses(
            config(parameters={"_n": ("moss4",), "*": ("oak2-",)}), {"e": ((("_n", "x"), ("Preis €", "1")),)}
        )
    ]
    assert "/e?_n=x&Preis%20%E2%82%AC=1" in targets
    assert "/e?moss4=x&Preis%20%E2%82%AC=1" in targets
    assert "/e?moss4=x&oak2-UHJlaXMg4oKs=1" in targets


def test_images_of_the_script_are_among_the_addresses() -> None:
    """As lines that it could have made, by each name of the call; nothing of them is shown."""
    config_ = config(prefixes=("/x7",), endpoints={"b": ("finch",)})
    by_line = [address for address in addresses(config_) if address.line]
    assert {address.name.found for address in by_line} == {"b", "finch"}
    for address in by_line:
        path, _, query = address.target().partition("?")
        assert (decoded(query.encode()) or b"").decode() == address.line
        assert re.fullmatch(r"[esa]\?[!-~]{1,20000} [!-~]*", address.line)
        assert address.shown() == f"{path}?…"


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=5))
def test_an_address_is_one_whatever_a_page_sends_and_people_see_no_value(pairs: list[tuple[str, str]]) -> None:
    """Names and values in the spool come from anybody."""
    hit = Hit(
        "e", b"&".join(f"{name}={value}".encode("utf-8", "replace") for name, value in pairs), b"", "", "", "", "", "", "", 0
    )
    for queries in seen.queries([hit]).values():
        for query in queries:
            address = Address(Part("prefix", "/x7"), Part("endpoints.e", "e"), tuple((Part("p", n), v) for n, v in query))
            assert address.target().isascii()
            assert address.shown().count("=…") == len(query)
            small().passes(address.target())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_told_to_be_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A list comes from elsewhere."""
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_bytes(content)
    [(name, text)] = files.read([file])
    FilterList(name, text).blocks("https://a.com/e?_n=x", "https://a.com/", "image")


RULES = st.lists(
    st.text("/|^*$@#~!=,.()[]{}\\+?abé\0\n:-", max_size=30).map(lambda text: f"{text}$image,domain={text}"), max_size=8
)


@given(RULES | st.lists(st.text("/|^*$@#~!=,.()[]{}\\+?abé\0\n:-", max_size=40), max_size=8))
@example(["/|"])
def test_rules_of_any_shape_give_an_answer_or_are_refused(rules: list[str]) -> None:
    """Also those that are no rule, and those that the engine falls over only when it is asked."""
    with contextlib.suppress(CannotRead):
        FilterList("hostile", "\n".join(rules)).blocks("https://a.com/a/b?a=b", "https://a.com/", "script")


def test_what_cannot_be_a_list_is_refused_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large, a device, a pipe, nothing there, an empty directory."""
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    (tmp_path / "large").write_bytes(b"x" * 1001)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "large", tmp_path / "pipe", tmp_path / "empty", tmp_path / "none", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(CannotRead) as refused:
            files.read([place])
        assert place.name.replace("\0", "\\x00") in str(refused.value)
        assert "expected" in str(refused.value)


# The official lists


class Publisher(BaseHTTPRequestHandler):
    """A server of lists. /TEXT.txt has an ETag, /slow trickles, /portal is a login page, /big never ends, anything else fails."""

    asked: list[tuple[str, str]] = []

    def hostile(self) -> bytes:
        """One that includes itself and a hundred others, each of which does the same."""
        more = "".join(f"!#include hostile{n}-{len(self.path)}.txt\n" for n in range(100))
        return f"! Title: x\n!#include {self.path[1:]}\n{more}".encode()

    def do_GET(self) -> None:
        given = self.headers.get("if-none-match", "")
        self.asked.append((self.path, given))
        if self.path.endswith(".txt"):
            body = (
                self.hostile()
                if self.path.startswith("/hostile")
                else b"! Title: x\n!#include part.txt\n||kissmetrics.io^\n"
                if self.path == "/whole.txt"
                else b"! Title: x\n/quokka.js\n"
            )
            self.send_response(304 if given == '"one"' else 200)
            self.send_header("ETag", '"one"')
            self.end_headers()
            if given != '"one"':
                self.wfile.write(body)
            return
        self.send_response({"/slow": 200, "/portal": 200, "/big": 200}.get(self.path, 503))
        self.end_headers()
        try:
            for _ in range(200 if self.path in ("/slow", "/big") else 0):
                self.wfile.write(b"! x\n" * (1 if self.path == "/slow" else 20_000))
                time.sleep(0.02 if self.path == "/slow" else 0)
            self.wfile.write(b"<html>please log in</html>" if self.path == "/portal" else b"")
        except OSError:
            pass  # the reader had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    Publisher.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_lists_are_fetched_once_kept_and_then_asked_for_by_condition(tmp_path: Path, publisher: str) -> None:
    """Their authors pay for the traffic. A list brings those that it includes."""
    now = 1_000_000.0
    told: list[tuple[str, int]] = []

    def look(**how: Any) -> dict[str, str]:
        cache = Cache(tmp_path / "cache", [Source("whole", f"{publisher}/whole.txt")], now_s=lambda: now)
        found = cache.lists(progress=lambda name, of: told.append((name, of)), **how)
        assert not any(listing.note for listing in found)
        return {listing.name: listing.text for listing in found}

    first = look()
    assert first.keys() == {"whole", "whole-part"}
    assert "||kissmetrics.io^" in first["whole"]
    assert told == [("whole", 1), ("whole-part", 2)]
    assert look() == first
    assert Publisher.asked == [("/whole.txt", ""), ("/part.txt", "")]
    now += 3.9 * 86_400
    assert look() == first
    assert len(Publisher.asked) == 2
    now += 0.2 * 86_400
    assert look() == first
    assert Publisher.asked[2:] == [("/whole.txt", '"one"'), ("/part.txt", '"one"')]
    assert look() == first
    assert len(Publisher.asked) == 4
    assert look(refresh=True) == first
    assert len(Publisher.asked) == 6
    now += 30 * 86_400
    assert Cache(tmp_path / "cache", [Source("whole", f"{publisher}/whole.txt")], now_s=lambda: now).lists(offline=True)
    assert len(Publisher.asked) == 6


def test_includes_are_one_deep_and_few(tmp_path: Path, publisher: str) -> None:
    """Whatever a list says."""
    found = Cache(tmp_path, [Source(name, f"{publisher}/{name}.txt") for name in ("hostile", "hostile-too")]).lists()
    assert len(found) == len(Publisher.asked) == 2 + MOST_INCLUDES
    assert {listing.name.count("hostile") for listing in found} == {1, 2}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/gone", "answered 503"),
        ("/portal", "is no filter list"),
        ("/slow", "took more than 0.2 s"),
        ("/big", "has more than"),
        (None, "cannot be reached"),
    ],
)
def test_when_fetching_fails_the_copy_is_used_and_said_so(
    tmp_path: Path, publisher: str, monkeypatch: pytest.MonkeyPatch, path: str | None, why: str
) -> None:
    """Better an old list than none; and none is told as such. Neither time nor size is without bound."""
    monkeypatch.setattr("proxy.lists.fetch.MAX_BYTES", 100_000)
    url = f"{publisher}{path}" if path else f"http://127.0.0.1:{free_port()}/"
    now = 1_000_000.0
    sources = [Source("one", url)]
    with pytest.raises(CannotRead, match="no filter list can be had: one: "):
        Cache(tmp_path, sources, now_s=lambda: now, list_s=0.2).lists()
    (tmp_path / "one.txt").write_text("! the copy\n")
    (tmp_path / "one.json").write_text(json.dumps({"url": url, "fetched_s": now - 9 * 86_400}))
    [found] = Cache(tmp_path, sources, now_s=lambda: now, list_s=0.2).lists()
    assert found.text == "! the copy\n"
    assert why in found.note
    assert "9 days old" in found.note


def test_a_broken_copy_is_as_good_as_none(tmp_path: Path, publisher: str) -> None:
    """A disk may have been full."""
    source = Source("one", f"{publisher}/one.txt")
    (tmp_path / "one.txt").write_bytes(b"\xff\xfe")
    for known in (b"", b"{", b'{"url": 1}', b'{"url": "http://elsewhere/", "fetched_s": 1}'):
        (tmp_path / "one.json").write_bytes(known)
        [found] = Cache(tmp_path, [source], now_s=lambda: 5.0).lists()
        assert "/quokka.js" in found.text


def test_the_cache_is_where_the_user_wants_it() -> None:
    """XDG base directories: what is relative does not count."""
    assert cache_directory({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/beacon-proxy/lists")
    assert cache_directory({"XDG_CACHE_HOME": "c", "HOME": "/h"}) == Path("/h/.cache/beacon-proxy/lists")


def test_a_cache_that_cannot_be_written_hinders_nobody(tmp_path: Path, publisher: str) -> None:
    """The lists are used, and it is said."""
    (tmp_path / "file").write_text("")
    [found] = Cache(tmp_path / "file" / "lists", [Source("one", f"{publisher}/one.txt")]).lists()
    assert "/quokka.js" in found.text
    assert "cannot be kept" in found.note


# The commands


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Exit status, output and errors of a command, in a directory of its own."""
    for name in [name for name in os.environ if name.startswith("BEACON_PROXY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        def whole() -> None:
            try:
                main.app(list(arguments), standalone_mode=True)
            except main.PLAIN as error:
                main.tell(error)
                sys.exit(2)

        return _captured(whole)

    return run


def _captured(work: Callable[[], None]) -> tuple[int, str, str]:
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            work()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, out.getvalue(), err.getvalue()


Command = Callable[..., tuple[int, str, str]]


def test_init_writes_a_configuration_that_checks_and_passes(tmp_path: Path) -> None:
    """As a user calls it, from nothing to a good configuration; and it is this installation's own."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            cwd=tmp_path,
            env=clean_environment(BEACON_PROXY_API_KEY="k", PYTHONPATH=str(Path(__file__).parents[1])),
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = run("init", "--host", "www.shop.example")
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "beacon-proxy.toml"
    assert not file.stat().st_mode & 0o137
    assert list(tmp_path.iterdir()) == [file]
    loaded = load(file, {})
    for part in (
        loaded.prefix[0],
        loaded.script[0],
        loaded.endpoints["e"][0],
        loaded.parameters["_n"][0],
        "integrity=",
        "check-path",
    ):
        assert part in done.stdout
    assert loaded.spool == f"sqlite:{tmp_path / 'spool'}"
    assert f'src="https://www.shop.example{loaded.prefix[0]}/{loaded.script[0]}.js"' in done.stdout
    checked = run("check", "--config", "beacon-proxy.toml")
    assert (checked.returncode, "The configuration is good." in checked.stdout) == (0, True)
    assert f"under {tmp_path / 'spool'} (fsync)" in checked.stdout
    passed = run("check-path", "--config", "beacon-proxy.toml", str(SMALL))
    assert (passed.returncode, "Nothing is blocked." in passed.stdout, passed.stderr) == (0, True, "")


def test_init_leaves_a_file_that_is_there(command: Command, tmp_path: Path) -> None:
    """Its names stand in pages. --force is the way to say that they don't."""
    file = tmp_path / "c.toml"
    file.write_text("# mine\n")
    status, out, err = command("init", "c.toml")
    assert (status, out, file.read_text()) == (2, "", "# mine\n")
    assert "c.toml" in err
    assert "--force" in err
    assert command("init", "c.toml", "--force", "--all-names")[0] == 0
    assert load(file, {}).parameters["*"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]
    for place in (".", "none/c.toml"):
        status, _, err = command("init", place, "--force")
        assert (status, "cannot be written" in err) == (2, True)


def test_properties_keep_their_names_unless_it_is_wanted(command: Command, tmp_path: Path) -> None:
    """Simplest for a newcomer: what he sends is what he sees."""
    assert command("init")[0] == 0
    assert "*" not in load(tmp_path / "beacon-proxy.toml", {}).parameters


def test_the_spool_is_the_same_one_from_wherever_a_command_is_called(command: Command, tmp_path: Path) -> None:
    """A path that depends on the directory would quietly be a second, empty spool."""
    (tmp_path / 'x "y\\z').mkdir()
    for arguments, spool in (
        (['x "y\\z/c.toml'], tmp_path / 'x "y\\z' / "spool"),
        (["b.toml", "--spool", "/var/lib/beacon-proxy"], Path("/var/lib/beacon-proxy")),
    ):
        assert command("init", *arguments)[0] == 0
        assert load(tmp_path / arguments[0], {}).spool == f"sqlite:{spool}"
    assert command("init", "d.toml", "--spool", "a\x1bb")[0] == 2
    assert not (tmp_path / "d.toml").exists()


SITE = """
prefix = ["/new-one", "/old.one"]
script = "willow"
spool = "sqlite:spool"
[endpoints]
e = "lark"
b = "finch"
[parameters]
_n = "moss4"
"""


def test_snippet_prints_one_part_alone_or_all(command: Command, tmp_path: Path) -> None:
    """`beacon-proxy snippet nginx > FILE` must be a file that nginx takes."""
    (tmp_path / "c.toml").write_text(SITE)
    parts = {part: command("snippet", part, "-c", "c.toml") for part in ("nginx", "html", "csp")}
    assert all((status, err) == (0, "") for status, _, err in parts.values())
    _, text, _ = parts["nginx"]
    assert text.startswith("#")
    assert text.count("location ^~ /new-one/ {") == text.count("location ^~ /old.one/ {") == 1
    assert r"location ~ ^/old\.one/(e|lark|s|a|b|finch)$ {" in text
    assert "/x7" not in text
    _, text, _ = parts["html"]
    queue = "<script>var _kmq = _kmq || [];</script>\n"
    assert f'{queue}<script async src="/new-one/willow.js"></script>' in text
    assert f'{queue}<script async src="/new-one/willow.js" integrity=' in text
    assert "Content-Security-Policy forbids inline" in text
    assert '<script async src="/new-one/willow.js" integrity="sha384-' in text
    assert "_kms('/new-one/willow.js')" in text
    assert '<img src="/new-one/lark?moss4=Viewed%20Product&amp;Product=Teapot"' in text
    assert "API" not in text
    policy, inline = parts["csp"][1].splitlines()
    assert policy == "Content-Security-Policy: script-src 'self'; img-src 'self'; connect-src 'self'"
    assert "nonce" in inline
    whole = command("snippet", "-c", "c.toml")[1]
    assert all(out in whole for _, out, _ in parts.values())
    assert "no script" in command("snippet", "html")[1].lower()
    assert command("snippet", "apache", "-c", "c.toml")[0] == command("snippet", "html", "--host", "a/b")[0] == 2


def test_beside_the_vendors_script_ours_is_there_first(command: Command, tmp_path: Path) -> None:
    """It must see the queue before that one empties it; and the vendor's snippet stays in the page as it is."""
    (tmp_path / "c.toml").write_text(f"script_beside_vendor = true\n{SITE}")
    text = command("snippet", "html", "-c", "c.toml")[1]
    assert '<script src="/new-one/willow.js">' in text
    assert "without async" in text
    assert "<script async" not in text
    assert "_kms" not in text


@pytest.mark.parametrize("prefix", ["/x7/y", "/a/x7/b", "/x7", "/a/x7"])
def test_a_prefix_may_look_like_the_examples(prefix: str) -> None:
    """What was put in is not replaced again."""
    text = nginx.locations(config(prefixes=(prefix,)))
    for line in (f"location ^~ {prefix}/ {{", f"location ~ ^{prefix}/(e|s|a|b)$ {{", f"location = {prefix}/fallback {{"):
        assert text.count(line) == 1


def test_each_site_has_a_script_of_its_own(command: Command, tmp_path: Path) -> None:
    """Their settings, and so their integrity, may differ; a host names its site."""
    (tmp_path / "c.toml").write_text(
        SITE + '[sites.tea]\nhosts = ["*.tea.example"]\napi_key = "k"\n[sites.pot]\nhosts = ["pot.example"]\napi_key = "k"\n'
    )
    out = command("snippet", "html", "-c", "c.toml")[1]
    assert [line.split(";")[0] for line in out.splitlines() if "The script" in line] == [
        "<!-- The script, site tea",
        "<!-- The script, site pot",
    ]
    out = command("snippet", "html", "-c", "c.toml", "--host", "www.tea.example")[1]
    assert out.count("The script, site tea") == out.count("The script") == 1
    assert 'src="https://www.tea.example/new-one/willow.js"' in out


def test_a_live_file_is_replaced_whole_or_left_as_it_is(command: Command, tmp_path: Path) -> None:
    """`>` of a shell empties it before anything is looked at."""
    (tmp_path / "c.toml").write_text(SITE)
    live = tmp_path / "live.conf"
    live.write_text("# live")
    assert command("snippet", "nginx", "-c", "c.toml", "--output", "live.conf") == (0, "", "")
    new = live.read_text()
    assert (new, live.stat().st_mode & 0o777) == (command("snippet", "nginx", "-c", "c.toml")[1], 0o644)
    for arguments in (["nginx"], ["nginx", "-c", "none.toml"], ["-c", "c.toml"]):
        assert command("snippet", *arguments, "--output", "live.conf")[:2] == (2, "")
    assert live.read_text() == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml", "live.conf"]


def test_another_port_is_to_be_named_in_nginxs_other_file(command: Command, tmp_path: Path) -> None:
    """Else nginx answers every beacon itself, and looks well."""
    (tmp_path / "c.toml").write_text(f"port = 9000\n{SITE}")
    assert "server 127.0.0.1:9000" in command("snippet", "nginx", "-c", "c.toml")[2]
    assert command("snippet", "html", "-c", "c.toml")[2] == ""
    (tmp_path / "c.toml").write_text(f"port = 0\n{SITE}")
    assert "expected one that stays" in command("snippet", "nginx", "-c", "c.toml")[2]


@pytest.mark.parametrize(
    ("toml", "why"), [("", "prefix: found none"), ('prefix = "x"\nendpoints = {e = "fallback"}', "'fallback'")]
)
def test_what_nginx_cannot_be_told_is_refused_with_the_reason(command: Command, tmp_path: Path, toml: str, why: str) -> None:
    """Without a prefix the location would be the whole site."""
    (tmp_path / "c.toml").write_text(toml)
    status, out, err = command("snippet", "nginx", "-c", "c.toml")
    assert (status, out, "Traceback" in err) == (2, "", False)
    assert why in err
    assert "expected" in err


def test_the_location_is_found_in_the_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written once, in deploy/, and the wheel takes it along (CI runs `init` from the built wheel)."""
    ours = (DEPLOY / "nginx" / "beacon-location.conf").read_text()
    assert nginx.source() == ours
    wheel = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    [(there, inside)] = wheel["force-include"].items()
    assert ((DEPLOY.parent / there / "beacon-location.conf").read_text(), inside) == (ours, "proxy/deploy/nginx")
    place = tmp_path / inside
    place.mkdir(parents=True)
    (place / "beacon-location.conf").write_text("installed")
    monkeypatch.setattr(proxy, "__file__", str(tmp_path / "proxy" / "__init__.py"))
    assert nginx.source() == "installed"
    (place / "beacon-location.conf").unlink()
    with pytest.raises(nginx.CannotPaste, match="reinstall"):
        nginx.source()


def test_nginx_takes_the_location_and_brings_every_address_to_the_collector(command: Command, tmp_path: Path) -> None:
    """Two prefixes, each call by each of its names, in the real program; and its fallback when the collector is gone."""
    file, port, collector = tmp_path / "c.toml", free_port(), free_port()
    file.write_text(SITE)
    program = need("nginx", "nginx-light")
    location = command("snippet", "nginx", "-c", "c.toml")[1].replace("/var/log/nginx", str(tmp_path))
    (tmp_path / "location.conf").write_text(location)
    http = (DEPLOY / "nginx" / "beacon-http.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{collector}")
    (tmp_path / "beacon-http.conf").write_text(http.replace("/var/cache/nginx-beacon", str(tmp_path / "kept")))
    (tmp_path / "example-server.conf").write_text(f"server {{ listen 127.0.0.1:{port}; include {tmp_path}/location.conf; }}")
    main_file = tmp_path / "nginx.conf"
    main_file.write_text(MAIN.format(place=tmp_path, user="user root;" if os.geteuid() == 0 else ""))
    command_line = [program, "-p", str(tmp_path), "-c", str(main_file)]
    tested = subprocess.run([*command_line, "-t"], capture_output=True, text=True, timeout=20)
    assert tested.returncode == 0, tested.stderr
    environment = clean_environment(
        BEACON_PROXY_CONFIG=str(file),
        BEACON_PROXY_API_KEY="k",
        BEACON_PROXY_UPSTREAM="http://127.0.0.1:9",
        BEACON_PROXY_PORT=str(collector),
        BEACON_PROXY_ADMIN_PORT="0",
        BEACON_PROXY_ENRICHERS="page",
        PYTHONPATH=str(Path(__file__).parents[1]),
    )
    import httpx

    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen([sys.executable, "-m", "proxy", "serve"], env=environment, cwd=tmp_path, stdout=log, stderr=log)
        front = subprocess.Popen(command_line, stderr=log)
    try:
        wait_for(lambda: listening(port), "nginx")
        wait_for(
            lambda: httpx.head(f"http://127.0.0.1:{collector}/new-one/e").status_code == 200 if listening(collector) else False,
            "it",
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for prefix in ("/new-one", "/old.one"):
                for name in ("e", "lark", "s", "a"):
                    answer = client.get(f"{prefix}/{name}?moss4=n&_p=p&x=1")
                    assert (answer.status_code, answer.content[:6]) == (200, b"GIF89a"), answer.url
                for name in ("b", "finch"):
                    assert client.post(f"{prefix}/{name}", content=b"").status_code == 200
                assert client.get(f"{prefix}/elsewhere").status_code == 404
            assert client.get("/oldXone/e").status_code == 404
            spool = SpoolConfig(f"sqlite:{tmp_path / 'spool'}")
            wait_for(lambda: read_spool(spool)["received"] >= 8, "the beacons in the ledger")
            assert not (tmp_path / "beacon-lost.jsonl").read_text()
            kill_tree(serve.pid)
            serve.wait()
            for path in ("/new-one/lark", "/old.one/finch"):
                assert client.get(f"{path}?moss4=n").content.startswith(b"GIF89a")
            wait_for(lambda: (tmp_path / "beacon-lost.jsonl").read_text().count('"}\n') == 2, "the lines")
    finally:
        kill_tree(serve.pid)
        serve.wait()
        front.terminate()
        front.wait(timeout=20)


def test_check_path_says_what_is_blocked_by_which_rule_and_what_would_pass(command: Command, tmp_path: Path) -> None:
    """For people as a table, for scripts as one line; exit status 1 for both."""
    (tmp_path / "c.toml").write_text('prefix = "okapi"\nscript = "quokka"\nspool = "sqlite:spool"')
    status, out, err = command("check-path", "-c", "c.toml", str(SMALL / "small.txt"))
    assert (status, err) == (1, "")
    for part in (
        "/okapi/*$~xmlhttprequest",
        "/quokka.js",
        "small.txt",
        "image ping script",
        "Control: of 5 hosts of the vendor",
        "--query 'Product=",
        "instead",
    ):
        assert part in out
    status, out, _ = command("check-path", "-c", "c.toml", str(SMALL), "--json", "--host", "www.shop.example")
    report = json.loads(out)
    assert status == 1
    assert report["hosts"] == ["www.shop.example", "www.example.com"]
    for blocked in report["blocked"]:
        (tmp_path / "c.toml").write_text(
            (tmp_path / "c.toml").read_text().replace(blocked["found"].strip("/"), blocked["instead"])
        )
    assert command("check-path", "-c", "c.toml", str(SMALL))[0] == 0


def test_check_path_asks_with_the_names_that_pages_send_and_shows_no_value(command: Command, tmp_path: Path) -> None:
    """A list may block a parameter that only this site has; values are visitors' data."""
    (tmp_path / "c.toml").write_text(SITE)
    intake = open_intake(SpoolConfig(f"sqlite:{tmp_path / 'spool'}", "os"))
    intake.append_blocking(Hit("e", b"_n=Viewed&wombat=someone%40example.com", b"", "default", "", "", "", "", "", 1))
    intake.close()
    status, out, err = command("check-path", "-c", "c.toml", str(SMALL))
    assert status == 1
    assert "parameters.wombat" in out
    assert "_n=…&wombat=…" in out
    assert "someone" not in out + err
    assert "1 beacons in the spool" in out
    assert "--query '" not in out


def test_names_of_properties_may_be_said_where_the_spool_is_empty(command: Command, tmp_path: Path) -> None:
    """As it is where all is well."""
    (tmp_path / "c.toml").write_text(SITE)
    arguments = ("check-path", "-c", "c.toml", str(SMALL), "--query")
    status, out, _ = command(*arguments, "moss4=Viewed&wombat=some one€", "--query", "Product=Tea")
    assert (status, "parameters.wombat" in out, "2 --query" in out, "some" in out) == (1, True, True, False)
    assert command(*arguments, "Product=Tea")[0] == 0
    status, _, err = command(*arguments, "wombat")
    assert (status, "found 'wombat'" in err) == (2, True)


@pytest.mark.parametrize(
    "content",
    [b"", b"! nothing\n", bytes(range(256)) * 4, b"<!doctype html><html><body>502</body></html>", b'prefix = "/x7"\n'],
    ids=["empty", "comments", "bytes", "page", "settings"],
)
def test_what_does_not_even_block_the_vendor_says_nothing(command: Command, tmp_path: Path, content: bytes) -> None:
    """The wrong file would say that all is well."""
    (tmp_path / "none.txt").write_bytes(content)
    status, out, err = command("check-path", "none.txt")
    assert (status, "Nothing is blocked." in out) == (2, False)
    assert "hardly filter lists" in err
    status, out, _ = command("check-path", "none.txt", "--json")
    assert (status, json.loads(out)["control_failed"]) == (2, True)


def test_the_control_counts_no_rule_that_is_for_any_third_party(command: Command, tmp_path: Path) -> None:
    """Nor an upstream on this machine."""
    (tmp_path / "any.txt").write_text("*$ping,third-party\n||127.0.0.1^\n/i.js$third-party\n")
    (tmp_path / "c.toml").write_text('upstream = "http://127.0.0.1:9"')
    status, out, _ = command("check-path", "any.txt", "-c", "c.toml", "--json")
    control = json.loads(out)["control"]
    assert (status, control["blocked"], "127.0.0.1" in control["asked"]) == (2, {}, False)
    (tmp_path / "any.txt").write_text("*$ping,third-party\n||i.kissmetrics.io^\n")
    assert json.loads(command("check-path", "any.txt", "--json")[1])["control"]["blocked"].keys() == {"i.kissmetrics.io"}


def test_a_list_without_rules_is_named_and_names_obey_nothing(command: Command, tmp_path: Path) -> None:
    """Beside a good one nobody would see it. And the name of a file may be anything."""
    (tmp_path / "em\x1b]0;pty.txt").write_text("! nothing\n[Adblock]\n")
    status, out, err = command("check-path", "em\x1b]0;pty.txt", str(SMALL))
    assert (status, "pty.txt: has no rule" in err, "\x1b" in out + err) == (0, True, False)
    status, out, err = command("check-path", "no\x1b]0;ne.txt")
    assert (status, "\x1b" in out + err) == (2, False)
    assert "\x1b" not in "".join(command("init", "c\x1b]0;.toml")[1:])


def test_where_all_of_a_host_is_blocked_it_is_the_host(command: Command, tmp_path: Path) -> None:
    """Other names would not help."""
    (tmp_path / "own.txt").write_text("||shop.example^\n||kissmetrics.io^\n")
    status, out, _ = command("check-path", "own.txt", "--host", "shop.example")
    assert (status, "only another host" in out, "What stands under" in out) == (1, True, False)


def test_check_path_offline_uses_the_copies_and_else_says_what_is_missing(command: Command, tmp_path: Path) -> None:
    """In a pipeline without the network, say."""
    status, out, err = command("check-path", "--offline")
    assert (status, out) == (2, "")
    assert "no filter list can be had" in err
    cache = tmp_path / "cache" / "beacon-proxy" / "lists"
    cache.mkdir(parents=True)
    (cache / "easyprivacy.txt").write_text((SMALL / "small.txt").read_text())
    source = next(source for source in OFFICIAL if source.name == "easyprivacy")
    (cache / "easyprivacy.json").write_text(json.dumps({"url": source.url, "fetched_s": time.time() - 5 * 86_400}))
    status, out, err = command("check-path", "--offline")
    assert (status, "1 lists: easyprivacy." in out) == (0, True)
    assert "easyprivacy: 5 days old" in err
    assert "easylist: not in the cache" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--offline", "--refresh"], "--offline"),
        (["none.txt"], "none.txt"),
        (["https://lists.example/easylist.txt"], "addresses are not taken"),
        (["--host", "a b"], "host name"),
        (["--offline", "x.txt"], "LIST"),
        (["-c", "none.toml"], "none.toml"),
    ],
)
def test_wrong_use_of_check_path_ends_with_status_2(command: Command, arguments: list[str], said: str) -> None:
    """And a sentence."""
    status, out, err = command("check-path", *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_without_the_extra_it_is_said_which(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched. `init` and `snippet` need it not."""
    monkeypatch.setitem(sys.modules, "adblock", None)
    status, out, err = command("check-path")
    assert (status, out) == (2, "")
    assert "pip install adblock" in err
    assert command("init")[0] == 0


def test_help_teaches() -> None:
    """Each command says what it does, with an example and its exit status."""
    for name in ("init", "snippet", "check-path"):
        text = CliRunner().invoke(main.app, [name, "--help"]).output
        assert "xample" in text
        assert "Exit status" in text
