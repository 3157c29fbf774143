"""The spool's address: `nats://HOST[:PORT],HOST…?stream=NAME&replicas=N&…`. No secret is in it: it is shown in many places."""

import re
from urllib.parse import parse_qsl, urlsplit

import msgspec

EXAMPLE = "nats://host1,host2,host3?stream=beacons&replicas=3"
PARAMETERS = ("stream", "replicas", "credentials", "nkey", "token_file", "tls", "ca")
LOGINS = ("credentials", "nkey", "token_file")
PORT = 4222
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]{1,253})(:(\d{1,5}))?")


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
    """Raises ValueError that says what was expected, and shows nothing of the URL that may be secret."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f"expected {EXAMPLE}") from None
    if "@" in url.partition("?")[0]:
        raise ValueError(
            "expected no user, password or token in the URL, which is shown in logs and lists of processes; put it into a file: "
            "?credentials=FILE, ?nkey=FILE or ?token_file=FILE"
        )
    if url.partition("?")[0].count("://") > 1:
        raise ValueError(f"expected nats:// once, before the first host: {EXAMPLE}")
    if parts.scheme != "nats" or parts.path not in ("", "/") or parts.fragment:
        raise ValueError(f"expected {EXAMPLE}")
    servers = tuple(_server(host) for host in parts.netloc.split(","))
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
    match = _HOST.fullmatch(host)
    port = int(match[3] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"found {host!r}, expected HOST or HOST:PORT with a port up to 65535 (else {PORT}), as in {EXAMPLE}")
    return f"nats://{match[1]}:{port}"
