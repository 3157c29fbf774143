"""Who the client is, as far as proxies we trust vouch for it. Forwarding headers from anybody else are not even read."""

import ipaddress
import re
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FOR = re.compile(r"""(?:^|[;,\s])for\s*=\s*("[^"]*"|[^;,\s]*)""", re.IGNORECASE)

MAX_HOPS = 32
"""A longer chain than any real one: what lies further left is not looked at."""


class TrustedProxies:
    """A set of networks, and the walk through a chain of addresses from the nearest hop to the first that is not in it."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(network, strict=False) for network in networks)
        self._trusted = lru_cache(maxsize=4096)(self._look_up)

    def client(self, peer: str, forwarded_for: str) -> str:
        """The client's address; `peer` is the socket's, "" for a Unix socket (which is trusted: it is this machine)."""
        if not self.trusts(peer):
            return peer
        client = peer
        for hop in reversed(forwarded_for[-4096:].split(",")[-MAX_HOPS:]):
            address = parse_address(hop)
            if address is None:
                break
            client = str(address)
            if not self._trusted(client):
                break
        return client

    def trusts(self, peer: str) -> bool:
        """Whether forwarding headers of that peer are believed."""
        return not peer or self._trusted(peer)

    def _look_up(self, text: str) -> bool:
        address = parse_address(text)
        return address is not None and any(address in network for network in self._networks)


def forwarded_chain(header: str) -> str:
    """A Forwarded header (RFC 7239) as an X-Forwarded-For chain. Hops that hide themselves ("unknown", "_x") stay as they are."""
    return ",".join(value.strip('"') for value in _FOR.findall(header[-4096:]))


def truncated(address: str) -> str:
    """The address's network: IPv4 /24, IPv6 /48; "" for what is no address."""
    found = parse_address(address)
    if found is None:
        return ""
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False).network_address)


def customer(address: str) -> str:
    """Whom an address belongs to, for counting: an IPv6 address's /64 (the least anybody gets, RFC 6177), else itself."""
    found = parse_address(address)
    if found is None or found.version == 4:
        return str(found or address)
    return str(ipaddress.ip_network((found, 64), strict=False).network_address)


def parse_address(text: str) -> Address | None:
    """An address as it stands in a forwarding header: with or without port, brackets, IPv4-mapped; None for anything else."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # a zone is the sender's own affair (RFC 4007)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
