"""The spool's address: `nats://HOST[:PORT],HOST…?stream=NAME&replicas=N&…`. No secret is in it: it is shown in many places."""

import re
from urllib.parse import parse_qsl

import msgspec

EXAMPLE = "nats://host1,host2,host3?stream=beacons&replicas=3"
PARAMETERS = ("stream", "replicas", "credentials", "nkey", "token_file", "tls", "ca")
LOGINS = ("credentials", "nkey", "token_file")
PORT = 4222
EXPECTED = f"expected {EXAMPLE}; a port other than {PORT} stands after its host, as in host1:4333"
LOGIN_INSIDE = (
    "expected no user, password or token in the URL, which is shown in logs and lists of processes; put it into a file: "
    "?credentials=FILE, ?nkey=FILE or ?token_file=FILE"
)
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]{1,253})(?::(.*))?", re.DOTALL)


class Address(msgspec.Struct, frozen=True):
    """Where the servers are, what the streams are called, and who we are to them."""

    servers: tuple[str, ...]
    """`nats://HOST:PORT` each."""
    stream: str = "beacons"
    """What the names of all streams and subjects begin with."""
    replicas: int = 1
    """Servers that store each hit before it is acknowledged: 1, 3 or 5."""
    credentials: str = ""
    """A file with a JWT and its seed, as `nsc` writes it."""
    nkey: str = ""
    """A file with an nkey's seed."""
    token_file: str = ""
    tls: bool = False
    ca: str = ""
    """A file with the certificates that are trusted, in place of the system's."""


def parse(url: str) -> Address:
    """Raises ValueError that says what is wrong and what was expected, and shows nothing of the URL that may be secret."""
    before, _, query = url.partition("?")
    if "@" in before:
        raise ValueError(LOGIN_INSIDE)
    scheme, separator, hosts = before.partition("://")
    if (scheme, separator) != ("nats", "://"):
        raise ValueError(f"nats:// is not what it begins with; {EXPECTED}")
    try:
        servers = tuple(_server(host) for host in hosts.removesuffix("/").split(","))
    except ValueError:
        if "@" in query:  # of a password that has a question mark in it
            raise ValueError(LOGIN_INSIDE) from None
        raise
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError(f"what is after the ? is not NAME=VALUE&NAME=VALUE; {EXPECTED}") from None
    given = dict(pairs)
    for name, value in given.items():
        if name not in PARAMETERS:
            raise ValueError(f"{name!r} is no parameter of it; expected {', '.join(PARAMETERS)}")
        if not value:
            raise ValueError(f"{name} is empty")
    if len(given) < len(pairs) or len([name for name in LOGINS if name in given]) > 1:
        raise ValueError(f"expected each parameter once, and one of {', '.join(LOGINS)} at most")
    stream = given.get("stream", "beacons")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", stream):
        raise ValueError("expected stream= a name of letters, digits and dashes, 64 at most")
    replicas = given.get("replicas", "3" if len(servers) >= 3 else "1")
    if replicas not in ("1", "3", "5"):
        raise ValueError("expected replicas=1, 3 or 5: a majority of them must be there")
    if given.get("tls", "1") != "1":
        raise ValueError("expected tls=1, or no tls")
    files = {name: given.get(name, "") for name in (*LOGINS, "ca")}
    return Address(servers, stream, int(replicas), tls="tls" in given or "ca" in given, **files)


def _server(host: str) -> str:
    wrong, shown = "", repr(host[:80])
    if not host:
        wrong = "there is no host"
    elif "://" in host:
        wrong = f"{shown}: nats:// stands once, before the first host"
    elif "/" in host:
        wrong = f"{shown}: there is no path in it"
    elif (match := _HOST.fullmatch(host)) is None:
        wrong = f"{shown} is no host" + (": a space is in it" if " " in host else "")
    elif match[2] is not None and not (re.fullmatch(r"[0-9]{1,5}", match[2]) and 0 < int(match[2]) < 65536):
        wrong = f"{shown}: {match[2][:80]!r} is no port"
    else:
        return f"nats://{match[1]}:{int(match[2] or PORT)}"
    raise ValueError(f"{wrong}; {EXPECTED}")
