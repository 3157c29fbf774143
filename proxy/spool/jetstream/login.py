"""What the client must be told to be let in. What is wrong with a file is told before anything is asked of a server, and nothing
of what is in it.
"""

import base64
import contextlib
import json
import re
import ssl
from pathlib import Path
from typing import Any

from proxy.spool.jetstream.address import Address
from proxy.spool.port import SpoolError

INSTALL = "spool: a nats:// spool needs the package nats-py; install it with `pip install 'nats-py[nkeys]'`"
CREDENTIALS = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)\s.*BEGIN USER NKEY SEED-+\s+(\S+)\s", re.DOTALL)


class _Wrong(ValueError):
    """What was expected of a file."""


def login(address: Address) -> dict[str, Any]:
    """The client's options. Raises SpoolError where the package or a file is missing, or a file is not what it should be."""
    try:
        import nats.aio.client  # noqa: F401
    except ImportError:
        raise SpoolError(INSTALL) from None
    options: dict[str, Any] = {}
    for name in ("credentials", "nkey", "token_file", "ca"):
        path = getattr(address, name)
        if not path:
            continue
        try:
            content = Path(path).read_text()
            if name == "credentials":
                credentials = _Credentials(Path(path))
                options.update(signature_cb=credentials.sign, user_jwt_cb=credentials.jwt)
            elif name == "nkey":
                _pair_of(content.strip())
                options["nkeys_seed_str"] = content
            elif name == "token_file":
                options["token"] = content.strip()
            else:
                options["tls"] = ssl.create_default_context(cafile=path)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError, UnicodeDecodeError a ValueError
            reason = str(error) if isinstance(error, _Wrong) else getattr(error, "strerror", None) or "not what was expected"
            raise SpoolError(f"spool: {name}={path}: {reason}") from None
    if address.tls:
        options.setdefault("tls", ssl.create_default_context())
    return options


class _Credentials:
    """A user's JWT and seed, as `nsc generate creds` writes them. A JWT expires, and is replaced: the file is read for each
    connection, and while it is not what it should be (it is just being written) what was read last is still used.

    Raises OSError and ValueError where the file is wrong from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read()

    def sign(self, nonce: str) -> bytes:
        """The client calls it before `jwt`, and is lost if it fails."""
        with contextlib.suppress(OSError, ValueError):
            self._read()
        return base64.b64encode(self._pair.sign(nonce.encode()))

    def jwt(self) -> bytes:
        return self._jwt

    def _read(self) -> None:
        found = CREDENTIALS.search(self._path.read_text())
        if found is None:
            raise _Wrong("expected a user's JWT and seed, as `nsc generate creds` writes them")
        jwt, pair = found[1], _pair_of(found[2])
        if _user_of(jwt) != pair.public_key.decode():
            raise _Wrong("the seed in it is not that of the user in its JWT; expected what `nsc generate creds` writes")
        self._jwt, self._pair = jwt.encode(), pair


def _user_of(jwt: str) -> str:
    """The public key that it is about."""
    try:
        payload = jwt.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])
    except (ValueError, LookupError, TypeError):
        raise _Wrong("the JWT in it cannot be read; expected what `nsc generate creds` writes") from None


def _pair_of(seed: str) -> Any:
    """The key pair."""
    import nkeys

    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except Exception:  # whatever its parts raise
        raise _Wrong("expected the seed of a user's nkey, which begins with SU") from None
