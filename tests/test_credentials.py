"""A login by `credentials=FILE`: a user's JWT and seed, under a real server that believes an operator's accounts alone."""

import base64
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import nkeys
import pytest
from conftest import ProxyProcess, wait_for
from msgspec.structs import replace
from nats_operator import Account, Operator, credentials
from nats_server import NatsServer
from test_jetstream import DIED, opened, settled
from test_spool import DELIVERED, hit, names

from proxy import spool
from proxy.cli import main
from proxy.delivery import Final
from proxy.outcome import Outcome
from proxy.spool.jetstream import api
from proxy.spool.jetstream.address import Address
from proxy.spool.jetstream.intake import JetStreamIntake
from proxy.spool.jetstream.login import login
from proxy.spool.jetstream.outlet import JetStreamOutlet
from proxy.spool.port import REFUSED, Claim, DeadFilter, Settlement, SpoolConfig, SpoolError, Tapped

SCALE_OUT = Path(__file__).parent.parent / "docs" / "scale-out.md"
VERDICTS = (DELIVERED, DIED, Final(Outcome.EXPIRED, "timeout"), Final(Outcome.BOT))


@pytest.fixture(autouse=True)
def new_sites_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not within the second."""
    monkeypatch.setattr("proxy.spool.jetstream.outlet.LOOK_S", 0.0)


@pytest.fixture(scope="module")
def operator() -> Operator:
    return Operator()


@pytest.fixture(scope="module")
def server(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Lets in whom the operator knows."""
    started = NatsServer(tmp_path_factory.mktemp("nats"), operator.server_config())
    yield started
    started.stop()


@pytest.fixture
def stranger(tmp_path: Path) -> tuple[Path, str, str]:
    """The file of a user whose account the server does not know, its JWT and its seed."""
    jwt, seed = Account().user()
    file = tmp_path / "stranger.creds"
    file.write_text(credentials(jwt, seed))
    return file, jwt, seed


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_with_the_file_that_nsc_writes_the_spool_opens_stores_and_gives_out(
    server: NatsServer, operator: Operator, tmp_path: Path, line_end: str
) -> None:
    """Also where it went over a machine that ends lines in its own way."""
    file = tmp_path / "user.creds"
    file.write_text(credentials(*operator.account.user()), newline=line_end)
    with opened(server.spool(f"opens-{len(line_end)}", credentials=file)) as (intake, outlet):
        intake.append_blocking(hit("a"))
        claims = outlet.claim(10, 0)
        assert names(claims) == ["a"]
        settled(outlet, claims, DELIVERED)
        assert outlet.ledger().total(Outcome.DELIVERED) == 1


def test_a_user_whom_the_server_does_not_know_is_told_plainly(server: NatsServer, stranger: tuple[Path, str, str]) -> None:
    """Which file to look into, and nothing of what is in it."""
    file, *secret = stranger
    config = server.spool("stranger", credentials=file)
    for attempt in (JetStreamIntake, JetStreamOutlet, spool.ledger_of):
        with pytest.raises(SpoolError, match=rf"login is refused.*look into credentials={re.escape(str(file))}$") as refused:
            attempt(config)
        assert not [word for word in secret if word in str(refused.value)]
    assert "login is refused" in spool.unready(config)


def test_without_a_fallback_serve_ends_when_its_login_is_refused(
    server: NatsServer, stranger: tuple[Path, str, str], tmp_path: Path
) -> None:
    """There is nowhere to keep a beacon."""
    file, *secret = stranger
    url = server.spool("stranger", credentials=file).url
    with pytest.raises(AssertionError, match=rf"^beacon-proxy: spool: .* look into credentials={re.escape(str(file))}") as ended:
        ProxyProcess(tmp_path / "spool", "http://127.0.0.1:9", SPOOL=url, FALLBACK="", FORWARD="false")
    assert not [word for word in (*secret, "Traceback") if word in str(ended.value)]


def test_with_a_fallback_serve_goes_on_until_the_file_is_the_right_one(
    server: NatsServer, operator: Operator, stranger: tuple[Path, str, str], serve: Callable[..., ProxyProcess]
) -> None:
    """Beacons are kept on this host meanwhile, and the log says why. Nothing has to be started anew."""
    file, *secret = stranger
    config = server.spool("mended", credentials=file)
    proxy = serve(SPOOL=config.url, FORWARD="false")
    fallback = replace(config, fallback=proxy.environment["BEACON_PROXY_FALLBACK"])
    assert httpx.get(f"{proxy.url}/e?_n=a&_p=me").status_code == 200
    assert spool.fallback_pending(fallback) == 1
    file.write_text(credentials(*operator.account.user()))
    wait_for(lambda: spool.fallback_pending(fallback) == 0, "the beacon to be moved")
    assert spool.ledger_of(config).pending == 1
    log = proxy.log.read_text()
    assert f"look into credentials={file}" in log
    assert not [word for word in (*secret, "Traceback") if word in log]


WRONG: dict[str, tuple[Callable[[str, str, str], str], str]] = {
    "empty": (lambda jwt, seed, other: "", "expected a user's JWT and seed, as `nsc generate creds` writes them"),
    "the seed alone": (lambda jwt, seed, other: seed, "expected a user's JWT and seed, as `nsc generate creds` writes them"),
    "cut off": (lambda jwt, seed, other: credentials(jwt, seed).partition(seed)[0], "expected a user's JWT and seed, as"),
    "no JWT": (lambda jwt, seed, other: credentials(jwt[9:40], seed), "the JWT in it cannot be read; expected what"),
    "no seed": (lambda jwt, seed, other: credentials(jwt, seed[:20]), "expected the seed of a user's nkey, which begins with SU"),
    "another seed": (lambda jwt, seed, other: credentials(jwt, other), "the seed in it is not that of the user in its JWT"),
}
"""What is in the file, and what is said of it."""


@pytest.mark.parametrize("wrong", ["missing", *WRONG])
def test_a_file_that_cannot_be_right_is_refused_before_a_server_is_asked(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `check` and by `serve`, with a fallback or without: which setting, which file, and nothing of what is in it."""
    (jwt, seed), (_, other) = Account().user(), Account().user()
    file, said = tmp_path / "user.creds", "No such file or directory"
    if wrong in WRONG:
        content, said = WRONG[wrong]
        file.write_text(content(jwt, seed, other))
    monkeypatch.setenv("BEACON_PROXY_SPOOL", f"nats://127.0.0.1:9?credentials={file}")
    monkeypatch.setenv("BEACON_PROXY_FORWARD", "false")
    for command, fallback in (("check", ""), ("serve", ""), ("serve", f"sqlite:{tmp_path / 'fallback'}")):
        monkeypatch.setenv("BEACON_PROXY_FALLBACK", fallback)
        monkeypatch.setattr(sys, "argv", ["beacon-proxy", command])
        with pytest.raises(SystemExit) as ended:
            main.main()
        output = "".join(capsys.readouterr())
        assert ended.value.code == 2
        assert output.startswith(f"beacon-proxy: spool: credentials={file}: {said}")
        assert not [secret for secret in (jwt, jwt[9:40], seed, seed[:20], other) if secret in output]


def test_an_nkey_that_is_none_is_told_of_its_file(tmp_path: Path) -> None:
    """The same for the other key."""
    file = tmp_path / "user.nk"
    file.write_text("SUnothing")
    with pytest.raises(SpoolError, match=rf"nkey={file}: expected the seed of a user's nkey") as refused:
        spool.look_at(SpoolConfig(f"nats://127.0.0.1:9?nkey={file}"))
    assert "SUnothing" not in str(refused.value)


def test_a_file_that_is_replaced_is_used_from_the_next_connection_on(tmp_path: Path) -> None:
    """A user's JWT expires. What was read last is used while the file is just being written."""
    file = tmp_path / "user.creds"
    (first, first_seed), (second, second_seed) = Account().user(), Account().user()
    file.write_text(credentials(first, first_seed))
    options = login(Address((), credentials=str(file)))
    for content, used in (
        ("", first),
        (credentials(second, second_seed), second),
        (credentials(second, second_seed)[:-200], second),
    ):
        file.write_text(content)
        signature = base64.b64decode(options["signature_cb"]("nonce"))
        assert options["user_jwt_cb"]().decode() == used
        key = nkeys.from_seed(bytearray((first_seed if used is first else second_seed).encode()))
        assert key.verify(b"nonce", signature)


def permissions(user: str) -> tuple[list[str], list[str]]:
    """What the documentation says that a user needs: publish, subscribe. The streams are called "beacons" there."""
    [line] = [line for line in SCALE_OUT.read_text().splitlines() if "nsc add user" in line and f" --name {user} " in line]
    words = shlex.split(line)
    publish, subscribe = (words[words.index(f"--allow-{what}") + 1].split(",") for what in ("pub", "sub"))
    return publish, subscribe


def test_the_permissions_that_the_documentation_names_are_enough(server: NatsServer, operator: Operator, tmp_path: Path) -> None:
    """A collector's host, a forwarder's and an operator's do all that they do, and the server refuses nothing of it. What a
    collector's user may do is not enough to take hits out: it is the one that faces the internet.
    """
    configs = []
    for user in ("collector", "forwarder", "operator"):
        file = tmp_path / f"{user}.creds"
        file.write_text(credentials(*operator.account.user(*permissions(user))))
        configs.append(server.spool("beacons", credentials=file))
    collector, forwarder, operators = configs
    spool.prepare(collector)
    intake, outlet, other = JetStreamIntake(collector), JetStreamOutlet(forwarder), JetStreamOutlet(forwarder)
    try:
        for n in range(4):
            intake.append_blocking(hit(str(n)))
        intake.refuse("default")
        claims: list[Claim] = []
        while len(claims) < 4:
            claims += wait_for(lambda: outlet.claim(4, 0), "all hits")
        outlet.settle([Settlement(claim, verdict) for claim, verdict in zip(claims, VERDICTS, strict=True)])
        letters = spool.open_dead_letters(operators)
        assert letters.replay(DeadFilter(ids=(letters.list(DeadFilter(), 1)[0].id,)), 0, lambda n: None) == 1
        assert letters.discard(DeadFilter(), lambda n: None) == 1

        outlet.publish(b"at work")
        assert outlet.peers.exchange(b"one") == []
        [left] = other.peers.exchange(b"two") or []
        other.peers.forget(left)
        assert outlet.peers.amend(lambda before: before + b"1")
        assert (outlet.recall(), spool.forwarder_figures(operators)) == (b"1", b"1")

        with spool.watching(operators) as listener:
            listener.settimeout(10)
            wait_for(lambda: outlet.watched() and intake._tap.watched(), "the watcher to be heard")
            outlet.show(Tapped(1, "shop", "delivered"))
            assert b"delivered" in listener.recv(65536)
            intake.drop("default", Outcome.GPC)
            assert b"gpc" in listener.recv(65536)

        wait_for(lambda: spool.ledger_of(collector).total(REFUSED), "the counts")
        for config in configs:
            assert (spool.ledger_of(config).pending, spool.unready(config)) == (1, "")
            spool.intake_stats(config)
            spool.forwarder_states(config)
        outlet.peers.leave()
        assert "Violation" not in server.log()
        client = intake._link.client()
        assert client is not None
        for forbidden in (
            "CONSUMER.CREATE.beacons_hits_default.thief",
            "STREAM.PURGE.beacons_hits_default",
            "STREAM.DELETE.beacons_dead",
        ):
            with pytest.raises(TimeoutError):
                intake._link.run(api.ask(client, forbidden, patience_s=0.2), 5.0)
        assert spool.ledger_of(operators).pending == 1
    finally:
        for half in (intake, outlet, other):
            half.close()
