"""Settings: where they come from, and how a wrong one is explained."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import clean_environment
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.check import describe
from proxy.settings import Settings, SettingsError, load
from proxy.spool.jetstream.address import Address, parse

KEY = {"BEACON_PROXY_API_KEY": "sekret-key-9"}


def refusal(environ: dict[str, str], config: Path | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        load(config, environ).forwarder()
    return str(refused.value)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """Same names in both."""
    file = tmp_path / "proxy.toml"
    file.write_text('workers = 2\nport = 9000\n[sites.shop]\nhosts = ["shop.example"]\napi_key = "a"\n')
    environ = {"BEACON_PROXY_PORT": "9001", "BEACON_PROXY_SITES__SHOP__API_KEY": "b"}
    loaded = load(file, environ)
    assert (loaded.workers, loaded.port) == (2, 9001)
    assert loaded.forwarder().sites["shop"].api_key == "b"


def test_lists_in_the_environment_are_comma_separated_and_presets_have_names() -> None:
    """One way to write a list."""
    loaded = load(None, {"BEACON_PROXY_TRUSTED_PROXIES": "10.0.0.0/8, loopback"})
    assert loaded.trusted_proxies == ["10.0.0.0/8", "127.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "80000", "65535"),
        ("PORT", "http", "valid integer"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("UPSTREAM", "trk.example", "URL"),
        ("UPSTREAM", "http://exa mple.org", "URL"),
        ("UPSTREAM", "http://a<b.example", "URL"),
        ("UPSTREAM", "http://[fe80.1", "such as https"),
        ("ADDRESS_PROPERTY", "_K", "property name"),
        ("MAX_AGE", "inf", "finite"),
        ("DURABILITY", "maybe", "'disk' or 'os'"),
        ("SPOOL", "/var/spool", "sqlite:DIR"),
        ("SPOOL", "nats:", "nats://host1,host2,host3?stream=beacons&replicas=3"),
        ("SPOOL", "nats://a,,b", "nats://host1,host2,host3?stream=beacons&replicas=3"),
        ("SPOOL", "nats://a:99999", "nats://host1,host2,host3?stream=beacons&replicas=3"),
        ("SPOOL", "nats://a/path", "nats://host1,host2,host3?stream=beacons&replicas=3"),
        ("SPOOL", "nats://a?stream", "nats://host1,host2,host3?stream=beacons&replicas=3"),
        ("SPOOL", "nats:", "nats:// is not what it begins with"),
        ("SPOOL", "nats://", "there is no host"),
        ("SPOOL", "nats://a, b", "' b' is no host: a space is in it"),
        ("SPOOL", "nats://a,nats://b", "'nats://b': nats:// stands once, before the first host"),
        ("SPOOL", "nats://a:242210", "'242210' is no port; expected"),
        ("SPOOL", "nats://a:abc,b", "'a:abc': 'abc' is no port"),
        ("SPOOL", "nats://a:", "a port other than 4222 stands after its host, as in host1:4333"),
        ("SPOOL", "nats://a/path", "there is no path in it"),
        ("SPOOL", "nats://a?stream", "what is after the ? is not NAME=VALUE"),
        ("SPOOL", "nats://a?stream=x.y", "letters, digits and dashes"),
        ("SPOOL", "nats://a?replicas=2", "replicas=1, 3 or 5"),
        ("SPOOL", "nats://a?token=x", "'token' is no parameter of it; expected stream"),
        ("SPOOL", "nats://a?nkey=f&credentials=g", "one of credentials, nkey, token_file"),
        ("PREFIX", "a b", "path of letters"),
        ("TRUSTED_PROXIES", "everybody", "CIDRs"),
        ("MAX_BYTES", "lots", "10GiB"),
        ("SITES__SHOP__HOSTS", "not a host!", "names such as"),
        ("RENAME", "Browser=UA", "BEACON_PROXY_RENAME__BROWSER=UA"),
        ("RENAME__BROWSER", "_k", "none of the API's own"),
    ],
)
def test_a_wrong_value_names_the_setting_what_was_found_and_what_was_expected(name: str, value: str, expected: str) -> None:
    """Whoever reads the message can mend the mistake without the docs."""
    message = refusal({**KEY, f"BEACON_PROXY_{name}": value})
    assert f"BEACON_PROXY_{name}" in message
    shown = value.partition("?")[0] + "?…" if name == "SPOOL" and "?" in value else value  # a secret may stand there
    assert shown in message
    assert expected in message


def test_a_password_in_the_spools_url_is_refused_and_not_shown() -> None:
    """URLs end up in logs and lists of processes."""
    for url in ("nats://me:hunter2@a", "nats://hunter2@a,b?stream=x", "nats://me:hunter2?3@a", "nats://:hunter2?3@a?stream=x"):
        message = refusal({**KEY, "BEACON_PROXY_SPOOL": url})
        assert "credentials=FILE" in message
        assert "hunter2" not in message


def test_the_spools_url_names_servers_and_streams() -> None:
    """With three servers three replicas are what is meant, unless it says otherwise."""
    found = parse("nats://a,b:4333,[::1]?stream=x&credentials=/c&ca=/d")
    assert found == Address(("nats://a:4222", "nats://b:4333", "nats://[::1]:4222"), "x", 3, credentials="/c", tls=True, ca="/d")
    assert parse("nats://a?credentials=/etc/me@shop.creds").credentials == "/etc/me@shop.creds"
    assert parse("nats://a,b").replicas == 1
    assert parse("nats://a,b,c?replicas=1").replicas == 1
    shop = {"BEACON_PROXY_SITES__SHOP__HOSTS": "shop.example", "BEACON_PROXY_SITES__SHOP__API_KEY": "k"}
    said = describe(load(None, {**shop, "BEACON_PROXY_SPOOL": "nats://a,b,c?stream=x"}))
    assert "(streams x_…, replicas: 3)" in said
    assert "become dead letters here (unknown_site)" in said
    assert "unknown_site" not in describe(load(None, shop))


def test_a_misspelt_setting_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    """A setting that is silently ignored is a trap."""
    assert "did you mean BEACON_PROXY_WORKERS?" in refusal({**KEY, "BEACON_PROXY_WORKER": "2"})
    file = tmp_path / "proxy.toml"
    file.write_text('durabilty = "os"\n[sites.shop]\nhosts = ["a.b"]\napikey = "x"\n')
    message = refusal(KEY, file)
    assert "durabilty" in message
    assert "did you mean durability?" in message
    assert "did you mean sites.shop.api_key?" in message
    assert str(file) in message


def test_a_missing_key_is_told_with_the_way_to_give_it() -> None:
    """The first mistake everybody makes."""
    assert "BEACON_PROXY_API_KEY" in refusal({})


def test_a_wrong_key_is_refused_without_showing_it() -> None:
    """Also a mistyped secret is a secret."""
    message = refusal({"BEACON_PROXY_API_KEY": "my secret key"})
    assert "secret key" not in message
    assert "BEACON_PROXY_API_KEY" in message


def test_the_key_shows_in_no_representation_and_in_no_collectors_part() -> None:
    """Not by accident either."""
    loaded = load(None, {**KEY, "BEACON_PROXY_SITES__SHOP__HOSTS": "a.b"})
    assert "sekret" not in repr(loaded) + str(loaded) + repr(loaded.forwarder()) + repr(loaded.collector())


def test_a_host_belongs_to_one_site() -> None:
    """Else a beacon's way would depend on the order of a file."""
    environ = {**KEY, "BEACON_PROXY_SITES__A__HOSTS": "x.y", "BEACON_PROXY_SITES__B__HOSTS": "x.y"}
    assert "both 'a' and 'b'" in refusal(environ)


def test_files_that_cannot_be_read_are_told_plainly(tmp_path: Path) -> None:
    """No traceback for a path mistyped or a bracket forgotten."""
    assert "cannot read" in refusal({}, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("port = [")
    assert "not a TOML file" in refusal({}, broken)


@given(st.sampled_from(sorted(Settings.model_fields)), st.text(st.characters(exclude_characters="\0"), max_size=30))
def test_no_text_in_a_setting_can_break_more_than_that_setting(name: str, value: str) -> None:
    """Settings come from people."""
    message = ""
    try:
        load(None, {f"BEACON_PROXY_{name.upper()}": value})
    except SettingsError as refused:
        message = str(refused)
    assert not message or name.upper() in message


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    environment = clean_environment(**environ)
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_check_says_in_plain_words_what_a_configuration_will_do() -> None:
    """Before anything is started."""
    done = run("check", **KEY, BEACON_PROXY_PREFIX="x7", BEACON_PROXY_DURABILITY="os")
    assert done.returncode == 0
    assert "http://127.0.0.1:8000/x7/e" in done.stdout
    assert "not a power cut" in done.stdout
    assert "sekret" not in done.stdout + done.stderr


def test_check_says_where_no_forwarder_runs(tmp_path: Path) -> None:
    """Then no key is needed, and nothing is said of an upstream that this configuration does not talk to."""
    done = run("check", BEACON_PROXY_FORWARD="false")
    assert done.returncode == 0
    assert "No forwarder runs beside the collectors" in done.stdout
    assert "go to" not in done.stdout
    assert run("check").returncode == 2
    shared = run("check", **KEY, BEACON_PROXY_SPOOL="nats://127.0.0.1:4222?stream=x")
    assert "of all forwarders on this spool together" in shared.stdout


def test_check_refuses_a_geo_database_that_is_none(tmp_path: Path) -> None:
    """Else the forwarder would refuse to start, and only its log would say so."""
    wrong = tmp_path / "places.mmdb"
    for content in (None, b"not a database"):
        if content:
            wrong.write_bytes(content)
        done = run("check", **KEY, BEACON_PROXY_GEO_DATABASE=str(wrong))
        assert done.returncode == 2
        assert "geo_database" in done.stderr
        assert str(wrong) in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "serve", "forward"])
def test_a_wrong_configuration_ends_with_status_2_and_no_traceback(command: str) -> None:
    """A user's mistake is told, not dumped."""
    done = run(command, BEACON_PROXY_API_KEY="k", BEACON_PROXY_WORKRES="2")
    assert done.returncode == 2
    assert "did you mean BEACON_PROXY_WORKERS?" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_what_its_processes_could_not_share() -> None:
    """A memory spool would lose every beacon between collector and forwarder."""
    done = run("serve", **KEY, BEACON_PROXY_SPOOL="memory:", BEACON_PROXY_PORT="0")
    assert done.returncode == 2
    assert "sqlite:DIR" in done.stderr


def test_a_port_that_is_taken_is_told_plainly(tmp_path: Path) -> None:
    """The second mistake everybody makes."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = run("serve", **KEY, BEACON_PROXY_PORT=port, BEACON_PROXY_SPOOL=f"sqlite:{tmp_path}")
    assert done.returncode == 2
    assert "BEACON_PROXY_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UPSTREAM", "https://me:PASSW0RD@h.example/"),
        ("UPSTREAM", "https://h.example/?_k=PASSW0RD"),
        ("UPSTREAM", "PASSW0RD"),
        ("SITES__SHOP", "PASSW0RD"),
        ("API_KEY", "PASSW0RD with a space"),
        ("SPOOL", "nats://me:PASSW0RD@h"),
        ("SPOOL", "nats://h?token=PASSW0RD"),
        ("FALLBACK", "nats://h?token=PASSW0RD"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(name: str, value: str) -> None:
    """Messages end in logs and tickets."""
    message = refusal({**KEY, f"BEACON_PROXY_{name}": value})
    assert f"BEACON_PROXY_{name}" in message
    assert "PASSW0RD" not in message


def test_a_table_of_the_wrong_shape_is_told_without_its_key(tmp_path: Path) -> None:
    """[[sites]] for [sites.NAME] is an easy mistake."""
    for text in ('[[sites]]\napi_key = "PASSW0RD"', '[[sites.shop]]\napi_key = "PASSW0RD"'):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(SettingsError) as refused:
            load(tmp_path / "c.toml", {})
        assert "sites" in str(refused.value)
        assert "PASSW0RD" not in str(refused.value)


def test_variables_mean_a_site_however_the_file_spells_it(tmp_path: Path) -> None:
    """Variables are upper case, and say nothing of the name's case."""
    (tmp_path / "c.toml").write_text('[sites.Shop]\nhosts = ["shop.example"]')
    found = load(tmp_path / "c.toml", {"BEACON_PROXY_SITES__SHOP__API_KEY": "k"})
    assert list(found.sites) == ["Shop"]
    assert found.sites["Shop"].api_key is not None


def test_what_kubernetes_puts_into_the_environment_is_no_setting() -> None:
    """A Service named beacon-proxy announces itself to every pod beside it."""
    links = {
        "BEACON_PROXY_PORT": "tcp://10.0.0.1:8000",
        "BEACON_PROXY_SERVICE_HOST": "10.0.0.1",
        "BEACON_PROXY_SERVICE_PORT_HTTP": "8000",
        "BEACON_PROXY_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, {**KEY, **links}).port == 8000


def test_true_is_no_number_and_the_listeners_need_a_port_each(tmp_path: Path) -> None:
    """TOML has types, and a mistake in them is a mistake."""
    (tmp_path / "c.toml").write_text("workers = true")
    with pytest.raises(SettingsError, match="workers"):
        load(tmp_path / "c.toml", KEY)
    assert "admin_port" in refusal({**KEY, "BEACON_PROXY_PORT": "8001"})


def test_a_host_of_other_letters_is_known_by_the_name_that_browsers_send() -> None:
    """bücher.example is xn--bcher-kva.example in every Host header (RFC 3492)."""
    found = load(None, {**KEY, "BEACON_PROXY_SITES__BOOKS__HOSTS": "bücher.example, *.Straße.example"})
    assert list(found.collector().hosts) == ["xn--bcher-kva.example", "*.strasse.example"]
