"""`doctor`, against a real installation behind a real nginx with TLS: made well, then wrong in one respect each."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, ProxyProcess, SandboxProcess, clean_environment, free_port, listening, need, wait_for
from nats_server import NatsServer

from proxy.cli.doctor import CHECKS, Check, clock, disk, forwarded, hosts, public, script, within
from proxy.cli.doctor import run as doctor
from proxy.cli.doctor import spool as spool_check
from proxy.cli.doctor.cookies import attributes, none_given
from proxy.cli.doctor.exposure import is_ours
from proxy.cli.doctor.finding import Finding, Result, ok
from proxy.cli.doctor.installation import Asked, Installation
from proxy.cli.options import Runs
from proxy.collector.pixel import GIF
from proxy.script import Script
from proxy.settings import Settings, SettingsError
from proxy.settings import load as settings_of

Serve = Callable[..., ProxyProcess]
TOKEN = "tell-me-9"
FORWARDED_FOR = "proxy_set_header X-Forwarded-For $remote_addr;"
FORWARDED_PROTO = "proxy_set_header X-Forwarded-Proto $scheme;"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, its own authority, and its key."""
    place = tmp_path_factory.mktemp("tls")
    certificate, key = place / "cert.pem", place / "key.pem"
    subject = ["-subj", "/CN=shop", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(
        [
            *(need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "90", "-keyout", str(key), "-out", str(certificate), *subject),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return certificate, key


LOCATIONS = {
    "good": "FOR PROTO",
    "passed-through": "PROTO",
    "not-sent": 'PROTO proxy_set_header X-Forwarded-For "";',
    "appended": "PROTO proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    "no-proto": "FOR",
    "set-cookie": "FOR PROTO proxy_hide_header Set-Cookie;",
    "cookie": 'FOR PROTO proxy_set_header Cookie "";',
    "cache-control": "FOR PROTO proxy_hide_header Cache-Control;",
    "exposed": "FOR PROTO } location /metrics { proxy_pass http://127.0.0.1:ADMIN;",
    "cached": "FOR PROTO proxy_cache c; proxy_cache_valid 200 1m; proxy_ignore_headers Cache-Control Set-Cookie Expires;",
}
"""What stands in the location for the beacons, made well and made wrong in one respect each."""


class Site:
    """An installation: `serve` behind an nginx with TLS, which has a server for each of LOCATIONS."""

    def __init__(self, proxy: ProxyProcess, place: Path, tls: tuple[Path, Path]) -> None:
        program = need("nginx", "nginx-light")
        place.mkdir()
        self.proxy, self.certificate = proxy, tls[0]
        admin = proxy.environment["BEACON_PROXY_ADMIN_PORT"]
        ports = {name: free_port() for name in LOCATIONS}
        self.urls = {name: f"https://127.0.0.1:{port}/x7" for name, port in ports.items()}
        servers = ""
        for name, location in LOCATIONS.items():
            for word, line in (("FOR", FORWARDED_FOR), ("PROTO", FORWARDED_PROTO), ("ADMIN", admin)):
                location = re.sub(rf"\b{word}\b", lambda _, line=line: line, location)
            servers += (
                f"server {{ listen 127.0.0.1:{ports[name]} ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};\n"
                f"location /x7/ {{ proxy_pass http://127.0.0.1:{proxy.port}; proxy_set_header Host $host; {location} }} }}\n"
            )
        configuration = place / "nginx.conf"
        temporary = "".join(f"{name}_temp_path {place}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        configuration.write_text(
            f"daemon off; master_process off; pid {place}/pid; error_log {place}/error.log; events {{}}\n"
            f"http {{ access_log off; {temporary} proxy_cache_path {place}/cache keys_zone=c:1m;\n{servers} }}\n"
        )
        with (place / "out").open("wb") as log:
            self.nginx = subprocess.Popen([program, "-p", str(place), "-c", str(configuration)], stdout=log, stderr=log)
        wait_for(lambda: all(listening(port) for port in ports.values()), "nginx")
        wait_for(lambda: listening(int(admin)) and httpx.get(f"http://127.0.0.1:{admin}/readyz").status_code == 200, "readiness")
        wait_for(lambda: proxy.status()["upstreams"], "the forwarder's report")

    def examined(self, location: str = "good", *more: str) -> "Report":
        return Report(self.proxy.environment, "--url", self.urls[location], "--ca", str(self.certificate), *more)

    def stop(self) -> None:
        self.nginx.kill()
        self.nginx.wait()


def settings_of_a_site(**over: Any) -> dict[str, Any]:
    """Only nginx itself is trusted: else doctor's own address would be."""
    return {
        "prefix": "/x7",
        "script": "willow",
        "admin_port": str(free_port()),
        "debug_token": TOKEN,
        "trusted_proxies": "127.0.0.1/32",
        **over,
    }


@pytest.fixture(scope="module")
def vendor() -> Iterator[SandboxProcess]:
    process = SandboxProcess()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def site(vendor: SandboxProcess, authority: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One that all tests look at which change nothing in it: they differ in the address that they give doctor."""
    place = tmp_path_factory.mktemp("site")
    proxy = ProxyProcess(place / "spool", vendor.url, **settings_of_a_site())
    site = None
    try:
        site = Site(proxy, place / "nginx", authority)
        yield site
    finally:
        if site is not None:
            site.stop()
        proxy.kill()


@pytest.fixture
def own_site(serve: Serve, authority: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """One for a test alone, with settings by keyword."""
    started: list[Site] = []

    def start(**settings: Any) -> Site:
        started.append(Site(serve(**settings_of_a_site(**settings)), tmp_path / "nginx", authority))
        return started[-1]

    yield start
    for site in started:
        site.stop()


class Report:
    """What doctor said."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.run = subprocess.run(
            [sys.executable, "-m", "proxy", "doctor", "--json", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert self.run.returncode in (0, 1), self.run.stderr
        self.status = self.run.returncode
        self.findings = [
            Finding(Result(f["result"]), f["found"], f["mend"], f["check"]) for f in json.loads(self.run.stdout)["findings"]
        ]

    def of(self, check: str, result: Result | None = None) -> list[Finding]:
        return [one for one in self.findings if one.check == check and (result is None or one.result is result)]

    def wrong(self) -> set[str]:
        """The checks that found something wrong."""
        for one in self.findings:
            assert one.mend or one.result in (Result.OK, Result.SKIPPED), one
        return {one.check for one in self.findings if one.result is Result.WRONG}


def test_a_good_installation_is_found_good_and_nothing_reaches_the_vendor(site: Site, vendor: SandboxProcess) -> None:
    """All checks, the key in none of what is said, and the vendor's numbers untouched."""
    before = vendor.report()["requests"]
    report = site.examined()
    assert report.wrong() == set(), report.run.stdout
    assert report.status == 0
    good = {one.check for one in report.findings if one.result is Result.OK}
    assert good >= {"settings", "spool", "disk", "upstream", "admin", "admin exposed", "cookies", "ledger"}
    assert good >= {"public address", "script"}
    [address] = report.of("client address")
    assert (address.result, "127.9.9.9" in address.found) == (Result.OK, True)
    assert [one.result for one in report.of("canary")] == [Result.SKIPPED]
    assert API_KEY not in report.run.stdout + report.run.stderr
    assert TOKEN not in report.run.stdout + report.run.stderr
    wait_for(lambda: site.proxy.status()["pending"] == 0, "the end of doctor's own beacons")
    assert site.proxy.status()["dropped"].keys() == {"no_name"}
    assert vendor.report()["requests"] == before
    assert not list(Path(site.proxy.environment["BEACON_PROXY_SPOOL"].removeprefix("sqlite:")).glob("doctor-*"))


def test_a_canary_is_followed_to_the_vendor(site: Site, vendor: SandboxProcess) -> None:
    """Only when asked for, since it counts there."""
    report = site.examined("good", "--canary", "Canary, sung")
    [canary] = report.of("canary")
    assert canary.result is Result.OK, canary
    assert "answer 200" in canary.found
    [beacon] = vendor.beacons()
    assert beacon["params"]["_p"] == "beacon-proxy-doctor"


@pytest.mark.parametrize(
    ("location", "check", "said", "mend"),
    [
        ("passed-through", "client address", "the visitor is believed", "$remote_addr"),
        ("not-sent", "client address", "looks like 127.0.0.1", "$remote_addr"),
        ("no-proto", "cookies", "not Secure", "X-Forwarded-Proto"),
        ("set-cookie", "cookies", "no km_ai cookie", "Set-Cookie"),
        ("cookie", "cookies", "new visitor", "Cookie header"),
        ("cache-control", "public address", "no-store", "Cache-Control"),
        ("exposed", "admin exposed", "/metrics", "deny all"),
        ("cached", "cookies", "a cache answers", "proxy_cache off"),
    ],
)
def test_one_wrong_line_of_nginx_is_found_with_its_mend(site: Site, location: str, check: str, said: str, mend: str) -> None:
    """And nothing else is called wrong."""
    report = site.examined(location)
    found = [one for one in report.of(check, Result.WRONG) if said in one.found]
    assert found, report.run.stdout
    assert mend in found[0].mend
    assert report.status == 1
    assert report.wrong() == {check}, report.run.stdout


@pytest.mark.parametrize(
    ("settings", "checks", "said", "mend"),
    [
        ({"trusted_proxies": "10.0.0.0/8"}, {"client address", "cookies"}, "is not trusted", "add 127.0.0.1 to trusted_proxies"),
        ({"cookie_domain": "other.example"}, {"cookies"}, "throw it away", "cookie_domain"),
        (
            {"api_key": None, "sites__shop__hosts": "www.shop.example", "sites__shop__api_key": "k"},
            {"cookies"},
            "unknown_host",
            "sites.NAME.hosts",
        ),
    ],
    ids=["not-trusted", "domain", "host"],
)
def test_one_wrong_setting_is_found_with_its_mend(
    own_site: Callable[..., Site], settings: dict[str, Any], checks: set[str], said: str, mend: str
) -> None:
    """A proxy that is not trusted is not believed about https either."""
    report = own_site(**settings).examined()
    assert report.wrong() == checks, report.run.stdout
    assert [one for one in report.findings if said in one.found and mend in one.mend], report.run.stdout


def test_a_host_of_no_site_is_told_from_the_settings() -> None:
    """Without a debug_token the answer does not say it, and nginx would be blamed."""
    settings = Settings.model_validate({"sites": {"shop": {"hosts": ["www.shop.example"], "api_key": "k"}}})
    answered = Asked(200, httpx.Headers(), b"", None, None, "")
    assert "other.example belongs to no site" in none_given(Installation(settings, "https://other.example/x7"), answered).found
    assert "strips Set-Cookie" in none_given(Installation(settings, "https://www.shop.example/x7"), answered).mend


def test_nginx_that_gives_its_own_gif_may_ask_at_another_port() -> None:
    """All is up then, and every beacon goes into the log."""
    answered = Asked(200, httpx.Headers({"content-length": str(len(GIF))}), b"", None, None, "")
    found = public.answer("https://www.shop.example/x7/e", answered, "/x7")
    assert found is not None
    assert "must name the port" in found.mend


def test_an_appended_chain_is_good(site: Site) -> None:
    """`$proxy_add_x_forwarded_for` keeps what the visitor claims, but names the visitor last."""
    assert [one.result for one in site.examined("appended").of("client address")] == [Result.OK]


def test_a_certificate_that_nobody_vouches_for_is_told_and_the_rest_skipped(site: Site) -> None:
    """What browsers refuse needs no further look; and a path that is none is told apart."""
    report = Report(site.proxy.environment, "--url", site.urls["good"])
    assert "TLS" in report.of("public address")[0].found
    assert "--ca" in report.of("public address")[0].mend
    assert [one.result for one in report.of("cookies")] == [Result.SKIPPED]
    elsewhere = Report(site.proxy.environment, "--url", site.urls["good"] + "/else", "--ca", str(site.certificate))
    assert "setting prefix, which is /x7" in elsewhere.of("public address")[0].mend


def test_without_the_debug_token_the_address_is_not_looked_at_and_a_stopped_proxy_is_told(own_site: Callable[..., Site]) -> None:
    """It says how to have it looked at; a 502 is a proxy that does not run."""
    site = own_site(debug_token=None)
    [address] = site.examined().of("client address")
    assert address.result is Result.SKIPPED
    assert "set debug_token" in address.found
    site.proxy.stop()
    report = site.examined()
    assert "502" in report.of("public address")[0].found
    assert report.wrong() >= {"admin", "public address"}


def test_inside_a_spool_that_is_open_an_upstream_that_is_away_and_a_corrupt_lane(
    serve: Serve, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """No --url: the outside is skipped, saying so."""
    admin = free_port()
    proxy = serve(admin_port=str(admin))
    spool = tmp_path / "spool"
    wait_for(lambda: proxy.status()["upstreams"], "the forwarder's report")
    wait_for(lambda: httpx.get(f"http://127.0.0.1:{admin}/readyz", timeout=20).status_code == 200, "the admin listener")
    assert Report(proxy.environment).wrong() == set()
    spool.chmod(0o755)
    (spool / "lane-0007.db.corrupt-1").write_bytes(b"no lane")
    sandbox.stop()
    report = Report(proxy.environment)
    assert report.wrong() >= {"spool", "upstream"}
    assert any("chmod 0700" in one.mend for one in report.of("spool", Result.WRONG))
    assert "does not answer" in report.of("upstream")[0].found
    assert any("set aside" in one.found for one in report.of("ledger", Result.WRONG))
    for check in ("public address", "admin exposed", "cookies", "client address", "hosts"):
        assert "--url" in report.of(check)[0].found


def examined(environment: dict[str, str], runs: Runs = Runs.SERVE) -> dict[tuple[str, Result], str]:
    """What doctor finds from inside, read in this process: what it costs is not told twice."""
    patient = Installation(settings_of(None, environment), runs=runs)
    found: dict[tuple[str, Result], str] = {}
    for check in CHECKS:
        for one in within(check, patient):
            assert one.mend or one.result in (Result.OK, Result.SKIPPED), one
            found[check.name, one.result] = "\n".join((found.get((check.name, one.result), ""), one.found, one.mend))
    return found


def wrong_in(found: dict[tuple[str, Result], str]) -> dict[str, str]:
    return {check: said for (check, result), said in found.items() if result is Result.WRONG}


def test_of_many_machines_each_can_be_found_well_and_what_is_not_is_named(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector needs neither key nor vendor, `forward` has no admin listener; both need servers, streams and a fallback."""
    server = NatsServer(tmp_path / "nats")
    try:
        url = server.spool("many").url
        forwarder = serve(spool=tmp_path / "other", command="forward", SPOOL=url)
        collector = serve(
            upstream="http://127.0.0.1:9", SPOOL=url, FORWARD="false", API_KEY=None, admin_port=(admin := str(free_port()))
        )
        wait_for(lambda: listening(int(admin)) and collector.status()["forwarders"], "all to be at work")

        well = examined(collector.environment)
        assert wrong_in(well) == {}
        assert "no key is needed on this host" in well["settings", Result.OK]
        assert "it need not reach the vendor" in well["upstream", Result.SKIPPED]
        for said in ("1 of 1 servers answer", "3 streams are as they should be, replicas: 1", "nothing waits in"):
            assert said in well["spool", Result.OK]
        well = examined(forwarder.environment, Runs.FORWARD)
        assert wrong_in(well) == {}
        assert "the key is there" in well["settings", Result.OK]
        assert "no beacon fell back on this host" in well["spool", Result.OK]
        assert "`forward` has none" in well["admin", Result.SKIPPED]
        assert "doctor --runs forward" in wrong_in(examined({**forwarder.environment, "BEACON_PROXY_ADMIN_PORT": "9"}))["admin"]

        two = {**collector.environment, "BEACON_PROXY_SPOOL": url.replace("?", ",127.0.0.1:9?")}
        assert "127.0.0.1:9: Connection refused" in examined(two)["spool", Result.WARNING]
        with monkeypatch.context() as hasty:
            hasty.setattr("proxy.cli.doctor.servers.PATIENCE_S", 0.2)
            hasty.setattr("proxy.cli.doctor.servers._streams", lambda *_: asyncio.sleep(60))
            silent = examined(collector.environment)
        assert "nobody answers for the streams" in wrong_in(silent)["spool"]
        assert "nothing waits in" in silent["spool", Result.OK]
        assert "nobody answers for the streams" in silent["ledger", Result.SKIPPED]
        right = server.api("STREAM.INFO.many_dead")["config"]
        server.api("STREAM.UPDATE.many_dead", {**right, "duplicate_window": right["duplicate_window"] // 2})
        server.api("STREAM.DELETE.many_ledger")
        said = wrong_in(examined(collector.environment))["spool"]
        assert "stream many_dead: duplicate_window is 1800 s, expected 3600 s\nchange it (`nats stream edit many_dead`" in said
        assert "stream many_ledger is gone" in said
        server.kill()
        assert httpx.get(f"{collector.url}/e?_n=a&_p=me").status_code == 200
        away = examined(collector.environment)
        assert wrong_in(away).keys() == {"spool"}
        assert f"127.0.0.1:{server.port}: Connection refused" in away["spool", Result.WRONG]
        assert "1 beacon waits in" in away["spool", Result.WARNING]
        assert "the spool's servers do not answer" in away["ledger", Result.SKIPPED]
    finally:
        server.kill()


def test_an_upstreams_clock_is_compared(serve: Serve) -> None:
    """An hour ahead here is an hour wrong there."""

    class Ahead(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(200)
            self.send_header("date", formatdate(time.time() + 90, usegmt=True))
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ahead) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        proxy = serve(upstream=f"http://127.0.0.1:{upstream.server_port}")
        report = Report(proxy.environment)
        upstream.shutdown()
    assert any("behind" in one.found for one in report.of("clock", Result.WRONG)), report.run.stdout


def test_the_web_servers_own_gif_is_not_taken_for_the_proxys(serve: Serve, sandbox: SandboxProcess) -> None:
    """nginx's fallback answers 200 and the GIF while no collector is there: that is the finding, not the missing cookie."""

    class Fallback(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "image/gif")
            self.send_header("content-length", "43")
            self.send_header("cache-control", "no-store")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Fallback) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        proxy = serve()
        report = Report(proxy.environment, "--url", f"http://127.0.0.1:{front.server_port}")
        front.shutdown()
    assert "not the proxy's" in report.of("public address", Result.WRONG)[0].found
    assert not report.of("cookies", Result.WRONG)


def test_for_eyes_it_is_told_as_it_goes_and_mistakes_of_use_are_status_2(tmp_path: Path) -> None:
    """No traceback, and a missing spool and key say what to do."""
    environment = clean_environment(BEACON_PROXY_SPOOL=f"sqlite:{tmp_path / 'none'}", BEACON_PROXY_UPSTREAM="http://127.0.0.1:9")

    def run(*arguments: str, **over: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "proxy", "doctor", *arguments]
        return subprocess.run(command, env={**environment, **over}, capture_output=True, text=True, timeout=60)

    told = run()
    assert told.returncode == 1
    assert "BEACON_PROXY_API_KEY" in told.stdout
    assert "mend: start `beacon-proxy serve`" in told.stdout
    assert "wrong" in told.stdout.splitlines()[-1]
    assert not (tmp_path / "none").exists()
    wrong = run("--url", "shop")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    assert "https://www.shop.example/x7" in wrong.stderr
    bad = run(BEACON_PROXY_PORT="many")
    assert bad.returncode == 1
    assert "BEACON_PROXY_PORT" in bad.stdout
    assert "Example: beacon-proxy doctor" in run("--help").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "ftp://shop"}, "--url: found 'ftp://shop'"),
        ({"url": "https://shop:99999/"}, "--url"),
        ({"url": "https://me:secret@shop/"}, "--url"),
        ({"site_url": "x:y:z"}, "--site-url"),
        ({"canary": "x"}, "--canary: found no --url"),
        ({"ca": Path("/none.pem")}, "--ca: found /none.pem"),
        ({"ca": Path(__file__)}, "expected a PEM file"),
    ],
)
def test_an_option_that_makes_no_sense_is_told(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is looked at."""
    for name in [name for name in os.environ if name.startswith("BEACON_PROXY_")]:
        monkeypatch.delenv(name)
    given: dict[str, Any] = {"config": None, "url": "", "site_url": "", "ca": None, "canary_name": options.get("canary", "")}
    with pytest.raises(SettingsError, match=re.escape(said)):
        doctor(**{**given, **{name: value for name, value in options.items() if name != "canary"}}, as_json=True)


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    """A check may take seconds; a person wants to know which."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "doctor"],
        env=clean_environment(
            BEACON_PROXY_API_KEY="k", BEACON_PROXY_SPOOL="memory:", BEACON_PROXY_UPSTREAM="http://127.0.0.1:9", TERM="xterm"
        ),
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    process.wait(60)
    assert b"looking at" in shown


def test_a_check_that_hangs_or_fails_is_a_finding() -> None:
    """A disk that does not answer must not hang the doctor, nor one check's own mistake end the others."""
    never = threading.Event()

    def hangs(installation: Installation) -> Iterator[Finding]:
        yield ok("so far")
        never.wait()

    def fails(installation: Installation) -> Iterator[Finding]:
        yield ok(str(1 // 0))

    def cannot(installation: Installation) -> Iterator[Finding]:
        raise PermissionError(13, "not yours", "/spool")
        yield

    patient = Installation(Settings())
    found = [list(within(Check("it", 0.2, look), patient)) for look in (hangs, fails, cannot)]
    never.set()
    assert [[one.result for one in some] for some in found] == [[Result.OK, Result.WRONG], [Result.SKIPPED], [Result.WRONG]]
    assert "0.2 s" in found[0][1].found
    assert "/spool" in found[2][0].found


MOUNTS = """22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:30 / /srv rw - nfs4 server:/srv rw
31 22 0:31 / /run rw - tmpfs tmpfs rw
32 30 0:32 / /srv/with\\040space rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("place", "result"),
    [
        ("/var/spool", "ok"),
        ("/srv", "wrong"),
        ("/srv/spool", "wrong"),
        ("/srvother", "ok"),
        ("/run/x", "warning"),
        ("/srv/with space/x", "ok"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(place: str, result: str) -> None:
    """proc(5): spaces are escaped, and the longest mount point wins."""
    assert spool_check.file_system(Path(place), MOUNTS).result == result


def test_a_slow_disk_is_a_warning_only_where_visitors_wait_for_it() -> None:
    """durability = os does not wait."""
    assert disk.judge([1.0] * 30 + [90.0], "disk").result is Result.OK
    slow = disk.judge([25.0] * 30, "disk")
    assert slow.result is Result.WARNING
    assert "25.0 ms" in slow.found
    assert disk.judge([25.0] * 30, "os").result is Result.OK


def test_how_far_a_clock_may_be_off() -> None:
    """Two seconds, sixty."""
    assert [clock.compared("x", off).result for off in (None, 0.5, -1.9, 5, -61)] == ["skipped", "ok", "ok", "warning", "wrong"]
    assert "ahead of" in clock.compared("x", -61).found


@pytest.mark.parametrize(
    ("host", "name", "result"),
    [
        ("t.shop.example", "lb.shop.example", "ok"),
        ("t.shop.example", "t.shop.example", "ok"),
        ("t.shop.example", "proxy.vendor.example", "warning"),
        ("t.shop.co.uk", "t.other.co.uk", "warning"),
        ("t.shop.co.uk", "lb.shop.co.uk", "ok"),
        ("192.0.2.1", "192.0.2.1", "ok"),
        ("localhost", "localhost", "ok"),
    ],
)
def test_a_name_of_another_domain_is_a_warning(host: str, name: str, result: str) -> None:
    """Browsers cap the cookies of a cloaked CNAME."""
    assert hosts.canonical(host, name).result == result


def test_the_beacon_host_should_lie_where_the_site_lies() -> None:
    """WebKit compares the first half of the address."""
    site = "www.shop.example"
    assert hosts.compared(site, [], site, []).result == "ok"
    assert hosts.compared("t.shop.example", ["192.0.2.9"], site, ["192.0.77.1"]).result == "ok"
    assert hosts.compared("t.shop.example", ["198.51.100.9"], site, ["192.0.77.1"]).result == "warning"
    assert hosts.compared("t.shop.example", ["2001:db8::1"], site, ["192.0.2.1", "2001:db8::2"]).result == "ok"
    assert hosts.compared("t.other.example", ["192.0.2.1"], site, ["192.0.2.1"]).result == "warning"
    assert hosts.compared("t.shop.example", [], site, ["192.0.2.1"]).result == "skipped"


CLAIM, LOOPBACK = forwarded.CLAIMED, ("127.0.0.0/8",)


@pytest.mark.parametrize(
    ("claimed", "unclaimed", "own", "public", "trusted", "result"),
    [
        ("8.8.8.8", "8.8.8.8", "8.8.8.8", ["9.9.9.9"], LOOPBACK, "ok"),
        ("8.8.8.8", "8.8.8.8", "192.168.1.5", ["9.9.9.9"], LOOPBACK, "ok"),
        ("8.8.8.8", "8.8.8.8", "8.8.4.4", ["9.9.9.9"], LOOPBACK, "warning"),
        ("9.9.9.9", "9.9.9.9", "192.168.1.5", ["9.9.9.9"], LOOPBACK, "wrong"),
        ("10.0.0.5", "10.0.0.5", "8.8.8.8", ["9.9.9.9"], LOOPBACK, "wrong"),
        (CLAIM, "127.0.0.1", "8.8.8.8", ["9.9.9.9"], LOOPBACK, "wrong"),
        (CLAIM, "127.9.9.9", "127.9.9.9", ["127.0.0.1"], LOOPBACK, "ok"),
        (CLAIM, "8.8.8.8", "8.8.8.8", ["9.9.9.9"], LOOPBACK, "wrong"),
        ("none", "none", "8.8.8.8", ["9.9.9.9"], LOOPBACK, "wrong"),
    ],
)
def test_whose_address_it_is(
    claimed: str, unclaimed: str, own: str, public: list[str], trusted: tuple[str, ...], result: str
) -> None:
    """Behind NAT our own address is not the one that is seen; a proxy's is its host's, or a private one."""
    assert forwarded.judge(claimed, unclaimed, own, CLAIM, public, trusted).result == result


def test_what_browsers_make_of_the_cookie() -> None:
    """Domain, Secure and Max-Age."""
    good = "km_ai=x; Max-Age=34560000; Path=/; SameSite=Lax; Domain=shop.example; Secure"
    assert list(attributes(good, "www.shop.example", True)) == []
    assert len(list(attributes(good, "www.myshop.example", True))) == 1
    assert len(list(attributes("km_ai=x", "www.shop.example", True))) == 2
    assert len(list(attributes("km_ai=x", "www.shop.example", False))) == 1


@pytest.mark.parametrize(
    ("status", "kind", "etag", "result"),
    [
        (200, "text/javascript; charset=utf-8", 'W/"abc"', Result.OK),
        (200, "application/javascript", '"abc"', Result.OK),
        (200, "text/javascript", 'W/"old"', Result.WRONG),
        (200, "text/javascript", "", Result.WRONG),
        (200, "text/html", 'W/"abc"', Result.WRONG),
        (404, "text/plain", "", Result.WRONG),
    ],
)
def test_pages_must_get_the_script_that_the_settings_make(status: int, kind: str, etag: str, result: Result) -> None:
    """An old one has the names and the consent rules of yesterday."""
    asked = Asked(status, httpx.Headers({"content-type": kind, "etag": etag}), b"", None, None, "")
    found = script.judge("https://shop.example/x7/willow.js", asked, Script(b"", b"", b'W/"abc"', ""))
    assert (found.result, bool(found.mend)) == (result, result is Result.WRONG)


def test_only_an_answer_like_ours_counts_as_exposed() -> None:
    """Sites have health checks of their own."""
    assert is_ours("/healthz", 200, b"alive\n")
    assert not is_ours("/healthz", 200, b"OK")
    assert is_ours("/readyz", 503, b"spool is full")
    assert is_ours("/readyz", 503, b"the spool is full: 2 of max_bytes 1\n")
    assert is_ours("/readyz", 200, b"ready; 3 beacons wait in sqlite:fallback\n")
    assert not is_ours("/readyz", 404, b"ready\n")
    assert not is_ours("/readyz", 503, b"<html>Service Unavailable</html>")
    assert not is_ours("/metrics", 404, b"beacon_proxy_received")
    assert not is_ours("/", 200, b"<html>Shop</html>")
