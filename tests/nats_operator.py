"""What `nsc` makes: an operator, accounts and users, each a key, and a JWT signed by the one above (docs.nats.io, "JWTs")."""

import base64
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import nkeys

UNLIMITED = dict.fromkeys(("subs", "data", "payload"), -1)
OF_ACCOUNT = {**dict.fromkeys(("imports", "exports", "conn", "leaf"), -1), "wildcards": True}
JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Identity:
    """Somebody with a key."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public: str = self._pair.public_key.decode()

    def vouches_for(self, other: "Identity", type: str, **claims: Any) -> str:
        """A JWT."""
        claims = {"type": type, "version": 2, **claims}
        body = {"jti": secrets.token_hex(8), "iat": int(time.time()), "iss": self.public, "sub": other.public, "nats": claims}
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(body)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Account(Identity):
    """Has users."""

    def __init__(self) -> None:
        super().__init__(nkeys.PREFIX_BYTE_ACCOUNT)

    def user(self, publish: Sequence[str] = (), subscribe: Sequence[str] = ()) -> tuple[str, str]:
        """JWT and seed of a new one, who may do so much; with nothing said, everything."""
        user = Identity(nkeys.PREFIX_BYTE_USER)
        allowed = {"pub": {"allow": list(publish)}, "sub": {"allow": list(subscribe)}}
        return self.vouches_for(user, "user", **UNLIMITED, **allowed), user.seed


class Operator(Identity):
    """Has accounts: one with JetStream, and the servers' own, without which there is no JetStream."""

    def __init__(self) -> None:
        super().__init__(nkeys.PREFIX_BYTE_OPERATOR)
        self.account, self._system = Account(), Account()

    def server_config(self) -> str:
        """The part of a server's that lets them in."""
        limits = {self.account: {**UNLIMITED, **OF_ACCOUNT, **JETSTREAM}, self._system: {**UNLIMITED, **OF_ACCOUNT}}
        accounts = "".join(
            f"{account.public}: {self.vouches_for(account, 'account', limits=limit)}\n" for account, limit in limits.items()
        )
        return (
            f"operator: {self.vouches_for(self, 'operator')}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{\n{accounts}}}\n"
        )


def credentials(jwt: str, seed: str) -> str:
    """What `nsc generate creds` writes."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


def _encoded(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
