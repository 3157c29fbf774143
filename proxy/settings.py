"""Every setting: its name, type, default and meaning, where it is read from, and how a wrong one is explained.

From a TOML file and the environment, same names, the environment wins: BEACON_PROXY_ + upper case, "__" between levels. The
settings table in the docs is made from this file. Nothing here opens, connects or starts anything.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxy.beacon import reserved_name
from proxy.collector.config import CollectorConfig
from proxy.delivery import Policy
from proxy.forward.config import ForwarderConfig, Site
from proxy.hit import DEFAULT_SITE
from proxy.spool.port import SpoolConfig

PREFIX = "BEACON_PROXY_"
CONFIG_VARIABLE = "BEACON_PROXY_CONFIG"
VENDOR = "https://trk.kissmetrics.io"
PRESETS = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}


class SettingsError(Exception):
    """The settings cannot be used. The message names each setting, what was found, what was expected and what to do."""


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


A_URL = "expected a URL such as https://trk.kissmetrics.io"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")


def _url(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(A_URL)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host) or len(host) > 253:
            raise ValueError
    except ValueError:
        raise ValueError(A_URL) from None
    if parts.scheme not in ("http", "https") or port == 0:
        raise ValueError(A_URL)
    if "?" in value or "#" in value or "@" in parts.netloc:
        raise ValueError("expected a URL without user, query or fragment")
    if not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*", parts.path):
        raise ValueError("expected a URL with a plain path")
    return value.rstrip("/")


def _address_property(value: object) -> object:
    if isinstance(value, str) and value and (len(value) > 255 or not value.isprintable() or reserved_name(value)):
        raise ValueError("expected a property name such as _ip, other than the API's own _k, _p, _n, _t and _d")
    return value


def _prefix(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a path such as "/x7/y"')
    value = value.strip("/")
    if not value:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*", value) or ".." in value:
        raise ValueError('expected a path of letters, digits, "-", "_", ".", "~" and "/", such as "/x7/y"')
    return "/" + value


def _spool(value: object) -> object:
    if isinstance(value, str) and value.startswith("nats:"):
        raise ValueError("a NATS spool is not available in this version; expected sqlite:DIR or memory:")
    if not isinstance(value, str) or not re.fullmatch(r"sqlite:.+|memory:.*", value):
        raise ValueError("expected sqlite:DIR (a directory) or memory:")
    return value


def _networks(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list):
        raise ValueError("expected a list of networks")
    networks: list[str] = []
    for name in names:
        if name in PRESETS:
            networks += PRESETS[name]
            continue
        try:
            networks.append(str(ipaddress.ip_network(name, strict=False)))
        except ValueError:
            known = " or ".join(PRESETS)
            raise ValueError(f"{name!r} is no network; expected CIDRs such as 10.0.0.0/8, or {known}") from None
    return networks


def _key(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise ValueError("expected the key from the vendor's settings page: 1 to 255 printable characters, no spaces")
    return value


_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4}


def _size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,15})\s*([a-z]*)\s*", value.lower())
        if match and match[2] in _UNITS:
            return int(match[1]) * _UNITS[match[2]]
        raise ValueError("expected a size in bytes, or with a unit such as 500MB or 10GiB")
    return value


def _hosts(value: object) -> object:
    names = _comma_separated(value)
    if not isinstance(names, list) or not names:
        raise ValueError("expected at least one host name")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9a-fA-F:.]+\]", name):
            raise ValueError(f"{name!r} is no host name; expected names such as www.example.com or *.example.com")
    return [name.lower() for name in names]


ApiKey = Annotated[SecretStr, BeforeValidator(_key)]
Url = Annotated[str, BeforeValidator(_url)]


class SiteSettings(BaseModel):
    """One site of several."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: Annotated[list[str], BeforeValidator(_hosts)] = Field(
        description="Host names of the site; `*.example.com` stands for every name below it."
    )
    api_key: ApiKey | None = Field(None, description="The site's key; without one the top-level `api_key`.")
    upstream: Url | None = Field(None, description="The site's upstream; without one the top-level `upstream`.")


class Settings(BaseModel):
    """All settings. The descriptions are the docs table."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    api_key: ApiKey | None = Field(None, description="The vendor's API key (secret). Only the forwarder gets it.")
    upstream: Url = Field(VENDOR, description="Base URL of the vendor's beacon API.")
    spool: Annotated[str, BeforeValidator(_spool)] = Field(
        "sqlite:spool", description="Where beacons wait: `sqlite:DIR`, or `memory:` (a single process that may forget)."
    )
    durability: Literal["disk", "os"] = Field(
        "disk",
        description="When a beacon counts as stored: `disk` (fsync; survives a power cut) or `os` (survives the process only).",
    )
    max_bytes: Annotated[int, BeforeValidator(_size), Field(ge=1024 * 1024)] = Field(
        10 * 1024**3, description="Size of the spool at which new beacons are refused (503). `10GiB` and the like are understood."
    )
    prefix: Annotated[str, BeforeValidator(_prefix)] = Field("", description="Path before `/e`, `/s` and `/a`.")
    host: str = Field("127.0.0.1", min_length=1, description="Address the public listener binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the public listener; 0 takes a free one.")
    admin_host: str = Field("127.0.0.1", min_length=1, description="Address the admin listener binds to.")
    admin_port: int = Field(8001, ge=0, le=65535, description="Port of the admin listener; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Collector processes.")
    trusted_proxies: Annotated[list[str], BeforeValidator(_networks)] = Field(
        ["127.0.0.0/8", "::1/128"],
        validate_default=True,
        description="Networks (CIDR, or `loopback`, `private`) whose `X-Forwarded-For` is believed.",
    )
    address_property: Annotated[str, BeforeValidator(_address_property)] = Field(
        "", description="Property under which the client's address goes upstream, such as `_ip`; none by default."
    )
    engine: Literal["pyreqwest", "httpx"] = Field("pyreqwest", description="The HTTP client towards the upstream.")
    concurrency: int = Field(
        128, ge=1, le=1024, description="Most requests in flight to one upstream; how many it takes is found out below that."
    )
    attempt_timeout: float = Field(10.0, gt=0, le=300, description="Seconds one attempt may take.")
    backoff_base: float = Field(0.5, gt=0, le=3600, description="Seconds of the first back-off; doubles with each attempt.")
    backoff_cap: float = Field(60.0, gt=0, le=86400, description="Longest back-off in seconds.")
    max_attempts: int = Field(
        20, ge=1, le=1000, description="Failures after which a beacon is a dead letter, if others were delivered meanwhile."
    )
    max_age: float = Field(7 * 86400.0, gt=0, description="Seconds after which an undelivered beacon becomes a dead letter.")
    commit_timeout: float = Field(
        5.0, gt=0, le=300, description="Seconds a beacon may wait for the disk; then it is answered 503."
    )
    embedded_forwarder: bool = Field(
        False, description="`proxy.asgi:app` only: deliver from the application's own process (its lifespan)."
    )
    shutdown_grace: float = Field(10.0, gt=0, le=600, description="Seconds a stop may take.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    sites: dict[str, SiteSettings] = Field({}, description="Several sites in one proxy, `[sites.NAME]`; see below.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("expected a value, not true or false")
        return value

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        if self.port and self.port == self.admin_port and self.host == self.admin_host:
            raise ValueError(f"port, admin_port: found {self.port} for both; expected the admin listener on a port of its own")
        return self

    @model_validator(mode="after")
    def _sites_agree(self) -> Self:
        if DEFAULT_SITE in self.sites:
            raise ValueError('sites: the name "default" is taken by the top-level settings; choose another')
        seen: dict[str, str] = {}
        for name, site in self.sites.items():
            for host in site.hosts:
                if host in seen:
                    raise ValueError(f"sites: {host} is in both {seen[host]!r} and {name!r}; expected each host in one site")
                seen[host] = name
        return self

    def spool_config(self) -> SpoolConfig:
        """The spool's part."""
        return SpoolConfig(self.spool, self.durability, self.max_bytes, self.commit_timeout)

    def collector(self) -> CollectorConfig:
        """The collector's part: without any key."""
        return CollectorConfig(
            spool=self.spool_config(),
            prefix=self.prefix,
            hosts={host: name for name, site in self.sites.items() for host in site.hosts},
            default_site=not self.sites or self.api_key is not None,
            trusted_proxies=tuple(self.trusted_proxies),
            log_level=self.log_level,
            shutdown_grace_s=self.shutdown_grace,
        )

    def forwarder(self) -> ForwarderConfig:
        """The forwarder's part, with the keys. Raises SettingsError when one is missing."""
        sites: dict[str, Site] = {}
        if self.api_key is not None:
            sites[DEFAULT_SITE] = Site(self.upstream, self.api_key.get_secret_value())
        for name, site in self.sites.items():
            key = site.api_key or self.api_key
            if key is None:
                raise SettingsError(_missing(f"sites.{name}.api_key"))
            sites[name] = Site(site.upstream or self.upstream, key.get_secret_value())
        if not sites:
            raise SettingsError(_missing("api_key"))
        return ForwarderConfig(
            spool=self.spool_config(),
            sites=sites,
            engine=self.engine,
            concurrency=self.concurrency,
            attempt_timeout_s=self.attempt_timeout,
            policy=Policy(
                int(self.backoff_base * 1000), int(self.backoff_cap * 1000), int(self.max_age * 1000), self.max_attempts
            ),
            address_property=self.address_property,
            log_level=self.log_level,
            shutdown_grace_s=self.shutdown_grace,
        )


def load(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from the file (if any) and the environment. Raises SettingsError."""
    if config is None and CONFIG_VARIABLE in environ:
        config = Path(environ[CONFIG_VARIABLE])
    tree = _read_file(config) if config is not None else {}
    origin = f"in {config}" if config is not None else ""
    from_environment = _read_environment(environ)
    _overlay(tree, from_environment)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(e, tree, from_environment, origin) for e in error.errors())) from None


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def _missing(name: str) -> str:
    return (
        f"{name}: missing; expected the key from the vendor's settings page. "
        f"Set {variable(tuple(name.split('.')))} in the environment, or {name.rsplit('.', 1)[-1]} in the configuration file."
    )


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """BEACON_PROXY_A__B=v → {"a": {"b": "v"}}. Names that end in no setting are found by validation, like the file's."""
    tree: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or _is_service_link(name, environ[name]):
            continue
        *parents, last = name[len(PREFIX) :].lower().split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{name}: a part of its name is a setting of its own in the environment")
        node[last] = environ[name]
    return tree


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes put it there: a Service named beacon-proxy announces itself so to every pod beside it."""
    rest = name.removeprefix(PREFIX)
    return (
        rest == "SERVICE_HOST" or re.match(r"SERVICE_PORT|PORT_\d+_", rest) is not None or value.startswith(("tcp://", "udp://"))
    )


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> None:
    spelt = {name.lower(): name for name in tree}  # variables are upper case: they mean a site however the file spells it
    for name, value in over.items():
        name = spelt.get(name, name)
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _overlay(tree[name], value)
        else:
            tree[name] = value


def _explain(error: Any, tree: dict[str, Any], environ: dict[str, Any], origin: str) -> str:
    """One validation error in plain words: setting, found, expected, what to do. The value of a secret is never shown."""
    path = tuple(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    name = ".".join(path)
    found: Any = tree
    in_environment: Any = environ
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
        in_environment = in_environment.get(part) if isinstance(in_environment, dict) else None
    where = variable(path) if in_environment is not None else name
    place = "" if in_environment is not None or not origin else f" ({origin})"
    if error["type"] == "extra_forbidden":
        fields = SiteSettings.model_fields if path[0] == "sites" else Settings.model_fields
        close = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        hint = variable((*path[:-1], close[0])) if close and in_environment is not None else ".".join((*path[:-1], *close))
        return f"{where}{place}: no such setting; " + (
            f"did you mean {hint}?" if close else "see the settings table in the README"
        )
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return f"{message}{place}"
    if error["type"] == "missing":
        return f"{where}{place}: missing; it is required for each site"
    shown = repr(found)[:80] if _may_be_shown(path, found) else "a value that is not shown"
    message = message[:1].lower() + message[1:]
    expected = message if "expected" in message else "expected: " + message.removeprefix("input should be ")
    return f"{where}{place}: found {shown}; {expected}"


def _may_be_shown(path: tuple[str, ...], found: object) -> bool:
    """Not what is a key, may hold one, or stands where somebody put one by mistake."""
    if path[-1] == "api_key" or not isinstance(found, str | int | float) or (path[0] == "sites" and len(path) < 3):
        return False
    return path[-1] != "upstream" or ("." in str(found) and not set("?@#") & set(str(found)))


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | environment | default | what it is |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if name != "sites":
            rows.append(f"| `{name}` | `{variable((name,))}` | {_default(name, field.default)} | {field.description} |")
    for name, field in SiteSettings.model_fields.items():
        env = variable(("sites", "name", name)).replace("NAME", "NAME")
        default = "required" if field.is_required() else "—"
        rows.append(f"| `sites.NAME.{name}` | `{env}` | {default} | {field.description} |")
    return "\n".join(rows)


def _default(name: str, value: object) -> str:
    if name == "max_bytes":
        return "`10GiB`"
    if isinstance(value, list):
        return f"`{','.join(value)}`"
    return {None: "—", "": "none", False: "`false`"}.get(value, f"`{value:g}`" if isinstance(value, float) else f"`{value}`")  # type: ignore[call-overload,no-any-return]
