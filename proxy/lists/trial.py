"""Every address of a configuration against every list: what is blocked, by which rule, and what to call the guilty part instead.

A replacement is proposed only after it passed all lists itself.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from urllib.parse import urlsplit

import msgspec

from proxy.collector.config import CollectorConfig
from proxy.lists.addresses import PAIRS, Address, Part, addresses
from proxy.lists.engine import TYPES, FilterList, Rule
from proxy.lists.naming import Naming
from proxy.lists.sources import NEUTRAL_HOST, VENDOR_HOSTS

TRIES = 10
"""Drawn names that are tried for one part before it is held for not guilty."""
ANY_SITE = "www.example.com"
HOST = "host"
"""Stands for the setting where all of a host is blocked."""
ANYTHING = "/amber-fjord-27/willow"
"""A path that only a rule for the whole host blocks."""


class Blocked(msgspec.Struct):
    """What one rule blocks because of one part of the addresses."""

    setting: str
    """The setting to change; HOST if all of the host is blocked, whatever names it has."""
    found: str
    instead: str
    """A name that passes; "" if none was found."""
    rule: str
    types: list[str]
    """Of TYPES, those that are blocked."""
    addresses: int
    example: str
    """One of the addresses, without values."""
    list: str
    """The list of that rule."""


class Control(msgspec.Struct):
    """The vendor's own addresses: lists that let them pass are hardly the right ones."""

    asked: list[str]
    blocked: dict[str, str]
    """Host → "LIST: RULE"."""


class Report(msgspec.Struct):
    """What `--json` prints."""

    lists: list[str]
    hosts: list[str]
    addresses: int
    blocked: list[Blocked]
    control: Control
    control_failed: bool
    """No list blocks any address of the vendor: what they let pass means nothing."""
    beacons_in_spool: int = 0
    """Whose parameters were asked for."""


def hosts_of(config: CollectorConfig, named: Sequence[str] = ()) -> list[str]:
    """Hosts of the pages; one of them ends in .com, since some rules are for those alone."""
    hosts = list(dict.fromkeys(named or [host.replace("*.", "www.") for host in config.hosts] or [ANY_SITE]))
    return hosts if any(host.endswith(".com") for host in hosts) else [*hosts, ANY_SITE]


class Trial:
    """The lists, and the hosts on whose pages the addresses stand."""

    def __init__(self, lists: Sequence[FilterList], hosts: Sequence[str]) -> None:
        self._lists, self._hosts = lists, hosts
        self._naming = Naming()
        self._instead: dict[Part, str] = {}
        """What was found for a part serves wherever it stands."""

    def run(
        self, config: CollectorConfig, upstreams: Iterable[str], seen: Mapping[str, tuple[PAIRS, ...]] | None = None
    ) -> Report:
        """All of it. `upstreams`: the vendor's addresses, beside those of his scripts, for the control."""
        self._naming = Naming(_words(config))
        found: dict[tuple[Part, Rule], Blocked] = {}
        all_of_them = list(addresses(config, seen))
        for address in all_of_them:
            self._look_at(address, found)
        control = self._control(upstreams)
        return Report(
            [each.name for each in self._lists],
            list(self._hosts),
            len(all_of_them),
            list(found.values()),
            control,
            not control.blocked,
        )

    def _look_at(self, address: Address, found: dict[tuple[Part, Rule], Blocked]) -> None:
        """What blocks it; then, with the guilty parts replaced, what blocks it still."""
        words: dict[Part, str] = {}
        while kinds := self._kinds(address.target(words)):
            before = len(words)
            for rule, types in kinds.items():
                part = self._guilty(address, words, rule, kinds.keys())
                instead = self._instead.get(part, "")
                if instead:
                    words[part] = instead
                entry = Blocked(part.setting, part.found, instead, rule.text, [], 0, address.shown(), rule.list)
                entry = found.setdefault((part, rule), entry)
                entry.types = [kind for kind in TYPES if kind in types or kind in entry.types]
                entry.addresses += 1
            if len(words) == before:
                return

    def _kinds(self, target: str) -> dict[Rule, set[str]]:
        kinds: dict[Rule, set[str]] = {}
        for rule, kind in self.blocking(target):
            kinds.setdefault(rule, set()).add(kind)
        return kinds

    @cached_property
    def _of_hosts(self) -> dict[Rule, str]:
        """Rules that block whatever a host has → the host."""
        return {rule: host for host in reversed(self._hosts) for rule, _ in self.blocking(ANYTHING, [host])}

    def blocking(self, target: str, hosts: Sequence[str] = ()) -> Iterator[tuple[Rule, str]]:
        """(rule, type) of each list and type that blocks it, on any of the hosts."""
        for host in hosts or self._hosts:
            for each in self._lists:
                for kind in TYPES:
                    rule = each.blocks(f"https://{host}{target}", f"https://{host}/", kind)
                    if rule is not None:
                        yield rule, kind

    def passes(self, target: str) -> bool:
        """Whether no list blocks it as anything, on any of the hosts."""
        return next(self.blocking(target), None) is None

    def _guilty(self, address: Address, words: Mapping[Part, str], rule: Rule, all_rules: Collection[Rule]) -> Part:
        """The first part without which the rule does not match; the name itself if that is no single part."""

        if rule in self._of_hosts:
            return Part(HOST, self._of_hosts[rule])

        def frees(part: Part, name: str) -> bool:
            left = {rule for rule, _ in self.blocking(address.target({**words, part: name}))}
            return rule not in left and left <= set(all_rules)

        parts = [part for part in address.parts() if part not in words]
        for part in parts:
            if part in self._instead and frees(part, self._instead[part]):
                return part
        for part in parts:
            for _ in range(TRIES if part in parts[:2] else 1):
                name = self._another(part)
                if part not in self._instead and frees(part, name):
                    self._instead[part] = name
                    return part
        return address.name

    def _another(self, part: Part) -> str:
        if part.setting == "prefix":
            return self._naming.prefix()
        return self._naming.parameter() if part.setting.startswith("parameters.") else self._naming.path_name()

    def _control(self, upstreams: Iterable[str]) -> Control:
        named = [urlsplit(url).hostname or "" for url in upstreams]
        hosts = dict.fromkeys([host for host in named if not _is_loopback(host)] + list(VENDOR_HOSTS))
        page = f"https://{self._hosts[0]}/"
        blocked: dict[str, str] = {}
        for host in hosts:
            for kind in TYPES:
                path = "/i.js" if kind == "script" else "/e?_n=x&_p=x"
                for each in self._lists:
                    rule = each.blocks(f"https://{host}{path}", page, kind)
                    if rule is not None and rule != each.blocks(f"https://{NEUTRAL_HOST}{path}", page, kind):
                        blocked.setdefault(host, f"{rule.list}: {rule.text}")
        return Control(list(hosts), blocked)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _words(config: CollectorConfig) -> set[str]:
    """What the configuration's own names are made of."""
    named = [*config.script.names, *config.prefixes]
    named += [name for names in (*config.endpoints.values(), *config.parameters.values()) for name in names]
    return {word for name in named for word in re.findall(r"[a-z]+", name)}
