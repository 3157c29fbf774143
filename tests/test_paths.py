"""What paths and parameters may be called, and how a name that cannot be is explained."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.collector.aliases import Aliases
from proxy.collector.collect import Collector
from proxy.settings import SettingsError, load

KEY = {"BEACON_PROXY_API_KEY": "k", "BEACON_PROXY_SPOOL": "memory:"}


def of(tmp_path: Path, toml: str) -> Any:
    """The settings of that file."""
    file = tmp_path / "proxy.toml"
    file.write_text(toml, "utf-8")
    return load(file, KEY)


def refusal(tmp_path: Path, toml: str) -> str:
    with pytest.raises(SettingsError) as refused:
        of(tmp_path, toml)
    return str(refused.value)


def test_of_several_prefixes_all_are_live_and_the_first_is_for_new_pages(tmp_path: Path) -> None:
    """A prefix is rotated out while pages still bear it."""
    loaded = of(tmp_path, 'prefix = ["/new-one", "old/one/", "/new-one"]')
    assert loaded.prefix == ["/new-one", "/old/one"]
    paths = Collector(loaded.collector()).paths
    assert paths["/new-one/e"] == paths["/old/one/e"] == "e"
    assert "/e" not in paths


def test_a_prefix_in_the_environment_may_be_several(tmp_path: Path) -> None:
    """One way to write a list."""
    assert load(None, {**KEY, "BEACON_PROXY_PREFIX": "/a-b, /c"}).prefix == ["/a-b", "/c"]


@pytest.mark.parametrize("nothing", ['""', '"/"', "[]", '[""]'])
def test_no_prefix_is_none(tmp_path: Path, nothing: str) -> None:
    """However it is said."""
    assert of(tmp_path, f"prefix = {nothing}").prefix == [""]


def test_other_names_of_calls_are_taken_beside_the_apis_own(tmp_path: Path) -> None:
    """So that old pages and other clients go on."""
    collector = Collector(of(tmp_path, 'prefix = "x7"\n[endpoints]\ne = ["lark", "wren"]\nb = "finch"').collector())
    assert {path: call for path, call in collector.paths.items() if call in "eb"} == {
        "/x7/e": "e",
        "/x7/lark": "e",
        "/x7/wren": "e",
        "/x7/b": "b",
        "/x7/finch": "b",
    }


def test_other_names_of_parameters_and_the_mark_are_mapped_back(tmp_path: Path) -> None:
    """The spool holds the API's own names."""
    loaded = of(tmp_path, '[parameters]\n_n = "moss4"\nProduct = ["fern", "reed"]\n"*" = "oak2-"')
    aliases = Aliases(loaded.collector().parameters)
    assert aliases.query(b"moss4=Viewed&reed=Tea&oak2-UHJpY2U=3&other=1") == b"_n=Viewed&Product=Tea&Price=3&other=1"


@pytest.mark.parametrize(
    ("toml", "setting", "reason"),
    [
        ('prefix = "a b"', "prefix", "path of letters"),
        ('prefix = "a/../b"', "prefix", "path of letters"),
        ('prefix = "shop/Piwik"', "prefix", "what is below /piwik/"),
        ('prefix = "matomo"\nscript = "willow"', "prefix", "scripts below /matomo/"),
        ('prefix = "x-468x60"', "prefix", "sizes of banners"),
        ('prefix = "hit"', "prefix", "at the beginning of a path"),
        ('prefix = ["/fine", "adv/x"]', "prefix", "at the beginning of a path"),
        ('script = "beacon"', "script", "/beacon.js"),
        ('script = "KissMetrics"', "script", "/kissmetrics.js"),
        ('script = "a/b"', "script", "is no name"),
        ('script = "lark.js"', "script", "is no name"),
        ('script = "b"', "script", "at the root of a host"),
        ('[endpoints]\ne = "e.gif"', "endpoints", "GIFs"),
        ('[endpoints]\ne = "trackpixel"', "endpoints", "/trackpixel?"),
        ('[endpoints]\ne = "my_beacon"', "endpoints", "/my_beacon?"),
        ('[endpoints]\nb = "count"', "endpoints.b", "at the root of a host"),
        ('[endpoints]\ne = "s"', "endpoints", "stands for 's' already"),
        ('[endpoints]\ne = "lark"\ns = "lark"', "endpoints", "stands for 'e' already"),
        ('[endpoints]\nx = "lark"', "endpoints", "'e', 's', 'a' or 'b'"),
        ('endpoints = "lark"', "endpoints", "expected a table"),
        ('[parameters]\n_n = "_p"', "parameters", "not beginning with"),
        ('[parameters]\n_k = "key"', "parameters", "cannot have another name"),
        ('[parameters]\n_n = "v"\n_p = "v"', "parameters", "stands for '_n' already"),
        ('[parameters]\n_n = "mo-ss"\n"*" = "mo-"', "parameters", "begins like the mark"),
        ('prefix = "a/./b"', "prefix", "path of letters"),
        ('[endpoints]\nx = "s"', "endpoints", "found {'x': 's'}; 'x' is no call"),
        ('[endpoints]\ne = "e"', "endpoints", "'e' is that call's name already"),
        ('[endpoints]\ne = "fallback"', "endpoints", "nginx's file uses"),
        ('[parameters]\nProduct = "Product"', "parameters", "that parameter's name already"),
        (
            '[parameters]\nPrice = "cost"\ncost = "z"',
            "parameters",
            "'cost' is another name for 'Price', and has other names itself",
        ),
        ('[parameters]\n"" = "q"', "parameters", "'' cannot have another name"),
        ('[parameters]\nProduct = "uRL"', "parameters", "property of the script's own"),
        ('[parameters]\n"*" = "m-"', "parameters", "at least 3 characters"),
        ('[parameters]\n"*" = "moss"', "parameters", "the last of them"),
        ('[parameters]\n"*" = ["mo-ss-", "mo-"]', "parameters", "'mo-ss-' begins with the mark 'mo-'"),
        ('script_events = ["visits"]', "script_events", "found ['visits']; 'visits' is none"),
        ('prefix = ["/a b"]', "prefix", "found ['/a b']"),
        ('[sites."a--><script>"]\nhosts = ["a.b"]', "sites", "found 'a--><script>' as a name"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_reason(tmp_path: Path, toml: str, setting: str, reason: str) -> None:
    """Beacons that are blocked in visitors' browsers are missed by nobody on the server."""
    message = refusal(tmp_path, toml)
    assert message.startswith(setting)
    assert reason in message
    assert "expected" in message


FINE = [
    'prefix = ["/x7", "/t", "/b", "/track", "/beacon", "/analytics", "/kissmetrics", "/shop/hit", "/x/ads", "/x.gif", "/matomo"]',
    'prefix = "x7"\nscript = ["b", "analytics", "tracker", "willow"]',
    'script = ["km", "k"]',
    'prefix = "a..b"\nscript = "fallback"',
    '[endpoints]\ne = ["track", "beacon", "stats", "t"]',
    'prefix = "x7"\n[endpoints]\ne = ["count", "hit"]',
]
"""That these pass is held against the lists in test_lists.py."""


@pytest.mark.parametrize("toml", FINE)
def test_what_lists_let_pass_is_not_refused(tmp_path: Path, toml: str) -> None:
    """A refusal without a cause would be a riddle."""
    assert of(tmp_path, toml)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@given(st.fixed_dictionaries({}, optional={
    "prefix": TEXT | st.lists(TEXT, max_size=3),
    "script": TEXT | st.lists(TEXT, max_size=3),
    "endpoints": st.dictionaries(st.sampled_from("esabx"), TEXT | st.lists(TEXT, max_size=2), max_size=3),
    "parameters": st.dictionaries(st.sampled_from(["_n", "_p", "_k", "*", "x"]) | TEXT, TEXT | st.lists(TEXT), max_size=3),
}))  # fmt: skip
def test_whatever_names_are_given_they_are_taken_as_they_are_or_refused(tmp_path_factory: Any, tree: dict[str, Any]) -> None:
    """Settings come from people; and of what is taken every path leads to one call."""
    lines = [f"{name} = {_toml(value)}" for name, value in tree.items()]
    text = "\n".join(lines)
    assert tomllib.loads(text) == tree
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, "utf-8")
    message = ""
    try:
        config = load(file, KEY).collector()
    except SettingsError as refused:
        message = str(refused)
    if message:
        assert any(name in message for name in tree)
        return
    paths = Collector(config).paths
    assert set(paths.values()) == set("esab")
    for call, names in config.endpoints.items():
        assert all(paths[f"{prefix}/{name}"] == call for prefix in config.prefixes for name in names)


def _toml(value: Any) -> str:
    """JSON's strings and lists are TOML's; tables are written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
