"""The files in deploy/, in the real programs: nginx before real collectors, with only ports and paths changed."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ProxyProcess, SandboxProcess, children, free_port, listening, need, wait_for
from in_thread import InThread

DEPLOY = Path(__file__).parent.parent / "deploy"
MAIN = """
daemon off; worker_processes 2; pid {place}/nginx.pid; error_log {place}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
  uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; access_log {place}/site.log;
  include {place}/beacon-http.conf;
  include {place}/example-server.conf;
}}
"""
Serve = Callable[..., ProxyProcess]
Inside = Callable[..., InThread]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cert.pem and key.pem, self-signed."""
    place = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            need("openssl", "openssl"),
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            *("-subj", "/CN=www.example.com", "-addext", "subjectAltName=DNS:www.example.com,IP:127.0.0.1"),
            *("-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return place


class Nginx:
    """Debian's nginx with the files of deploy/nginx."""

    def __init__(self, place: Path, certificate: Path, collectors: list[int], access_log: bool, more: dict[str, str]) -> None:
        self._program = need("nginx", "nginx-light")
        self.place, self.port, self.certificate = place, free_port(), certificate / "cert.pem"
        self.url = f"https://127.0.0.1:{self.port}/x7"
        self.tls = ssl.create_default_context(cafile=str(self.certificate))
        self.lost = place / "beacon-lost.jsonl"
        first, *others = collectors
        changes = {
            "127.0.0.1:8000": f"127.0.0.1:{first}",
            "listen 80;": f"listen 127.0.0.1:{free_port()};",
            "listen [::]:80;": f"listen 127.0.0.1:{free_port()};",
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "listen [::]:443 ": f"listen 127.0.0.1:{free_port()} ",
            "/etc/letsencrypt/live/www.example.com/fullchain.pem": str(self.certificate),
            "/etc/letsencrypt/live/www.example.com/privkey.pem": str(certificate / "key.pem"),
            "/etc/nginx/snippets": str(place),
            "/var/log/nginx": str(place),
            "/var/cache/nginx-beacon": str(place / "cache"),
        }
        if others:
            changes["#server 10.0.0.2:8000"] = f"server 127.0.0.1:{others[0]}"
        if access_log:
            changes |= {"    access_log off;\n": "", "#access_log": "access_log"}
        changes |= more
        unused = set(changes)
        for name in ("beacon-http.conf", "beacon-location.conf", "example-server.conf"):
            text = (DEPLOY / "nginx" / name).read_text()
            for there, here in changes.items():
                if there in text:
                    unused.discard(there)
                    text = text.replace(there, here)
            (place / name).write_text(text)
        assert not unused, f"no longer in deploy/nginx: {unused}"
        main = place / "nginx.conf"
        main.write_text(MAIN.format(place=place, user="user root;" if os.geteuid() == 0 else ""))
        self._command = [self._program, "-p", str(place), "-c", str(main)]
        with (place / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(self._command, stderr=stderr)
        wait_for(lambda: self.process.poll() is not None or listening(self.port), "nginx")
        assert self.process.poll() is None, (place / "stderr").read_text()

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """A client that comes from that address of this machine, so that each test's clients have limits of their own."""
        return httpx.Client(transport=httpx.HTTPTransport(verify=self.tls, local_address=address), timeout=20)

    def curl(self, target: str, *arguments: str) -> str:
        """The HTTP version and status of a request by the server's name."""
        done = subprocess.run(
            [
                need("curl", "curl"),
                "-sS",
                "--cacert",
                str(self.certificate),
                "-o",
                "/dev/null",
                "-w",
                "%{http_version} %{http_code}\\n",
                *("--resolve", f"www.example.com:{self.port}:127.0.0.1", *arguments),
                f"https://www.example.com:{self.port}{target}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def lost_lines(self) -> list[dict[str, Any]]:
        """The whole ones. nginx writes a line just after the answer: wait for those that are expected."""
        return [json.loads(line) for line in self.lost.read_bytes().decode("latin-1").split("\n")[:-1] if line]

    def reload(self) -> None:
        """Returns when new workers, and the two processes of the cache, have taken over."""
        before = set(children(self.process.pid))
        subprocess.run([*self._command, "-s", "reload"], check=True, capture_output=True, timeout=20)
        wait_for(lambda: len(set(children(self.process.pid)) - before) >= 4, "the new workers")

    def take_log(self) -> Path:
        """The log as it is, put aside as docs/nginx.md says; a new one is begun."""
        aside = self.lost.rename(self.place / "beacon-lost.1")
        subprocess.run([*self._command, "-s", "reopen"], check=True, capture_output=True, timeout=20)
        wait_for(self.lost.exists, "the new log")
        return aside

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


@pytest.fixture
def nginx(tmp_path: Path, certificate: Path) -> Iterator[Callable[..., Nginx]]:
    started: list[Nginx] = []

    def start(*collectors: int, access_log: bool = False, more: dict[str, str] | None = None) -> Nginx:
        place = tmp_path / "nginx"
        place.mkdir()
        started.append(Nginx(place, certificate, list(collectors), access_log, more or {}))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def ingest(proxy: ProxyProcess, log: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "ingest", "--json", str(log)], env=proxy.environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def names(sandbox: SandboxProcess) -> set[str]:
    return {beacon["params"]["_n"] for beacon in sandbox.beacons()}


def is_pixel(answer: httpx.Response) -> bool:
    return len(answer.content) == 43 and answer.content.startswith(b"GIF89a") and "no-store" in answer.headers["cache-control"]


def test_by_http2_and_tls_and_what_a_client_claims_of_itself_is_not_believed(
    inside: Inside, sandbox: SandboxProcess, nginx: Callable[..., Nginx]
) -> None:
    """The address at the vendor is the socket's; the cookie is Secure, since the visitor came by https."""
    proxy = inside(prefix="/x7", address_property="_ip")
    front = nginx(proxy.port)
    claims = {
        "X-Forwarded-For": "192.0.2.66",
        "Forwarded": "for=192.0.2.67;proto=http",
        "X-Real-IP": "192.0.2.68",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Beacon-Stamp": "1000000000.000 00000000000000000000000000000000",
    }
    spoofed = [part for name, value in claims.items() for part in ("-H", f"{name}: {value}")]
    assert front.curl("/x7/e?_n=Two", "--http2", "--interface", "127.0.0.5", *spoofed) == "2 200"
    assert front.curl("/x7/e", "--http1.1", "--interface", "127.0.0.6", *spoofed, "-d", "_n=One&_p=me") == "1.1 200"
    with front.client("127.0.0.7") as client:
        answer = client.get(f"{front.url}/e?_n=Three", headers=claims)
    assert is_pixel(answer)
    assert "Secure" in answer.headers["set-cookie"]
    beacons = {beacon["params"]["_n"]: beacon["params"] for beacon in sandbox.wait(3)}
    assert {name: params["_ip"] for name, params in beacons.items()} == {
        "Two": "127.0.0.5",
        "One": "127.0.0.6",
        "Three": "127.0.0.7",
    }
    assert all(int(params["_t"]) > 1_600_000_000 for params in beacons.values())
    assert not front.lost_lines()


def test_limits_of_size_and_of_requests_from_one_address(inside: Inside, nginx: Callable[..., Nginx]) -> None:
    """A flood ends at nginx, with the GIF all the same; a body no beacon can have is not read."""
    proxy = inside(prefix="/x7", upstream="http://127.0.0.1:9")
    front = nginx(proxy.port)
    with front.client() as client:
        assert client.post(f"{front.url}/e?_n=n&_p=p", content=b"x=" + b"y" * 62_000).status_code == 200
        assert client.post(f"{front.url}/e?_n=n&_p=p", content=b"x=" + b"y" * 66_000).status_code == 413
        assert client.get(f"{front.url}/elsewhere").status_code == 404
    wait_for(lambda: proxy.status()["dropped"] == {"too_large": 1}, "the drop in the ledger")
    proxy.kill()
    flood = front.curl("/x7/e?_n=[1-600]&_p=me", "--http2", "--parallel", "--parallel-max", "50", "--interface", "127.0.0.8")
    statuses = flood.split()[1::2]
    assert set(statuses) == {"200", "429"}
    assert statuses.count("200") >= 200
    wait_for(lambda: len(front.lost_lines()) == statuses.count("200"), "the lines")
    with front.client("127.0.0.8") as client, ThreadPoolExecutor(8) as at_once:
        answers = at_once.map(lambda _: client.get(f"{front.url}/e?_n=n&_p=p"), range(600))
        limited = [answer for answer in answers if answer.status_code == 429]
    assert limited
    assert all(is_pixel(answer) for answer in limited)


def test_one_of_two_collectors_may_die_under_load_and_nothing_is_lost(
    serve: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx], tmp_path: Path
) -> None:
    """Every answer is 200, and every one of them is at the vendor: the other collector took it."""
    stays = serve(prefix="/x7", spool=tmp_path / "stays", durability="os")
    dies = serve(prefix="/x7", spool=tmp_path / "dies", durability="os")
    front = nginx(stays.port, dies.port)
    sent = 0

    def send(n: int) -> None:
        nonlocal sent
        for _ in range(n):
            assert client.get(f"{front.url}/e?_n=n{sent}&_p=me").status_code == 200
            sent += 1

    with front.client("127.0.0.9") as client:
        send(40)
        dies.kill()
        send(60)
        back = serve(prefix="/x7", spool=tmp_path / "dies", port=dies.port)
        wait_for(lambda: send(1) is None and back.status()["received"] > 20, "it to be used again")
    assert wait_for(lambda: names(sandbox) == {f"n{n}" for n in range(sent)}, "all at the vendor")
    assert not front.lost_lines()


def test_what_nobody_took_is_answered_logged_and_ingested_once(
    serve: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx], tmp_path: Path
) -> None:
    """The page never breaks, the loss is no loss, and taking the log in twice counts nothing twice."""
    first, second = (serve(prefix="/x7", spool=tmp_path / name, address_property="_ip") for name in ("first", "second"))
    front = nginx(first.port, second.port)
    first.kill()
    second.kill()
    body = "_n=Large&_p=me&v=" + '%C3%AB\x01"\\' * 6_000
    with front.client("127.0.0.10") as client:
        client.headers.update({"user-agent": 'Te"st\\1', "referer": "https://www.example.com/tea?x=1"})
        client.headers["cookie"] = "km_ai=known%20one; session=secret"
        answers = [client.get(f"{front.url}/e?_n=Get")]
        del client.headers["cookie"]
        answers += [client.get(f"{front.url}/e?_n=New")]
        answers += [client.post(f"{front.url}/e", content=body, headers={"content-type": "text/plain"})]
        answers += [client.post(f"{front.url}/a", data={"_p": "one", "_n": "two"})]
        assert all(answer.status_code == 200 and is_pixel(answer) for answer in answers)
        assert client.head(f"{front.url}/e?_n=Head&_p=me").status_code == 200
        assert client.get(f"{front.url}/s?_p=me&k=v", headers={"sec-gpc": "1"}).status_code == 200
        assert client.get(f"{front.url}/elsewhere").status_code == 502
        assert client.get(f"{front.url}/fallback").status_code == 404
    logged = wait_for(lambda: len(found := front.lost_lines()) == 5 and found, "the lines")
    assert [(line["method"], line["uri"]) for line in logged] == [
        ("GET", "/x7/e?_n=Get"),
        ("GET", "/x7/e?_n=New"),
        ("POST", "/x7/e"),
        ("POST", "/x7/a"),
        ("GET", "/x7/s?_p=me&k=v"),
    ]
    assert "secret" not in front.lost.read_text("latin-1")
    assert logged[2]["body"] == body

    back = serve(prefix="/x7", spool=tmp_path / "first", address_property="_ip", port=first.port)
    log = front.take_log()
    taken = ingest(back, log)
    assert (taken["lines"], taken["taken"], taken["dropped"]) == (5, 4, {"gpc": 1})
    beacons = {beacon["params"]["_n"]: beacon["params"] for beacon in sandbox.wait(4)}
    assert beacons.keys() == {"Get", "New", "Large", "two"}
    assert (beacons["Get"]["_p"], beacons["Get"]["_ip"]) == ("known one", "127.0.0.10")
    assert beacons["Get"]["URL"] == "https://www.example.com/tea?x=1"
    assert beacons["Get"]["_t"] == logged[0]["stamp"].partition(".")[0]

    assert ingest(back, log)["taken"] == 4
    sandbox.wait(8)
    assert {name: sandbox.report()[name] for name in ("counted", "duplicates")} == {"counted": 4, "duplicates": 4}


def test_a_spool_that_refuses_is_a_case_for_the_log_too(serve: Serve, nginx: Callable[..., Nginx], tmp_path: Path) -> None:
    """503 from every collector: the log is the second place to store a beacon, and the visitor has his 200."""
    proxy = serve(prefix="/x7", upstream="http://127.0.0.1:9", max_bytes="1MiB", concurrency="1")
    front = nginx(proxy.port)
    with front.client("127.0.0.11") as client:
        for n in range(40):
            assert client.post(f"{front.url}/e?_n=n{n}&_p=p", content=b"v=" + b"x" * 60_000).status_code == 200
    logged = wait_for(lambda: len(found := front.lost_lines()) == 40 - proxy.status()["pending"] and found, "each in one place")
    assert 0 < len(logged) < 40
    assert all(len(line["body"]) == 60_002 for line in logged)


@pytest.fixture
def log_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs here: run as root to test the full disk for real")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


BEFORE_THE_NEWLINE = {'\'\\n{"time"': '\'{"time"'}
"""The format of earlier files: a record began where the one before it ended, in the middle of a line or not."""
HOSTILE = '{"time":"2024-10-27T03:33:20+00:00","stamp":"1730000000.123 x"}\\'


@pytest.mark.parametrize("older", [{}, BEFORE_THE_NEWLINE], ids=["now", "older"])
def test_after_a_full_log_disk_every_whole_record_is_taken(
    serve: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx], tmp_path: Path, log_disk: Path, older: dict[str, str]
) -> None:
    """nginx writes half a record when the disk is full. The next one is a beacon that was answered 200, and is as good as any."""
    lost = log_disk / "beacon-lost.jsonl"
    ballast = log_disk / "ballast"
    front = nginx(9, more={str(tmp_path / "nginx" / lost.name): str(lost), **older})  # no collector is there
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        # The number is the last thing in the record, which is whole if it is there.
        answer = client.post(f"{front.url}/e?_n=n{sent}", content=f"pad={HOSTILE}{'x' * 900}&_p=p{sent}".encode())
        assert answer.status_code == 200

    def room() -> int:
        return os.statvfs(log_disk).f_bavail

    def half_written() -> bool:
        before = lost.read_bytes()
        send()  # nginx has written what it can of the one before when it answers this one
        if before != lost.read_bytes() or room():
            return False
        if before.endswith(b'"}\n'):  # by chance the last one just fits
            os.truncate(ballast, ballast.stat().st_size - 4096)
            return False
        return True

    def goes_on() -> bool:
        before = lost.stat().st_size
        send()
        return lost.stat().st_size > before

    with front.client("127.0.0.17") as client:
        client.headers["user-agent"] = HOSTILE
        for _ in range(2):
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filling:
                while room() > 4:
                    filling.write(b"0" * 4096)
            wait_for(half_written, "half a record")
            ballast.unlink()
            wait_for(goes_on, "room in the log")
        send()
    wait_for(lambda: f'_p=p{sent}"}}\n'.encode() in lost.read_bytes(), "the last line")
    text = lost.read_bytes()
    record = re.compile(rb'\{"time":"(?:[^{]|\{(?!"time":"))*&_p=p(\d+)"}')
    between, whole = [], []
    for number, part in enumerate(record.split(text)):
        (whole if number % 2 else between).append(part)
    halves = sum(max(part.count(b'{"time":"'), 1) for part in between if part.strip())
    joined = sum(not part.endswith(b"\n") for part in between if part.strip())
    assert halves >= 2
    assert (joined >= 2) is bool(older)

    proxy = serve(prefix="/x7")
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "ingest", "--json", str(lost)], env=proxy.environment, capture_output=True, timeout=60
    )
    taken = json.loads(done.stdout)
    assert (done.returncode, taken["taken"], taken["not_taken"]) == (1, len(whole), {"half": halves})
    lines = text.split(b"\n")
    assert not any(record.fullmatch(lines[example["line"] - 1]) for example in taken["examples"])
    assert {beacon["params"]["_n"] for beacon in sandbox.wait(len(whole))} == {f"n{int(number)}" for number in whole}
    assert sandbox.report()["duplicates"] == 0


def test_pages_have_the_script_while_no_collector_answers(inside: Inside, nginx: Callable[..., Nginx]) -> None:
    """As it was last given, each host's own; so what such pages send is in the log, and nothing is lost."""
    proxy = inside(prefix="/x7", script="willow", upstream="http://127.0.0.1:9")
    usual = "location ~* \\.(js|css|png|gif|jpg)$ { return 410; }"
    front = nginx(proxy.port, more={"    location / {": f"{usual} location / {{", "valid 200 10s;": "valid 200 1s;"})
    with front.client("127.0.0.15") as client:
        before = {name: client.get(f"{front.url}/willow.js", headers={"accept-encoding": name}) for name in ("gzip, br", "br")}
        assert [answer.headers.get("content-encoding") for answer in before.values()] == ["gzip", None]
        assert {client.get(f"{front.url}/{name}").status_code for name in ("other.js", "other.gif")} == {404}
        tag = before["br"].headers["etag"]
        assert client.get(f"{front.url}/willow.js", headers={"if-none-match": tag}).status_code == 304
        proxy.kill()
        time.sleep(1.1)  # what is kept is no longer fresh
        for name, known in (("gzip", before["gzip, br"]), ("zstd", before["br"]), ("gzip;q=0", before["br"])):
            answer = client.get(f"{front.url}/willow.js?v=2", headers={"accept-encoding": name})
            assert (answer.status_code, answer.text) == (200, known.text)
            for header in ("etag", "cache-control", "vary", "content-type", "access-control-allow-origin"):
                assert answer.headers[header] == known.headers[header]
            assert answer.headers.get("content-encoding") == known.headers.get("content-encoding")
        assert client.get(f"{front.url}/willow.js", headers={"host": "other.example"}).status_code == 502
        assert is_pixel(client.post(f"{front.url}/b", content=b"e?_n=Viewed https://www.example.com/"))
    [line] = wait_for(front.lost_lines, "the line")
    assert (line["method"], line["uri"]) == ("POST", "/x7/b")


def test_nginx_asks_for_the_script_again_by_its_etag(inside: Inside, nginx: Callable[..., Nginx], tmp_path: Path) -> None:
    """Changed settings reach the pages, and what is the same is not sent again; an outage after that shows the newest."""
    proxy = inside(prefix="/x7", script="willow", upstream="http://127.0.0.1:9")
    front = nginx(proxy.port, more={"valid 200 10s;": "valid 200 1s; add_header X-Kept $upstream_cache_status;"})
    with front.client("127.0.0.16") as client:

        def kept() -> str:
            answer = client.get(f"{front.url}/willow.js")
            assert answer.status_code == 200
            return answer.headers["x-kept"]

        assert [kept(), kept()] == ["MISS", "HIT"]
        wait_for(lambda: kept() == "REVALIDATED", "the next question")
        old = client.get(f"{front.url}/willow.js").text
        proxy.kill()
        wait_for(lambda: kept() == "STALE", "its end")
        changed = inside(prefix="/x7", script="willow", honour_dnt="true", upstream="http://127.0.0.1:9", port=proxy.port)
        wait_for(lambda: client.get(f"{front.url}/willow.js").text != old, "the new script")
        changed.kill()
        assert client.get(f"{front.url}/willow.js").text != old


@pytest.mark.parametrize("ingested", [False, True])
def test_the_recipe_deletes_no_log_that_was_not_taken_in(tmp_path: Path, ingested: bool) -> None:
    """Pasted as it stands in the document, once and again: whatever fails, the lines are still there."""
    document = (DEPLOY.parent / "docs" / "nginx.md").read_text()
    recipe = (
        document.partition("When the collectors are back:\n\n")[2].partition("\n\n")[0].replace("/var/log/nginx", str(tmp_path))
    )
    stand_ins = (
        f"nginx() {{ :; }}; sleep() {{ :; }}; sudo() {{ {str(ingested).lower()}; }}; install() {{ touch beacon-lost.jsonl; }}\n"
    )
    (tmp_path / "beacon-lost.jsonl").write_text("first\n")
    for _ in range(2):
        subprocess.run(["sh", "-c", stand_ins + recipe], cwd=tmp_path, timeout=20, capture_output=True)
    left = "".join(path.read_text() for path in tmp_path.glob("beacon-lost.*"))
    assert left == ("" if ingested else "first\n")
    assert (tmp_path / "beacon-lost.jsonl").exists()


class Mute:
    """A way to a collector that brings requests, and no answers back: it closes when the answer comes."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.swallowed = 0
        self._to = port
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                with near, socket.create_connection(("127.0.0.1", self._to)) as far:
                    near.settimeout(10)
                    far.settimeout(10)
                    far.sendall(near.recv(65_536))
                    assert far.recv(65_536).startswith(b"HTTP/1.1 200")
                    self.swallowed += 1

    def stop(self) -> None:
        self._listening.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_beacon_that_was_stored_but_not_answered_counts_once(
    running: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx], method: str
) -> None:
    """It is offered to the next collector and stored twice, and both copies are the same to the byte, new visitor and all."""
    proxy = running(prefix="/x7")
    mute = Mute(proxy.port)
    front = nginx(mute.port, proxy.port)
    with front.client("127.0.0.12") as client:
        answer = client.request(method, f"{front.url}/e?_n=Once")
    mute.stop()
    assert answer.status_code == 200
    assert mute.swallowed == 1
    one, other = sandbox.wait(2)
    assert one["query"] == other["query"]
    assert answer.headers["set-cookie"].startswith(f"km_ai={one['params']['_p']};")
    assert {name: sandbox.report()[name] for name in ("counted", "duplicates")} == {"counted": 1, "duplicates": 1}
    assert not front.lost_lines()


def test_a_beacon_that_was_stored_and_logged_counts_once(
    running: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx]
) -> None:
    """Nobody could know that it was stored; the line in the log has the stamp that the collector got."""
    proxy = running(prefix="/x7")
    mute = Mute(proxy.port)
    front = nginx(mute.port)
    with front.client("127.0.0.14") as client:
        assert is_pixel(client.post(f"{front.url}/e", data={"_n": "Once"}))
    mute.stop()
    wait_for(lambda: len(front.lost_lines()) == 1, "the line")
    assert ingest(proxy, front.lost)["taken"] == 1
    one, other = sandbox.wait(2)
    assert one["query"] == other["query"]
    assert {name: sandbox.report()[name] for name in ("counted", "duplicates")} == {"counted": 1, "duplicates": 1}


def test_a_reload_under_load_loses_no_beacon(serve: Serve, sandbox: SandboxProcess, nginx: Callable[..., Nginx]) -> None:
    """Every 200 is at the vendor or in the fallback log, however often the configuration is read anew."""
    proxy = serve(prefix="/x7", durability="os")
    front = nginx(proxy.port)
    answered: list[str] = []
    ended = threading.Event()

    def load(number: int) -> None:
        with front.client(f"127.0.0.{20 + number}") as client:
            n = 0
            while not ended.is_set():
                name = f"n{number}-{n}"
                n += 1
                with contextlib.suppress(httpx.TransportError):  # an old worker may close between two requests
                    if client.get(f"{front.url}/e?_n={name}&_p=me").status_code == 200:
                        answered.append(name)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        before = len(answered)
        front.reload()
        wait_for(lambda before=before: len(answered) > before + 40, "more answers")
    ended.set()
    for thread in threads:
        thread.join()
    lost = {line["uri"].partition("_n=")[2].partition("&")[0] for line in front.lost_lines()}
    wait_for(lambda: set(answered) <= names(sandbox) | lost, "every 200 at the vendor or in the log")
    assert not lost


def test_no_log_but_the_fallbacks_has_a_query_or_an_address(
    inside: Inside, sandbox: SandboxProcess, nginx: Callable[..., Nginx]
) -> None:
    """Neither the access log, if one is wanted, nor the error log while every collector is away."""
    proxy = inside(prefix="/x7")
    front = nginx(proxy.port, access_log=True)
    with front.client("127.0.0.13") as client:
        assert client.get(f"{front.url}/e?_n=Told&_p=someone%40example.com").status_code == 200
        sandbox.wait(1)
        proxy.kill()
        assert client.get(f"{front.url}/e?_n=Untold&_p=someone%40example.com").status_code == 200
    front.reload()
    access = (front.place / "beacon-access.log").read_text()
    assert " GET /x7/e 200 " in access
    wait_for(lambda: len(front.lost_lines()) == 1, "the line")
    for path in front.place.iterdir():
        if path.is_file() and path not in (front.lost, front.place / "nginx.pid"):
            text = path.read_text("utf-8", "replace")
            assert not any(part in text for part in ("someone", "_n=", "127.0.0.13")), path.name


def test_the_example_for_caddy_is_one_that_caddy_takes(tmp_path: Path) -> None:
    """Parsed and provisioned by the real program; nothing is started."""
    file = DEPLOY / "caddy" / "Caddyfile"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [need("caddy", "caddy"), "validate", "--config", str(file), "--adapter", "caddyfile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Valid configuration" in done.stdout + done.stderr) == (0, True), done.stderr
    assert "not formatted" not in done.stderr


def test_a_beacon_comes_in_by_caddy_and_its_claims_are_not_believed(
    inside: Inside, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    """The same file, by http and on another port."""
    proxy = inside(prefix="/x7", address_property="_ip")
    port = free_port()
    file = tmp_path / "Caddyfile"
    text = (DEPLOY / "caddy" / "Caddyfile").read_text()
    text = text.replace("www.example.com {", f"http://127.0.0.1:{port} {{").replace("127.0.0.1:8000", f"127.0.0.1:{proxy.port}")
    file.write_text("{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}\n" + text)
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [need("caddy", "caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    with (tmp_path / "caddy.log").open("wb") as log:
        caddy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: listening(port), "caddy")
        claims = {"X-Forwarded-For": "192.0.2.66", "Forwarded": "for=192.0.2.67", "X-Beacon-Stamp": f"1000000000.000 {0:032x}"}
        assert is_pixel(httpx.get(f"http://127.0.0.1:{port}/x7/e?_n=Viewed&_p=me", headers=claims))
        [beacon] = sandbox.wait(1)
        assert beacon["params"]["_ip"] == "127.0.0.1"
    finally:
        caddy.terminate()
        caddy.wait(timeout=20)


def test_the_example_for_traefik_is_yaml_whose_names_agree() -> None:
    """Traefik itself is not in Debian, so this is all that is tried of it."""
    http = yaml.safe_load((DEPLOY / "traefik" / "dynamic.yml").read_text())["http"]
    for router in http["routers"].values():
        assert router["service"] in http["services"]
        assert set(router["middlewares"]) == set(http["middlewares"])
